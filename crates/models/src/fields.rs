//! Reading a JSON object field by field: every field that is read becomes known, what is left over is judged at the
//! end.

use crate::{Error, Result};
use serde_json::{Map, Value};

/// How much of a value a message shows.
const SHOWN: usize = 80;

/// The fields of one object of a configuration file. A field that is `null` counts as absent.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
    /// The path of the object inside the file, `rope_scaling.`, or nothing.
    prefix: &'static str,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, origin: &'a str) -> Self {
        Self {
            map,
            origin,
            prefix: "",
            known: Vec::new(),
        }
    }

    /// The fields of an object inside this one; `prefix` ends with a dot.
    pub(crate) fn inside(&self, map: &'a Map<String, Value>, prefix: &'static str) -> Self {
        Self {
            map,
            origin: self.origin,
            prefix,
            known: Vec::new(),
        }
    }

    pub(crate) fn get(&mut self, field: &'static str) -> Option<&'a Value> {
        self.known.push(field);
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Fields that do not change what the model computes.
    pub(crate) fn ignore(&mut self, fields: &[&'static str]) {
        self.known.extend(fields);
    }

    pub(crate) fn required<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::MissingField {
            origin: self.origin.to_owned(),
            field: self.path(field),
        })
    }

    /// A count above 0.
    pub(crate) fn size(&mut self, field: &'static str) -> Result<Option<usize>> {
        let read = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|n| *n > 0);
        self.read(field, "an integer above 0", read)
    }

    /// A count that may be 0.
    pub(crate) fn count(&mut self, field: &'static str) -> Result<Option<usize>> {
        let read = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.read(field, "an integer of at least 0", read)
    }

    /// A number above 0.
    pub(crate) fn positive(&mut self, field: &'static str) -> Result<Option<f64>> {
        let read = |value: &Value| value.as_f64().filter(|x| *x > 0.0 && x.is_finite());
        self.read(field, "a number above 0", read)
    }

    /// A number from 0 to below 1.
    pub(crate) fn probability(&mut self, field: &'static str) -> Result<Option<f64>> {
        let read = |value: &Value| value.as_f64().filter(|p| (0.0..1.0).contains(p));
        self.read(field, "a number from 0 to below 1", read)
    }

    /// False if absent.
    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool> {
        self.flag_or(field, false)
    }

    /// `absent` if absent.
    pub(crate) fn flag_or(&mut self, field: &'static str, absent: bool) -> Result<bool> {
        let flag = self.read(field, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or(absent))
    }

    pub(crate) fn word(&mut self, field: &'static str) -> Result<Option<&'a str>> {
        self.read(field, "a string", Value::as_str)
    }

    /// A token id; none if it is negative, as old files say it.
    pub(crate) fn token(&mut self, field: &'static str) -> Result<Option<u32>> {
        let id = |id: i64| {
            if id < 0 {
                Some(None)
            } else {
                u32::try_from(id).ok().map(Some)
            }
        };
        let token = self.read(field, "a token id", |value| id(value.as_i64()?))?;
        Ok(token.flatten())
    }

    /// Token ids: one or a list.
    pub(crate) fn tokens(&mut self, field: &'static str) -> Result<Vec<u32>> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let read = |value: &Value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => Some(vec![id(one)?]),
        };
        let tokens = self.read(field, "a token id or a list of token ids", read)?;
        Ok(tokens.unwrap_or_default())
    }

    pub(crate) fn object(&mut self, field: &'static str) -> Result<Option<&'a Map<String, Value>>> {
        self.read(field, "an object", Value::as_object)
    }

    /// Whether the object has the field, if only as `null`.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// Refuses every value but one of `accepted`, which is what we compute.
    pub(crate) fn only(
        &mut self,
        field: &'static str,
        accepted: impl Fn(&Value) -> bool,
        supported: &'static str,
    ) -> Result<()> {
        match self.get(field) {
            Some(value) if !accepted(value) => Err(self.not_yet(field, value, supported)),
            _ => Ok(()),
        }
    }

    pub(crate) fn wrong(&self, field: &str, value: &Value, expected: impl Into<String>) -> Error {
        Error::Field {
            origin: self.origin.to_owned(),
            field: self.path(field),
            value: shown(value),
            expected: expected.into(),
        }
    }

    pub(crate) fn not_yet(&self, field: &str, value: &Value, supported: &'static str) -> Error {
        Error::NotYet {
            origin: self.origin.to_owned(),
            field: self.path(field),
            value: shown(value),
            supported,
        }
    }

    /// Judges what nobody asked for: empty values are accepted, others may change what the model computes.
    pub(crate) fn finish(self) -> Result<()> {
        for (field, value) in self.map {
            if self.known.contains(&field.as_str()) {
                continue;
            }
            if !is_empty(value) {
                let known = self.known.iter().copied();
                return Err(Error::UnknownField {
                    origin: self.origin.to_owned(),
                    field: self.path(field),
                    value: shown(value),
                    suggestion: lowrank_adapter::nearest(field, known),
                });
            }
            let field = self.path(field);
            tracing::warn!(
                "{}: unknown field `{field}` is ignored: it is empty",
                self.origin
            );
        }
        Ok(())
    }

    fn read<T>(
        &mut self,
        field: &'static str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let value = self.get(field);
        value
            .map(|value| read(value).ok_or_else(|| self.wrong(field, value, expected)))
            .transpose()
    }

    fn path(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// A value for a message: hostile files hold long ones.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}
