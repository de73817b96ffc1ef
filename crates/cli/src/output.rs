//! Printing results: one JSON object, or lines for people.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

/// Prints `value` as one JSON object, or as `name: value` lines without lists and objects.
pub fn print(value: &impl Serialize, json: bool) -> Result<()> {
    let value = serde_json::to_value(value)?;
    if json {
        println!("{value}");
        return Ok(());
    }
    if let Value::Object(keys) = &value {
        let width = keys.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in keys {
            match value {
                Value::Null | Value::Array(_) | Value::Object(_) => {}
                Value::String(text) => println!("{key:width$}  {text}"),
                Value::Number(number) if number.is_f64() => {
                    println!("{key:width$}  {:.6}", number.as_f64().unwrap_or_default());
                }
                other => println!("{key:width$}  {other}"),
            }
        }
    }
    Ok(())
}
