//! Rows of Parquet files, one row in memory at a time and of each column a page.

use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::row::Fields;
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The longest description of a file that is read, in bytes; one takes a few hundred bytes for each column of a row group.
const FOOTER_LIMIT: u64 = 16 << 20;

/// How deeply the fields of a file may lie in one another.
const DEPTH_LIMIT: usize = 64;

/// A reader of rows.
pub(crate) struct Columns<'a> {
    path: &'a Path,
    rows: RowIter<'static>,
    row: u64,
}

impl<'a> Columns<'a> {
    pub fn open(path: &'a Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let length = footer(&mut file).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let Some(length) = length else {
            let message = "it does not end as one does: it was cut off, or is something else";
            return Err(refused(path, message.to_owned()));
        };
        if length > FOOTER_LIMIT {
            let message = format!("its footer is longer than {FOOTER_LIMIT} bytes");
            return Err(refused(path, message));
        }
        let rows = called(path, || {
            let reader = SerializedFileReader::new(file)?;
            Ok(RowIter::from_file_into(Box::new(reader)))
        })?;
        Ok(Self { path, rows, row: 0 })
    }

    /// The next row, with its number from 1.
    pub fn next(&mut self) -> Result<Option<(u64, Fields)>> {
        let rows = &mut self.rows;
        let Some(row) = called(self.path, || rows.next().transpose())? else {
            return Ok(None);
        };
        self.row += 1;
        let fields = object(&row, DEPTH_LIMIT).map_err(|message| {
            let row = self.row;
            refused(self.path, format!("row {row}: {message}"))
        })?;
        Ok(Some((self.row, Fields::new(fields.into_iter().collect()))))
    }
}

/// The length that a file gives for its footer, if it ends with one.
fn footer(file: &mut File) -> std::io::Result<Option<u64>> {
    let end = file.seek(SeekFrom::End(0))?;
    if end < 12 {
        return Ok(None);
    }
    file.seek(SeekFrom::End(-8))?;
    let (mut length, mut mark) = ([0; 4], [0; 4]);
    file.read_exact(&mut length)?;
    file.read_exact(&mut mark)?;
    let length = u64::from(u32::from_le_bytes(length));
    Ok((mark == *b"PAR1").then_some(length))
}

fn called<T>(path: &Path, call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let message = match guarded(call) {
        Some(Ok(value)) => return Ok(value),
        Some(Err(error)) => match error.to_string() {
            message if message.contains("Disabled feature") => {
                format!("{message}; write it with Snappy, with gzip or uncompressed")
            }
            message => message,
        },
        None => "it contradicts itself".to_owned(),
    };
    Err(refused(path, message))
}

fn refused(path: &Path, message: String) -> Error {
    Error::Parquet {
        path: path.to_owned(),
        message,
    }
}

/// A row, or a structure in it, without what is null: that is as good as not there.
fn object(row: &Row, depth: usize) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, field) in row.get_column_iter() {
        let value = value(field, depth).map_err(|message| format!("`{name}` {message}"))?;
        if !value.is_null() && object.insert(name.clone(), value).is_some() {
            return Err(format!("`{name}` is there twice"));
        }
    }
    Ok(object)
}

fn value(field: &Field, depth: usize) -> Result<Value, String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(format!("lies in more than {DEPTH_LIMIT} others"));
    };
    let value = match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => finite(value.to_f64())?,
        Field::Float(value) => finite(f64::from(*value))?,
        Field::Double(value) => finite(*value)?,
        Field::Str(text) => text.as_str().into(),
        // Old writers do not say that bytes are text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err("holds bytes that are no text".to_owned()),
        },
        Field::Group(row) => Value::Object(object(row, depth)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().map(|item| value(item, depth));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Field::MapInternal(_) => return Err("is a map, which no row has".to_owned()),
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => {
            return Err("holds dates, times or decimal fractions, which no row has".to_owned());
        }
    };
    Ok(value)
}

fn finite(number: f64) -> Result<Value, String> {
    match number.is_finite() {
        true => Ok(number.into()),
        false => Err(format!("is {number}, expected a finite number")),
    }
}
