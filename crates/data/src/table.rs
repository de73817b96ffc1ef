//! Rows of CSV and TSV files: the first line names the fields.
//!
//! Commas separate the cells of a CSV file, and one in quotes may hold commas, line ends and doubled quotes. Tabs separate
//! those of a TSV file, where a quote is a character like any other. Cells are text, but for fields that are numbers or
//! lists in every kind of row: those are read as JSON has them, and an empty cell is as good as none.

use crate::error::{Error, Problem, Result};
use crate::lines::LINE_LIMIT;
use crate::row::{Fields, shown};
use csv_core::{ReadRecordResult, ReaderBuilder};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Fields whose cells hold JSON.
const LISTS: [&str; 6] = [
    "choices",
    "conversations",
    "input_ids",
    "labels",
    "messages",
    "tools",
];

/// No kind of row has as many fields.
const MOST_CELLS: usize = 1024;

/// A reader of records.
pub(crate) struct Table<'a> {
    path: &'a Path,
    input: BufReader<File>,
    parser: csv_core::Reader,
    header: Vec<String>,
    /// A record's cells, one behind the other, and where each ends.
    cells: Vec<u8>,
    ends: Vec<usize>,
    /// Whether the last line was given an end of its own.
    ended: bool,
}

impl<'a> Table<'a> {
    /// For cells that are separated by commas, and may be quoted.
    pub fn commas(path: &'a Path) -> Result<Self> {
        Self::open(path, ReaderBuilder::new().build())
    }

    /// For cells that are separated by tabs.
    pub fn tabs(path: &'a Path) -> Result<Self> {
        let mut parser = ReaderBuilder::new();
        Self::open(path, parser.delimiter(b'\t').quoting(false).build())
    }

    fn open(path: &'a Path, parser: csv_core::Reader) -> Result<Self> {
        let file = File::open(path).map_err(|source| read(path, source))?;
        let mut table = Self {
            path,
            input: BufReader::new(file),
            parser,
            header: Vec::new(),
            cells: vec![0; 1 << 12],
            ends: vec![0; 16],
            ended: false,
        };
        if let Some((line, count)) = table.record()? {
            let cells = table.texts(line, count)?;
            let mut header: Vec<String> = Vec::with_capacity(count);
            for cell in cells {
                let name = cell.trim();
                if header.iter().any(|other| other == name) {
                    let field = shown(name);
                    return Err(Problem::Duplicate { field }.at(path, line));
                }
                header.push(name.to_owned());
            }
            table.header = header;
        }
        Ok(table)
    }

    /// The next row, with the number of the line where it begins.
    pub fn next(&mut self) -> Result<Option<(u64, Fields)>> {
        let Some((line, count)) = self.record()? else {
            return Ok(None);
        };
        let expected = self.header.len();
        if count != expected {
            let cells = count;
            return Err(Problem::Cells { cells, expected }.at(self.path, line));
        }
        let has_choices = self.header.iter().any(|name| name == "choices");
        let cells = self.texts(line, count)?;
        let fields = self.header.iter().zip(cells).filter_map(|(name, cell)| {
            let value = match name.as_str() {
                "label" => number(cell)?,
                // Without choices it is a text that an answer is compared with.
                "answer" if has_choices => number(cell)?,
                name if LISTS.contains(&name) => json(cell)?,
                _ => Value::String(cell.to_owned()),
            };
            Some((name.clone(), value))
        });
        Ok(Some((line, Fields::new(fields.collect()))))
    }

    /// Reads a record and says where it begins and how many cells it has. Blank lines are none.
    fn record(&mut self) -> Result<Option<(u64, usize)>> {
        self.skip_blank()?;
        let line = self.parser.line();
        let (mut written, mut count) = (0, 0);
        loop {
            let buffer = self.input.fill_buf();
            let buffer = buffer.map_err(|source| read(self.path, source))?;
            // A line end of our own tells a quote that is never closed from a last line without an end.
            let closing = buffer.is_empty() && !self.ended;
            let input = if closing { b"\n" } else { buffer };
            let (result, taken, bytes, ends) =
                self.parser
                    .read_record(input, &mut self.cells[written..], &mut self.ends[count..]);
            if closing {
                self.ended = taken > 0;
            } else {
                self.input.consume(taken);
            }
            written += bytes;
            count += ends;
            match result {
                ReadRecordResult::InputEmpty if closing && written + count > 0 => {
                    return Err(Problem::OpenQuote.at(self.path, line));
                }
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.cells.len() > LINE_LIMIT => {
                    return Err(Problem::TooLong { limit: LINE_LIMIT }.at(self.path, line));
                }
                ReadRecordResult::OutputFull => self.cells.resize(2 * self.cells.len(), 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= MOST_CELLS => {
                    let (cells, expected) = (count + 1, self.header.len());
                    return Err(Problem::Cells { cells, expected }.at(self.path, line));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record => return Ok(Some((line, count))),
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn skip_blank(&mut self) -> Result<()> {
        loop {
            let buffer = self.input.fill_buf();
            let buffer = buffer.map_err(|source| read(self.path, source))?;
            match buffer.first() {
                Some(b'\n') => self.parser.set_line(self.parser.line() + 1),
                Some(b'\r') => {}
                _ => return Ok(()),
            }
            self.input.consume(1);
        }
    }

    /// The cells of the record that was read.
    fn texts(&self, line: u64, count: usize) -> Result<Vec<&str>> {
        let mut start = 0;
        let cells = self.ends[..count].iter().enumerate().map(|(i, &end)| {
            let cell = &self.cells[start..end];
            start = end;
            std::str::from_utf8(cell).map_err(|_| {
                let field = self.header.get(i).map_or("header", String::as_str);
                let field = shown(field);
                Problem::CellEncoding { field }.at(self.path, line)
            })
        });
        cells.collect()
    }
}

fn read(path: &Path, source: std::io::Error) -> Error {
    Error::Read {
        path: path.to_owned(),
        source,
    }
}

/// A number if the cell is one, else its text.
fn number(cell: &str) -> Option<Value> {
    let text = cell.trim();
    if text.is_empty() {
        return None;
    }
    let integer = text.parse::<i64>().ok().map(Value::from);
    let float = || text.parse::<f64>().ok().filter(|float| float.is_finite());
    Some(
        integer
            .or_else(|| float().map(Value::from))
            .unwrap_or_else(|| cell.into()),
    )
}

/// What the JSON in a cell says; its text if it is not JSON, for the message about what it should be.
fn json(cell: &str) -> Option<Value> {
    if cell.trim().is_empty() {
        return None;
    }
    Some(serde_json::from_str(cell).unwrap_or_else(|_| cell.into()))
}
