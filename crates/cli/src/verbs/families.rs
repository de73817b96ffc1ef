//! `lowrank families`.

use crate::arguments::FamiliesArguments;
use crate::output::write_out;
use anyhow::Result;
use lowrank::Capabilities;
use lowrank::frozen::BlockType;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::process::ExitCode;

const HEADINGS: [&str; 6] = ["name", "peft_type", "bases", "merges", "to_lora", "gated"];

/// Prints the matrix: a JSON array, or a table that is Markdown too.
pub fn run(arguments: &FamiliesArguments) -> Result<ExitCode> {
    let families = lowrank::families()?;
    if arguments.json {
        write_out(&format!("{}\n", serde_json::to_value(&families)?))?;
    } else {
        write_out(&table(&families)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(families: &[Capabilities]) -> Result<String> {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for family in families {
        rows.push([
            family.name.to_owned(),
            family.peft_type.clone().unwrap_or_else(|| "-".to_owned()),
            bases(&family.bases),
            word(family.merges)?,
            word(family.to_lora)?,
            if family.gated { "yes" } else { "no" }.to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            write!(text, "| {cell:width$} ")?;
        }
        text.push_str("|\n");
        if number == 0 {
            for width in widths {
                write!(text, "|{}", "-".repeat(width + 2))?;
            }
            text.push_str("|\n");
        }
    }
    Ok(text)
}

/// The names, those of GGUF's blocks as one if they are all there.
fn bases(names: &[&str]) -> String {
    let blocks = BlockType::ALL.map(BlockType::name);
    let (packed, mut plain): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| blocks.contains(*name));
    if packed.len() == blocks.len() {
        plain.push("GGUF");
    } else {
        plain.extend(packed);
    }
    plain.join(", ")
}

/// As JSON has it.
fn word(value: impl Serialize) -> Result<String> {
    let value = serde_json::to_value(value)?;
    Ok(value
        .as_str()
        .map_or_else(|| Value::to_string(&value), str::to_owned))
}
