//! What reads the rows of a file, whatever its format.

use crate::columns::Columns;
use crate::error::{Problem, Result};
use crate::lines::Lines;
use crate::row::{Decided, Fields, Kind, Row, parse};
use crate::source::{Format, format};
use crate::table::Table;
use std::path::Path;

/// Rows one at a time.
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
    let file = match format(path) {
        Format::Lines => File::Lines(path, Lines::open(path)?),
        Format::Commas => File::Table(Table::commas(path)?),
        Format::Tabs => File::Table(Table::tabs(path)?),
        Format::Columns => File::Columns(Columns::open(path)?),
    };
    Ok(Box::new(Rows {
        file,
        decided: None,
    }))
}

/// The rows of one file, which are of one kind.
struct Rows<'a> {
    file: File<'a>,
    decided: Decided,
}

/// A file that gives fields.
enum File<'a> {
    Lines(&'a Path, Lines<'a>),
    Table(Table<'a>),
    Columns(Columns<'a>),
}

impl File<'_> {
    /// The fields of the next row, with its line, or its number in a Parquet file, from 1.
    fn next(&mut self) -> Result<Option<(u64, Fields)>> {
        match self {
            Self::Lines(path, lines) => {
                let Some((line, text)) = lines.next()? else {
                    return Ok(None);
                };
                let fields = Fields::parse(text).map_err(|problem| problem.at(path, line))?;
                Ok(Some((line, fields)))
            }
            Self::Table(table) => table.next(),
            Self::Columns(columns) => columns.next(),
        }
    }
}

impl Reader for Rows<'_> {
    fn next(&mut self) -> Result<Option<Read>> {
        let Some((line, fields)) = self.file.next()? else {
            return Ok(None);
        };
        let row = parse(fields, self.decided);
        if let Ok((kind, _)) = row {
            self.decided.get_or_insert((kind, line));
        }
        Ok(Some(Read { line, row }))
    }
}
