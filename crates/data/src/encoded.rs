//! The rows of a file in tokens, one at a time.

use crate::error::Result;
use crate::example::{Encoder, Example, Reference};
use crate::reader::Reader;
use crate::row::{Decided, Kind, parse};
use std::path::Path;

/// No more than one row is in memory.
pub(crate) struct Encoded<'a> {
    path: &'a Path,
    reader: Reader<'a>,
    encoder: &'a Encoder<'a>,
    decided: Decided,
}

impl<'a> Encoded<'a> {
    pub fn open(path: &'a Path, encoder: &'a Encoder<'a>) -> Result<Self> {
        Ok(Self {
            path,
            reader: Reader::open(path)?,
            encoder,
            decided: None,
        })
    }

    /// The kind of the rows; none before the first.
    pub fn kind(&self) -> Option<Kind> {
        self.decided.map(|(kind, _)| kind)
    }

    /// The next row.
    pub fn next(&mut self) -> Result<Option<(Example, Reference)>> {
        let Some((line, fields)) = self.reader.next()? else {
            return Ok(None);
        };
        let row = parse(fields, self.decided)
            .and_then(|(kind, row)| Ok((kind, self.encoder.encode(kind, &row)?)));
        let (kind, row) = row.map_err(|problem| problem.at(self.path, line))?;
        self.decided.get_or_insert((kind, line));
        Ok(Some(row))
    }
}
