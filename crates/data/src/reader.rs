//! Files of rows in any format that is read.

use crate::columns::Columns;
use crate::error::Result;
use crate::lines::Lines;
use crate::row::Fields;
use crate::source::{Format, format};
use crate::table::Table;
use std::path::Path;

/// A reader of one file.
pub(crate) enum Reader<'a> {
    Lines(&'a Path, Lines<'a>),
    Table(Table<'a>),
    Columns(Columns<'a>),
}

impl<'a> Reader<'a> {
    pub fn open(path: &'a Path) -> Result<Self> {
        Ok(match format(path) {
            Format::Lines => Self::Lines(path, Lines::open(path)?),
            Format::Commas => Self::Table(Table::commas(path)?),
            Format::Tabs => Self::Table(Table::tabs(path)?),
            Format::Columns => Self::Columns(Columns::open(path)?),
        })
    }

    /// The fields of the next row, with its line, or its number in a Parquet file, from 1.
    pub fn next(&mut self) -> Result<Option<(u64, Fields)>> {
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
