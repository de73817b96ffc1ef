//! JSON as the files around weights hold it.

use crate::{Error, Result, source};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

/// No JSON file beside weights is longer, a tokenizer's included.
const MAX_BYTES: u64 = 100_000_000;

/// Reads a file that must hold one JSON object; keys keep their order.
///
/// # Errors
/// If the file cannot be read, is longer than 100 MB, is not JSON (with line and column) or not an object.
pub fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    let kind = match read_json(path)? {
        Value::Object(map) => return Ok(map),
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
    };
    Err(Error::content(
        path,
        format!("expected a JSON object, found {kind}"),
    ))
}

/// Reads a file that must hold one JSON value of the form that `T` has.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = source::open_file(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::content(
            path,
            format!("is longer than {MAX_BYTES} bytes"),
        ));
    }
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: path.to_path_buf(),
        source,
    })
}

/// The bytes of Python's `json.dumps(value, indent=2, sort_keys=True)`, which is how Hugging Face libraries write
/// their configurations: sorted keys at every level, ASCII only, numbers as Python shows them.
#[must_use]
pub fn python_json(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Null | Value::Bool(_) => text.push_str(&value.to_string()),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => write_float(text, float),
            None => text.push_str(&number.to_string()),
        },
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            let write = |text: &mut String, item: &Value| write_value(text, item, depth + 1);
            write_items(text, ['[', ']'], depth, items, write);
        }
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|&(key, _)| key);
            write_items(text, ['{', '}'], depth, entries, |text, (key, value)| {
                write_string(text, key);
                text.push_str(": ");
                write_value(text, value, depth + 1);
            });
        }
    }
}

fn write_items<T>(
    text: &mut String,
    [open, close]: [char; 2],
    depth: usize,
    items: impl IntoIterator<Item = T>,
    write: impl Fn(&mut String, T),
) {
    let new_line = |text: &mut String, depth| {
        text.push('\n');
        text.extend(std::iter::repeat_n("  ", depth));
    };
    text.push(open);
    let mut first = true;
    for item in items {
        if !first {
            text.push(',');
        }
        first = false;
        new_line(text, depth + 1);
        write(text, item);
    }
    if !first {
        new_line(text, depth);
    }
    text.push(close);
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(text, "\\u{unit:04x}").expect("a String takes any text");
                }
            }
        }
    }
    text.push('"');
}

/// Python's `repr`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn write_float(text: &mut String, float: f64) {
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().expect("Rust writes a number there");
    let written = if (-4..16).contains(&exponent) {
        write!(text, "{float:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(text, "{digits}e{sign}{:02}", exponent.unsigned_abs())
    };
    written.expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        // Python 3: `json.dumps` of each.
        for (float, expected) in [
            (1e-5, "1e-05"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.000_123, "0.000123"),
            (1.5e-7, "1.5e-07"),
            (100.0, "100.0"),
            (-0.0, "-0.0"),
            (-2.5e300, "-2.5e+300"),
            (5e-324, "5e-324"),
            (8.0, "8.0"),
            (0.1, "0.1"),
        ] {
            assert_eq!(python_json(&json!(float)), expected);
        }
        assert_eq!(python_json(&json!(-3)), "-3");
        assert_eq!(python_json(&json!(u64::MAX)), "18446744073709551615");
    }

    #[test]
    fn text_and_layout_are_pythons() {
        assert_eq!(
            python_json(&json!("é😀\u{7f}\"\\\n\t\u{8}\u{c}\u{1}/")),
            r#""\u00e9\ud83d\ude00\u007f\"\\\n\t\b\f\u0001/""#
        );
        let value = json!({"b": [1, {"z": null, "y": true}], "a": {}, "c": [], "B": "x"});
        assert_eq!(
            python_json(&value),
            "{\n  \"B\": \"x\",\n  \"a\": {},\n  \"b\": [\n    1,\n    {\n      \"y\": true,\n      \"z\": null\n    }\n  ],\n  \"c\": []\n}"
        );
    }

    #[test]
    fn what_is_not_an_object_is_refused_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let check = |text: &str, expected: &str| {
            std::fs::write(&path, text).unwrap();
            let message = read_json_object(&path).unwrap_err().to_string();
            assert_eq!(message, format!("{}: {expected}", path.display()));
        };
        check(
            "{\n  \"r\": 8,\n  oops\n}",
            "key must be a string at line 3 column 3",
        );
        check("[1]", "expected a JSON object, found an array");
        check("", "EOF while parsing a value at line 1 column 0");
        check("{} {}", "trailing characters at line 1 column 4");
        check(
            &"[".repeat(100_000),
            "recursion limit exceeded at line 1 column 128",
        );
        std::fs::write(&path, b"{\"a\": \"\xff\"}").unwrap();
        assert!(
            read_json_object(&path)
                .unwrap_err()
                .to_string()
                .contains("invalid unicode")
        );
        let message = read_json_object(dir.path()).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("{}: is not a regular file", dir.path().display())
        );
    }
}
