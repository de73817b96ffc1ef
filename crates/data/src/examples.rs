//! Rows, wherever they are held.

use crate::dataset::FileSummary;
use crate::error::{Error, Result};
use crate::example::Example;
use crate::mixture::Mixture;
use crate::stored::{Entry, Stored};
use std::borrow::Cow;

/// Rows in an order, each of which can be had alone: those of a slice or of a data set. Only lengths are always at hand;
/// what a row holds may have to be read.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    held: Held<'a>,
    /// Which of them; none: all.
    chosen: Option<&'a [usize]>,
    /// The files that they come from, in order; none if they are of a slice.
    files: &'a [FileSummary],
}

#[derive(Debug, Clone, Copy)]
enum Held<'a> {
    Memory(&'a [Example]),
    Stored(&'a StoredFiles),
}

impl<'a> Examples<'a> {
    /// Those of a data set.
    pub(crate) fn of(
        held: &'a crate::dataset::Held,
        chosen: Option<&'a [usize]>,
        files: &'a [FileSummary],
    ) -> Self {
        let held = match held {
            crate::dataset::Held::Memory(examples) => Held::Memory(examples),
            crate::dataset::Held::Stored(files) => Held::Stored(files),
        };
        Self {
            held,
            chosen,
            files,
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match (self.chosen, self.held) {
            (Some(chosen), _) => chosen.len(),
            (None, Held::Memory(examples)) => examples.len(),
            (None, Held::Stored(files)) => files.rows(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row.
    ///
    /// # Errors
    /// If it has to be read, and cannot.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn get(&self, row: usize) -> Result<Cow<'a, Example>> {
        let row = self.place(row);
        match self.held {
            Held::Memory(examples) => Ok(Cow::Borrowed(&examples[row])),
            Held::Stored(files) => {
                let (file, row) = files.find(row);
                Ok(Cow::Owned(file.get(row)?.0))
            }
        }
    }

    /// How many tokens a row has, without reading it.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn tokens(&self, row: usize) -> usize {
        let row = self.place(row);
        match self.held {
            Held::Memory(examples) => examples[row].ids.len(),
            Held::Stored(files) => files.entry(row).tokens as usize,
        }
    }

    /// How many predictions of a row count, without reading it.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn supervised(&self, row: usize) -> usize {
        let row = self.place(row);
        match self.held {
            Held::Memory(examples) => examples[row].supervised(),
            Held::Stored(files) => files.entry(row).supervised as usize,
        }
    }

    /// Every row in order, one at a time.
    pub fn iter(self) -> impl Iterator<Item = Result<Cow<'a, Example>>> {
        (0..self.len()).map(move |row| self.get(row))
    }

    /// What an epoch takes of each file; none if that is every row once.
    ///
    /// # Errors
    /// If it is more than can be counted.
    pub fn mixture(&self, seed: u64, shuffle: bool) -> Result<Option<Mixture>> {
        if self.files.iter().all(|file| file.per_epoch == file.rows) {
            return Ok(None);
        }
        let files = self.files.iter().map(|file| (file.rows, file.per_epoch));
        let files: Vec<(usize, usize)> = files.collect();
        let mixture = Mixture::new(&files, seed, shuffle);
        mixture.ok_or(Error::EpochTooLong).map(Some)
    }

    fn place(&self, row: usize) -> usize {
        self.chosen.map_or(row, |chosen| chosen[row])
    }
}

impl<'a> From<&'a [Example]> for Examples<'a> {
    fn from(examples: &'a [Example]) -> Self {
        Self {
            held: Held::Memory(examples),
            chosen: None,
            files: &[],
        }
    }
}

impl<'a> From<&'a Vec<Example>> for Examples<'a> {
    fn from(examples: &'a Vec<Example>) -> Self {
        examples.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [Example; N]> for Examples<'a> {
    fn from(examples: &'a [Example; N]) -> Self {
        examples.as_slice().into()
    }
}

/// The rows of several files, one file after the other.
#[derive(Debug, Default)]
pub(crate) struct StoredFiles {
    files: Vec<Stored>,
    /// How many rows each file and those before it have.
    ends: Vec<usize>,
}

impl StoredFiles {
    pub fn push(&mut self, file: Stored) {
        self.ends.push(self.rows() + file.entries().len());
        self.files.push(file);
    }

    pub fn rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The file that a row is in, and the row's number there.
    pub fn find(&self, row: usize) -> (&Stored, usize) {
        let file = self.ends.partition_point(|&end| end <= row);
        let first = file.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&self.files[file], row - first)
    }

    pub fn entry(&self, row: usize) -> &Entry {
        let (file, row) = self.find(row);
        &file.entries()[row]
    }
}
