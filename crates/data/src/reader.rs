//! Files of rows in any format that is read.

use crate::error::Result;
use crate::lines::Lines;
use crate::row::Fields;
use std::path::Path;

/// A reader of one file.
pub(crate) enum Reader<'a> {
    Lines(&'a Path, Lines<'a>),
}

impl<'a> Reader<'a> {
    pub fn open(path: &'a Path) -> Result<Self> {
        Ok(Self::Lines(path, Lines::open(path)?))
    }

    /// The next row, with the number of its line, from 1.
    pub fn next(&mut self) -> Result<Option<(u64, Fields)>> {
        match self {
            Self::Lines(path, lines) => {
                let Some((line, text)) = lines.next()? else {
                    return Ok(None);
                };
                let fields = Fields::parse(text).map_err(|problem| problem.at(path, line))?;
                Ok(Some((line, fields)))
            }
        }
    }
}
