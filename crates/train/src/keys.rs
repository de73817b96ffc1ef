//! Reading TOML tables so that every complaint names the place, the key, the value and what was expected.

use crate::error::{Error, Result};
use lowrank_adapter::nearest;
use std::ops::RangeInclusive;
use std::path::Path;
use toml::{Table, Value};

/// Where keys come from: the run file, or `--set`.
#[derive(Debug)]
pub(crate) struct Origin {
    file: String,
    sets: Vec<String>,
}

const SET: &str = "--set";

impl Origin {
    /// Parses the file and applies the `--set`s in order.
    pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<(Self, Table)> {
        let file = path.display().to_string();
        let mut table: Table = text.parse().map_err(|error| syntax(&file, text, &error))?;
        let mut origin = Self {
            file,
            sets: Vec::new(),
        };
        for set in sets {
            let (key, value) = parse_set(set)?;
            insert(&mut table, &key, value)?;
            origin.sets.push(key);
        }
        Ok((origin, table))
    }

    /// An error about a key.
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        let inside = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let set = self
            .sets
            .iter()
            .any(|set| inside(set, key) || inside(key, set));
        Error::RunFile {
            place: if set {
                SET.to_owned()
            } else {
                self.file.clone()
            },
            what: what.into(),
        }
    }

    /// An error about a value.
    pub fn expected(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.error(
            key,
            format!("`{key}` is {}, expected {expected}", shown(value)),
        )
    }

    /// An error about something that is planned.
    pub fn not_yet(&self, key: &str, value: &Value, only: &str) -> Error {
        let value = shown(value);
        self.error(
            key,
            format!("`{key} = {value}` is not yet supported (only {only} is)"),
        )
    }
}

fn syntax(file: &str, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |last| last.chars().count())
        + 1;
    Error::RunFile {
        place: format!("{file}:{line}:{column}"),
        what: error.message().replace('\n', ", "),
    }
}

fn parse_set(set: &str) -> Result<(String, Value)> {
    let wrong = |what: String| Error::RunFile {
        place: SET.to_owned(),
        what,
    };
    let Some((key, text)) = set.split_once('=') else {
        return Err(wrong(format!(
            "`{set}` has no `=`, expected key=value, for example train.steps=100"
        )));
    };
    let (key, text) = (key.trim(), text.trim());
    let bare = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    if !key.split('.').all(bare) {
        return Err(wrong(format!(
            "`{key}` is not a key, expected words joined by dots, for example train.steps"
        )));
    }
    let value = match text.parse::<Value>() {
        Ok(value) => value,
        // A bare word, such as a path, is a string. What begins like another value was meant to be one.
        Err(error) if text.is_empty() || text.starts_with(['[', '{', '"', '\'']) => {
            let message = error.message().replace('\n', ", ");
            return Err(wrong(format!(
                "the value of `{key}`, `{text}`, is not TOML: {message}"
            )));
        }
        Err(_) => Value::String(text.to_owned()),
    };
    Ok((key.to_owned(), value))
}

fn insert(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let mut table = table;
    let mut path = Vec::new();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        if parts.peek().is_none() {
            table.insert(part.to_owned(), value);
            return Ok(());
        }
        table = match table
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
        {
            Value::Table(inner) => inner,
            other => {
                return Err(Error::RunFile {
                    place: SET.to_owned(),
                    what: format!(
                        "`{key}` cannot be set: `{}` is {}, not a table",
                        path.join("."),
                        shown(other)
                    ),
                });
            }
        };
    }
    Ok(())
}

/// A value as a user would write it, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}..", &text[..cut]),
        None => text,
    }
}

/// The keys of one table that have not been read yet.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    origin: &'a Origin,
    section: String,
    table: Table,
}

impl<'a> Keys<'a> {
    /// The keys of the table that is called `section`.
    pub fn new(table: Table, origin: &'a Origin, section: &str) -> Self {
        Self {
            origin,
            section: section.to_owned(),
            table,
        }
    }

    /// Takes a table out of the file; an absent one is empty.
    pub fn section(root: &mut Table, origin: &'a Origin, section: &str) -> Result<Self> {
        match root.remove(section) {
            None => Ok(Self::new(Table::new(), origin, section)),
            Some(Value::Table(table)) => Ok(Self::new(table, origin, section)),
            Some(other) => Err(origin.expected(section, &other, "a table")),
        }
    }

    /// Refuses keys that are not listed.
    pub fn only(self, known: &[&str]) -> Result<Self> {
        refuse_unknown(self.origin, &self.section, &self.table, known)?;
        Ok(self)
    }

    /// The dotted name of a key.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.section)
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The keys that are left.
    pub fn rest(self) -> Table {
        self.table
    }

    pub fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.origin.expected(&self.name(key), value, expected)
    }

    pub fn string(&mut self, key: &str, expected: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, expected)),
        }
    }

    pub fn strings(&mut self, key: &str, expected: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let strings = value.as_array().and_then(|items| {
            let strings = items
                .iter()
                .map(|item| item.as_str().filter(|text| !text.is_empty()));
            strings
                .map(|text| text.map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        });
        strings
            .map(Some)
            .ok_or_else(|| self.wrong(key, &value, expected))
    }

    pub fn boolean(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    pub fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let integer = value
            .as_integer()
            .and_then(|value| u64::try_from(value).ok());
        match integer.filter(|value| range.contains(value)) {
            Some(integer) => Ok(Some(integer)),
            None if *range.end() >= i64::MAX as u64 => {
                let expected = format!("an integer of at least {}", range.start());
                Err(self.wrong(key, &value, &expected))
            }
            None => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                Err(self.wrong(key, &value, &expected))
            }
        }
    }

    /// A finite number that `holds` accepts; an integer is one too.
    pub fn number(
        &mut self,
        key: &str,
        expected: &str,
        holds: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match as_number(&value).filter(|&number| holds(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, &value, expected)),
        }
    }

    /// One of a few words, or one of those that are planned.
    pub fn word<T: Copy>(
        &mut self,
        key: &str,
        words: &[(&str, T)],
        planned: &[&str],
    ) -> Result<Option<T>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let text = value.as_str().unwrap_or_default();
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(Some(*found));
        }
        let listed: Vec<String> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let listed = listed.join(" or ");
        if planned.contains(&text) {
            return Err(self.origin.not_yet(&self.name(key), &value, &listed));
        }
        Err(self.wrong(key, &value, &listed))
    }
}

/// A finite number.
pub(crate) fn as_number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Float(number) => *number,
        Value::Integer(number) => *number as f64,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// Refuses keys of `table` that are not `known`, with the nearest that is.
pub(crate) fn refuse_unknown(
    origin: &Origin,
    section: &str,
    table: &Table,
    known: &[&str],
) -> Result<()> {
    let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let dotted = |key: &str| match section {
        "" => key.to_owned(),
        section => format!("{section}.{key}"),
    };
    let suggestion = nearest(key, known.iter().copied())
        .map(|word| dotted(&word))
        .map_or(String::new(), |word| format!(", did you mean `{word}`?"));
    let key = dotted(key);
    Err(origin.error(&key, format!("unknown key `{key}`{suggestion}")))
}
