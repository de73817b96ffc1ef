//! The verbs of the binary, each checked against numbers that the tests compute themselves.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a file that the binary should have written fails the test, and a test that is not run says so"
)]

mod answers;
mod chats;
mod chatting;
mod choices;
mod classifier_bases;
mod classifying;
mod continuing;
mod devices;
mod eval;
mod families;
mod full;
mod generating;
mod inspecting;
mod large;
mod memory;
mod merging;
mod output;
mod packing;
mod planned_memory;
mod planning;
mod smollm2;
mod training;

use candle_core::{DType, Tensor};
use lowrank_tests::place::Place;
use serde_json::Value;
use std::collections::BTreeMap;

/// A run file for the rows of [`Place::with_model`]. Other keys come by `--set`.
const RUN: &str = r#"[model]
source = "model"
[adapter]
r = 3
lora_alpha = 5
target_modules = "all-linear"
[data]
train = ["rows.jsonl"]
eval = ["rows.jsonl"]
[train]
batch_size = 4
learning_rate = 0.01
[output]
dir = "run"
"#;

/// Merges the adapter of `run` over `model` into `merged`; the object that it prints.
fn merged(place: &Place) -> Value {
    let arguments = "merge --model model --adapter run/adapter --out merged --json";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    place.run(&arguments).json()
}

/// The keys of an object, in order.
fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} {b}");
}

/// The loss of each token but the first, given the logits `[tokens, vocab]` of the row.
fn losses(logits: &Tensor, ids: &[usize]) -> Vec<f64> {
    let rows: Vec<Vec<f64>> = logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    assert_eq!(rows.len(), ids.len());
    let predicted = rows.iter().zip(&ids[1..]);
    predicted
        .map(|(row, &id)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[id])
        .collect()
}

/// The logits that `eval` writes, by row.
fn logits(place: &Place, arguments: &[&str]) -> BTreeMap<String, Tensor> {
    drop(
        place
            .run(&[&["eval", "--logits", "l.safetensors"], arguments].concat())
            .ok(),
    );
    place.tensors("l.safetensors")
}

/// Tokens and labels of a file of token rows.
fn token_rows(place: &Place, name: &str) -> Vec<(Vec<usize>, Vec<i64>)> {
    let rows = place.json_lines(name).into_iter();
    rows.map(|row| {
        let ids = serde_json::from_value(row["input_ids"].clone()).unwrap();
        (ids, serde_json::from_value(row["labels"].clone()).unwrap())
    })
    .collect()
}
