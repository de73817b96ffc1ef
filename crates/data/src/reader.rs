//! What reads the rows of a file, whatever its format.

use crate::error::{Problem, Result};
use crate::lines::Lines;
use crate::row::{Decided, Kind, Row, parse};
use std::path::Path;

/// Rows one at a time; no more than one is in memory.
pub(crate) trait Reader {
    /// The next row, with the line (or the number of the row) that messages name.
    fn next(&mut self) -> Result<Option<Read>>;
}

/// A row as it was read. What is wrong with it is told with its place.
pub(crate) struct Read {
    pub line: u64,
    pub row: Result<(Kind, Row), Problem>,
}

/// The reader for a file.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Reader + '_>> {
    Ok(Box::new(JsonLines {
        lines: Lines::open(path)?,
        decided: None,
    }))
}

/// A JSON object a line.
struct JsonLines<'a> {
    lines: Lines<'a>,
    decided: Decided,
}

impl Reader for JsonLines<'_> {
    fn next(&mut self) -> Result<Option<Read>> {
        let Some((line, text)) = self.lines.next()? else {
            return Ok(None);
        };
        let row = parse(text, self.decided);
        if let Ok((kind, _)) = row {
            self.decided.get_or_insert((kind, line));
        }
        Ok(Some(Read { line, row }))
    }
}
