//! The rows of a file in tokens, one at a time.

use crate::classes::Labels;
use crate::error::Result;
use crate::example::{Encoder, Example, Reference};
use crate::reader::Reader;
use crate::row::{Decided, Kind, Row, parse};
use std::path::Path;

/// No more than one row is in memory.
pub(crate) struct Encoded<'a, 'l> {
    path: &'a Path,
    reader: Reader<'a>,
    encoder: &'a Encoder<'a>,
    decided: Decided,
    labels: Option<&'a mut Labels<'l>>,
}

impl<'a, 'l> Encoded<'a, 'l> {
    pub fn open(path: &'a Path, encoder: &'a Encoder<'a>) -> Result<Self> {
        Ok(Self {
            path,
            reader: Reader::open(path)?,
            encoder,
            decided: None,
            labels: None,
        })
    }

    /// Gives rows the numbers of their labels, which they otherwise lack.
    pub fn with_labels(mut self, labels: &'a mut Labels<'l>) -> Self {
        self.labels = Some(labels);
        self
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
        let encoder = self.encoder;
        let encoded = parse(fields, self.decided).and_then(|(kind, row)| {
            let (mut example, reference) = encoder.encode(kind, &row)?;
            if let (Row::Labelled { label, .. }, Some(labels)) = (&row, &mut self.labels) {
                example.label = Some(labels.read(label, self.path, line)?);
            }
            Ok((kind, (example, reference)))
        });
        let (kind, row) = encoded.map_err(|problem| problem.at(self.path, line))?;
        self.decided.get_or_insert((kind, line));
        Ok(Some(row))
    }
}
