//! `lowrank eval` of a classifier.

use crate::arguments::EvalArguments;
use candle_core::{Device, Tensor};
use lowrank::adapter::Selection;
use lowrank::data::{Dataset, Kind};
use lowrank::format::{atomic_write_file, write_safetensors};
use lowrank::training::{Classified, Evaluation, classify};
use lowrank::{Base, Error, Result};
use std::path::Path;

/// Refuses rows and models that do not fit each other.
///
/// # Errors
/// If rows have labels and the model gives rows no classes, or the other way round.
pub fn check(base: &Base, data: &Dataset) -> Result<()> {
    let rows = Kind::Labelled;
    let has_labels = data.kind() == Some(rows);
    let what = match (&base.classes, has_labels) {
        (None, true) => {
            "rows with labels need a classifier: the model has no classification head, and no adapter brings one"
                .to_owned()
        }
        (Some(_), false) => format!("the model is a classifier, which is measured on rows {rows} alone"),
        (None, false) | (Some(_), true) => return Ok(()),
    };
    Err(Error::Usage(what))
}

/// Measures a classifier and writes what the arguments ask for.
///
/// # Errors
/// If the model refuses a row, or a file cannot be written.
pub fn measure(
    arguments: &EvalArguments,
    base: &Base,
    selection: &Selection,
    data: &Dataset,
) -> Result<Evaluation> {
    let model = base.model.as_ref();
    let mut go_on = || Ok(());
    let (found, rows) = classify(
        model,
        selection,
        data.examples(),
        arguments.batch_size,
        &mut go_on,
    )?;
    if let Some(path) = &arguments.predictions {
        let mut lines = String::new();
        for row in &rows {
            // Numbers and nothing else: it always has a JSON form.
            lines.push_str(&serde_json::to_string(row).unwrap_or_default());
            lines.push('\n');
        }
        atomic_write_file(path, lines.as_bytes())?;
    }
    if let Some(path) = &arguments.logits {
        write_logits(path, &rows)?;
    }
    Ok(found)
}

/// `logits` [rows, num_labels] in f32, in the order of the rows.
fn write_logits(path: &Path, rows: &[Classified]) -> Result<()> {
    let numbers: Vec<f32> = rows
        .iter()
        .flat_map(|row| row.scores.iter().map(|&score| score as f32))
        .collect();
    let labels = numbers.len() / rows.len().max(1);
    let logits = Tensor::from_vec(numbers, (rows.len(), labels), &Device::Cpu)?;
    Ok(write_safetensors(path, [("logits", &logits)], &[])?)
}
