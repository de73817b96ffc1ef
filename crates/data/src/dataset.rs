//! All rows of a few files, in memory.

use crate::classes::{Classes, Expected, Labels};
use crate::error::{Error, Result};
use crate::example::{Encoder, Example, Reference};
use crate::examples::Examples;
use crate::reader::{self, Read};
use crate::row::{Kind, Row};
use crate::source;
use crate::tokenizer::Tokenizer;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// How rows become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Longer rows lose their right end, in tokens.
    pub max_length: NonZeroUsize,
    /// What ends a text or a completion; none if the model has no such token.
    pub end_token: Option<u32>,
    /// The size of the model's vocabulary: every token must be below.
    pub vocab: usize,
    /// At most so many rows are read.
    pub limit: Option<NonZeroUsize>,
}

/// Rows in the order of the files, at least one, at least one of them supervised.
#[derive(Debug, Clone)]
pub struct Dataset {
    examples: Vec<Example>,
    references: Vec<Reference>,
    classes: Option<Classes>,
    summary: Summary,
}

/// What a data set holds, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The files that were read, in order.
    pub files: Vec<FileSummary>,
    /// How many rows there are.
    pub rows: usize,
    /// How many rows lost their right end, in the example or in a choice.
    pub truncated: usize,
    /// How many rows have nothing supervised (left): they are kept, and add nothing to a loss.
    pub unsupervised: usize,
    /// How many tokens all examples have.
    pub tokens: u64,
    /// How many of their predictions count.
    pub supervised: u64,
    /// The length of the longest example, in tokens.
    pub longest: usize,
}

/// What one file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// The file.
    pub path: PathBuf,
    /// The kind of its rows.
    pub kind: Kind,
    /// How many rows were read.
    pub rows: usize,
}

impl Dataset {
    /// Reads the files that `patterns` name (paths or globs; the matches of a glob are sorted). Rows of text need a
    /// tokenizer, rows of tokens do not.
    ///
    /// # Errors
    /// If a pattern matches nothing, a file cannot be read or has no rows, a row is malformed (the error names file and
    /// line), or nothing is supervised in all files together.
    pub fn open(
        patterns: &[String],
        tokenizer: Option<&Tokenizer>,
        options: &Options,
    ) -> Result<Self> {
        Self::open_with(patterns, tokenizer, options, Expected::Found(None))
    }

    /// [`Self::open`] with what is known of the classes that labels name.
    ///
    /// # Errors
    /// As [`Self::open`], and if a label is none of the classes, labels are of several forms, or all of them are one class.
    pub fn open_with(
        patterns: &[String],
        tokenizer: Option<&Tokenizer>,
        options: &Options,
        expected: Expected<'_>,
    ) -> Result<Self> {
        let Options {
            max_length,
            end_token,
            vocab,
            limit,
        } = *options;
        if let Some(token) =
            end_token.filter(|&token| token as usize >= vocab || i32::try_from(token).is_err())
        {
            return Err(Error::EndToken { token, vocab });
        }
        let encoder = Encoder {
            tokenizer,
            end_token,
            max_length,
            vocab,
        };
        let limit = limit.map_or(usize::MAX, NonZeroUsize::get);
        let mut dataset = Self {
            examples: Vec::new(),
            references: Vec::new(),
            classes: None,
            summary: Summary::default(),
        };
        let mut labels = Labels::new(expected);
        for path in source::files(patterns)? {
            if dataset.examples.len() == limit {
                break;
            }
            dataset.read(path, &encoder, &mut labels, limit)?;
        }
        dataset.classes = labels.finish(&mut dataset.examples)?;
        let summary = &dataset.summary;
        if summary.supervised == 0 {
            return Err(Error::NothingSupervised {
                files: summary.files.iter().map(|file| file.path.clone()).collect(),
                rows: summary.rows,
                truncated: summary.truncated,
                max_length: max_length.get(),
            });
        }
        Ok(dataset)
    }

    fn read(
        &mut self,
        path: PathBuf,
        encoder: &Encoder<'_>,
        labels: &mut Labels<'_>,
        limit: usize,
    ) -> Result<()> {
        let mut reader = reader::open(&path)?;
        let mut decided = None;
        let first = self.examples.len();
        while self.examples.len() < limit
            && let Some(Read { line, row }) = reader.next()?
        {
            let mut encoded = |(kind, row): (Kind, Row)| {
                let (mut example, reference) = encoder.encode(kind, &row)?;
                if let Row::Labelled { label, .. } = &row {
                    example.label = Some(labels.read(label, &path, line)?);
                }
                Ok((kind, (example, reference)))
            };
            let row = row.and_then(&mut encoded);
            let (kind, (example, reference)) = row.map_err(|problem| problem.at(&path, line))?;
            decided.get_or_insert(kind);
            self.push(example, reference);
        }
        drop(reader);
        let Some(kind) = decided else {
            return Err(Error::NoRows { path });
        };
        let rows = self.examples.len() - first;
        self.summary.files.push(FileSummary { path, kind, rows });
        Ok(())
    }

    fn push(&mut self, example: Example, reference: Reference) {
        let supervised = example.supervised();
        let cut_choice = matches!(&reference, Reference::Choices(question) if question.truncated);
        let summary = &mut self.summary;
        summary.rows += 1;
        summary.truncated += usize::from(example.truncated || cut_choice);
        summary.unsupervised += usize::from(supervised == 0);
        summary.tokens += example.ids.len() as u64;
        summary.supervised += supervised as u64;
        summary.longest = summary.longest.max(example.ids.len());
        self.examples.push(example);
        self.references.push(reference);
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.examples.len()).expect("a data set without rows is refused")
    }

    /// The kind of all rows; none if the files are of different kinds.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        let kind = self.summary.files.first()?.kind;
        self.summary
            .files
            .iter()
            .all(|file| file.kind == kind)
            .then_some(kind)
    }

    /// One example a row, in the order of the files.
    #[must_use]
    pub fn examples(&self) -> Examples<'_> {
        (&self.examples).into()
    }

    /// What an evaluation compares with, one a row.
    #[must_use]
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// The classes that the rows' labels name; none unless rows have labels.
    #[must_use]
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// The numbers.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}
