//! Rows, wherever they are held.

use crate::error::Result;
use crate::example::Example;
use std::borrow::Cow;

/// Rows in an order, each of which can be had alone: those of a slice or of a data set. Only lengths are always at hand;
/// what a row holds may have to be read.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    held: Held<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Held<'a> {
    Memory(&'a [Example]),
}

impl<'a> Examples<'a> {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.held {
            Held::Memory(examples) => examples.len(),
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
        match self.held {
            Held::Memory(examples) => Ok(Cow::Borrowed(&examples[row])),
        }
    }

    /// How many tokens a row has, without reading it.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn tokens(&self, row: usize) -> usize {
        match self.held {
            Held::Memory(examples) => examples[row].ids.len(),
        }
    }

    /// How many predictions of a row count, without reading it.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn supervised(&self, row: usize) -> usize {
        match self.held {
            Held::Memory(examples) => examples[row].supervised(),
        }
    }

    /// Every row in order, one at a time.
    pub fn iter(self) -> impl Iterator<Item = Result<Cow<'a, Example>>> {
        (0..self.len()).map(move |row| self.get(row))
    }
}

impl<'a> From<&'a [Example]> for Examples<'a> {
    fn from(examples: &'a [Example]) -> Self {
        Self {
            held: Held::Memory(examples),
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
