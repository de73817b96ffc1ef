//! Printing results: one JSON object, or lines for people.

use anyhow::{Result, anyhow};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;

/// Prints `value` as one JSON object, or as `name  value` lines without lists and objects and with `more` below them.
pub fn print(value: &impl Serialize, json: bool, more: &str) -> Result<()> {
    let value = serde_json::to_value(value)?;
    if json {
        return write_out(&format!("{value}\n"));
    }
    let mut text = String::new();
    if let Value::Object(keys) = &value {
        let width = keys.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in keys {
            match value {
                Value::Null | Value::Array(_) | Value::Object(_) => {}
                Value::String(word) => writeln!(text, "{key:width$}  {word}")?,
                Value::Number(number) if number.is_f64() => {
                    let number = number.as_f64().unwrap_or_default();
                    writeln!(text, "{key:width$}  {number:.6}")?;
                }
                other => writeln!(text, "{key:width$}  {other}")?,
            }
        }
    }
    text.push_str(more);
    write_out(&text)
}

/// Writes everything at once.
pub fn write_out(text: &str) -> Result<()> {
    write_piece(text).map(drop)
}

/// Writes to stdout, now; breaks if nobody reads any more. A reader that has seen enough closes the pipe; that is no
/// error. `println!` would panic.
pub fn write_piece(text: &str) -> Result<ControlFlow<()>> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(anyhow!("cannot write to stdout: {error}")),
    }
}
