//! Logits that transformers computed, with adapters merged into the weights by PEFT.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::{DType, Tensor};
use common::{Memory, evaluate, object, read, rectangle, rows, tensors, with};
use lowrank_adapter::Ask;
use lowrank_models::{Head, Precision, load};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden")
}

/// The base model's weights, with those that the case changed.
fn merged(model: &Path, expected: &BTreeMap<String, Tensor>) -> Memory {
    let files = std::fs::read_dir(model)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|file| {
        file.extension()
            .is_some_and(|suffix| suffix == "safetensors")
    });
    let mut weights: BTreeMap<String, Tensor> = files.flat_map(|file| tensors(&file)).collect();
    for (name, tensor) in expected {
        if let Some(name) = name.strip_prefix("merged.") {
            weights.insert(name.to_owned(), tensor.clone());
        }
    }
    Memory(weights)
}

/// Compares the logits of all tokens that are not padding; `fields` replace those of config.json.
fn check(case: &str, model: &str, fields: &Value, precision: Precision) {
    let (case, model) = (
        golden().join("cases").join(case),
        golden().join("models").join(model),
    );
    let expected = tensors(&case.join("expected.safetensors"));
    let weights = merged(&model, &expected);
    let config = with(read(&model.join("config.json")), fields.clone());
    let loaded = load(
        object(&config),
        "config.json",
        &weights,
        precision,
        Head::Language,
    )
    .unwrap();

    let first = &read(&case.join("batch.json"))[0];
    let lengths: Vec<usize> = serde_json::from_value(first["lengths"].clone()).unwrap();
    let padded: Vec<Vec<u32>> = serde_json::from_value(first["input_ids"].clone()).unwrap();
    let width = padded[0].len();
    let texts: Vec<Vec<u32>> = padded
        .iter()
        .zip(&lengths)
        .map(|(ids, length)| ids[..*length].to_vec())
        .collect();
    let batch = rectangle(&texts, width);
    let positions = (0..(texts.len() * width) as u32).collect();
    let got = rows(&evaluate(&*loaded, &batch, &Ask::Logits(positions)));
    let expected = expected["merged_logits"].to_dtype(DType::F64).unwrap();
    let expected: Vec<Vec<Vec<f64>>> = expected.to_vec3().unwrap();

    let mut worst = 0f64;
    for (row, length) in lengths.iter().enumerate() {
        for at in 0..*length {
            for (got, expected) in got[row * width + at].iter().zip(&expected[row][at]) {
                worst = worst.max((got - expected).abs());
            }
        }
    }
    assert!(
        worst < 2e-5,
        "{} in {precision:?}: logits differ by {worst}",
        case.display()
    );
}

#[test]
fn logits_are_those_of_transformers() {
    for (case, model, fields) in [
        ("lora", "plain", json!({})),
        ("rslora_patterns", "plain", json!({})),
        ("layers", "plain", json!({})),
        ("modules_to_save", "plain", json!({})),
        ("gaussian", "biased", json!({})),
        ("bias_lora_only", "biased", json!({})),
        // Training a tied head unties it.
        (
            "modules_to_save_tied",
            "biased",
            json!({"tie_word_embeddings": false}),
        ),
    ] {
        for precision in [Precision::AsStored, Precision::Cast(DType::F64)] {
            check(case, model, &fields, precision);
        }
    }
}
