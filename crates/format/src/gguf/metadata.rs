//! What a GGUF file says beside its tensors: keys with typed values.

use super::header::Cursor;
use std::collections::BTreeMap;

/// The metadata by key.
#[derive(Debug, Default)]
pub(crate) struct Metadata(BTreeMap<String, Value>);

/// A value. Lists stay in the bytes of the file until somebody asks for one.
#[derive(Debug)]
pub(crate) enum Value {
    Integer(i128),
    /// The shortest decimal that gives the file's number: 1e-5, and not 9.999999747378752e-6.
    Real(f64),
    Flag(bool),
    Text(String),
    List(List),
}

/// A list whose bytes were checked when the file was opened.
#[derive(Debug)]
pub(crate) struct List {
    element: Type,
    bytes: Vec<u8>,
}

impl List {
    pub(super) const fn new(element: Type, bytes: Vec<u8>) -> Self {
        Self { element, bytes }
    }
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Flag,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Type {
    pub(super) const fn numbered(number: u32) -> Option<Self> {
        const TYPES: [Type; 13] = [
            Type::U8,
            Type::I8,
            Type::U16,
            Type::I16,
            Type::U32,
            Type::I32,
            Type::F32,
            Type::Flag,
            Type::Text,
            Type::List,
            Type::U64,
            Type::I64,
            Type::F64,
        ];
        if (number as usize) < TYPES.len() {
            Some(TYPES[number as usize])
        } else {
            None
        }
    }

    /// Bytes of a value, if all have the same.
    pub(super) const fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Flag => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::List => None,
        }
    }

    pub(super) const fn min_bytes(self) -> u64 {
        match self.size() {
            Some(size) => size,
            // A text has a length; a list has a type and a length.
            None => 8,
        }
    }

    /// A value of a type with a size; `None` for a boolean that is neither 0 nor 1.
    pub(super) fn scalar(self, bytes: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        Some(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Integer(unsigned.into()),
            Self::I8 => Value::Integer((unsigned as u8 as i8).into()),
            Self::I16 => Value::Integer((unsigned as u16 as i16).into()),
            Self::I32 => Value::Integer((unsigned as u32 as i32).into()),
            Self::I64 => Value::Integer((unsigned as i64).into()),
            Self::F32 => {
                let number = f32::from_bits(unsigned as u32);
                Value::Real(number.to_string().parse().unwrap_or(number.into()))
            }
            Self::F64 => Value::Real(f64::from_bits(unsigned)),
            Self::Flag if unsigned <= 1 => Value::Flag(unsigned == 1),
            Self::Flag | Self::Text | Self::List => return None,
        })
    }
}

/// Values for messages; hostile files hold long ones.
fn shown(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => format!("{number:?}"),
        Value::Flag(flag) => flag.to_string(),
        Value::Text(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        Value::List(_) => "a list".to_owned(),
    }
}

/// The getters' errors say which key is wrong and how; `None` is an absent key.
impl Metadata {
    pub(super) fn insert(&mut self, key: String, value: Value) -> Option<Value> {
        self.0.insert(key, value)
    }

    /// Keys that begin with `prefix`, sorted, without it.
    pub(super) fn keys<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .keys()
            .filter_map(move |key| key.strip_prefix(prefix))
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// True for a value that says nothing: zero, false, empty.
    pub(super) fn is_empty(&self, key: &str) -> bool {
        match self.0.get(key) {
            None => true,
            Some(Value::Integer(number)) => *number == 0,
            Some(Value::Real(number)) => *number == 0.0,
            Some(Value::Flag(flag)) => !flag,
            Some(Value::Text(text)) => text.is_empty(),
            Some(Value::List(list)) => list.bytes.is_empty(),
        }
    }

    pub(super) fn shown(&self, key: &str) -> String {
        self.0.get(key).map_or("absent".to_owned(), shown)
    }

    /// A count or an id.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, String> {
        self.get(
            key,
            "an integer that is not negative",
            |value| match value {
                Value::Integer(number) => usize::try_from(*number).ok(),
                _ => None,
            },
        )
    }

    pub(super) fn real(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key, "a finite number", |value| match value {
            Value::Real(number) => Some(*number).filter(|number| number.is_finite()),
            Value::Integer(number) => Some(*number as f64),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.get(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, String> {
        self.get(key, "a list of strings", |value| match value {
            Value::List(list) if list.element == Type::Text => {
                let mut cursor = Cursor {
                    file: &list.bytes,
                    at: 0,
                };
                let mut texts = Vec::new();
                while cursor.at < list.bytes.len() {
                    texts.push(cursor.text("a checked list").ok()?);
                }
                Some(texts)
            }
            _ => None,
        })
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i128>>, String> {
        self.get(key, "a list of integers", |value| match value {
            Value::List(list) => {
                let size = usize::try_from(list.element.size()?).ok()?;
                let scalar = |bytes| match list.element.scalar(bytes)? {
                    Value::Integer(number) => Some(number),
                    _ => None,
                };
                list.bytes.chunks(size).map(scalar).collect()
            }
            _ => None,
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(format!("`{key}` is {}, expected {expected}", shown(value))),
            },
        }
    }
}

/// For keys that must be there.
pub(super) fn required<T>(key: &str, value: Result<Option<T>, String>) -> Result<T, String> {
    value?.ok_or_else(|| format!("`{key}` is missing"))
}
