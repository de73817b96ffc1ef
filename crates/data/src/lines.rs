//! Lines of text files, one at a time, never more than a bounded amount in memory.

use crate::error::{Error, Problem, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest line that is read, in bytes, without its end.
pub(crate) const LINE_LIMIT: usize = 64 << 20;

/// A reader of lines.
pub(crate) struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    line: u64,
    buffer: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path,
            reader: BufReader::new(file),
            line: 0,
            buffer: Vec::new(),
        })
    }

    /// The next line that is not blank, with its number from 1. A byte order mark before the first is dropped.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, &str)>> {
        loop {
            self.buffer.clear();
            // One byte for the end of the line, and one that tells a long line from a full one.
            let read = (&mut self.reader)
                .take(LINE_LIMIT as u64 + 2)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| Error::Read {
                    path: self.path.to_owned(),
                    source,
                })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self
                .buffer
                .strip_suffix(b"\n")
                .unwrap_or(&self.buffer)
                .len()
                > LINE_LIMIT
            {
                return Err(Problem::TooLong { limit: LINE_LIMIT }.at(self.path, self.line));
            }
            if !self.text().trim_ascii().is_empty() {
                break;
            }
        }
        match std::str::from_utf8(self.text()) {
            Ok(text) => Ok(Some((self.line, text))),
            Err(error) => Err(Problem::Encoding {
                byte: error.valid_up_to() + 1,
            }
            .at(self.path, self.line)),
        }
    }

    fn text(&self) -> &[u8] {
        let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        if self.line == 1 {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
        } else {
            line
        }
    }
}
