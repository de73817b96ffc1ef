//! Bases in other storages than f32, through the binary: GGUF files, bf16, f16 and NF4.
#![expect(
    clippy::unwrap_used,
    reason = "a file that the binary should have written fails the test"
)]

mod model;
mod nf4;
mod prequantised;
mod smollm2;

use candle_core::{DType, Tensor};
use lowrank_tests::numbers::{max_difference, relative_difference};
use lowrank_tests::place::Place;
use serde_json::Value;
use std::collections::BTreeMap;

const RUN: &str = r#"[model]
source = "model.gguf"
[adapter]
r = 3
lora_alpha = 5
target_modules = "all-linear"
[data]
train = ["text.jsonl"]
[train]
steps = 6
batch_size = 4
learning_rate = 0.01
[output]
dir = "run"
"#;

fn place() -> Place {
    let place = Place::new();
    model::write(&place);
    place.write("run.toml", RUN);
    place
}

/// The logits that `eval` writes, by row.
fn logits(place: &Place, arguments: &[&str]) -> BTreeMap<String, Tensor> {
    let all = [
        "eval",
        "--data",
        "rows.jsonl",
        "--logits",
        "l.safetensors",
        "--model",
    ];
    drop(place.run(&[&all, arguments].concat()).ok());
    place.tensors("l.safetensors")
}

#[track_caller]
fn assert_near(
    got: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
    tolerance: f64,
) {
    assert!(got.keys().eq(expected.keys()) && !got.is_empty());
    for (row, got) in got {
        let off = max_difference(got, &expected[row]).unwrap();
        assert!(off <= tolerance, "{row} is off by {off:e}");
    }
}

fn loss(place: &Place, data: &str, arguments: &[&str]) -> f64 {
    let all = ["eval", "--json", "--data", data, "--model"];
    place.run(&[&all, arguments].concat()).json()["loss"]
        .as_f64()
        .unwrap()
}

#[test]
fn a_gguf_file_computes_what_its_numbers_do() {
    let place = place();
    let expected = logits(&place, &["model"]);
    assert_near(&logits(&place, &["model.gguf"]), &expected, 2e-5);
    assert_near(
        &logits(&place, &["model.gguf", "--dtype", "f32"]),
        &expected,
        0.0,
    );
    let exact = logits(&place, &["model", "--dtype", "f64"]);
    assert_near(
        &logits(&place, &["model.gguf", "--dtype", "f64"]),
        &exact,
        0.0,
    );
}

#[test]
fn a_gguf_file_is_inspected() {
    let place = place();
    let found = place.run(&["inspect", "model.gguf", "--json"]).json();
    assert_eq!(found["kind"], "model");
    assert_eq!(found["family"], "llama");
    assert_eq!(found["config"]["num_key_value_heads"], 2);
    let tensors = found["tensors"].as_array().unwrap();
    let dtype = |name: &str| {
        let tensor = tensors
            .iter()
            .find(|tensor| tensor["name"] == name)
            .unwrap();
        tensor["dtype"].as_str().unwrap().to_owned()
    };
    assert_eq!(dtype("model.layers.1.self_attn.q_proj.weight"), "q8_0");
    assert_eq!(dtype("model.layers.0.mlp.up_proj.weight"), "q4_1");
    assert_eq!(dtype("model.norm.weight"), "f32");
    let folder = place.run(&["inspect", "model", "--json"]).json();
    assert_eq!(found["file_parameters"], folder["file_parameters"]);
}

#[test]
fn an_adapter_is_trained_on_a_gguf_file_and_merged_into_a_folder() {
    let place = place();
    let before = loss(&place, "text.jsonl", &["model.gguf"]);
    drop(place.run(&["train", "run.toml"]).ok());
    let adapter = ["--adapter", "run/adapter", "--strict-base"];
    let adapted = loss(
        &place,
        "text.jsonl",
        &[&["model.gguf"], &adapter[..]].concat(),
    );
    assert!(adapted < 0.9 * before, "{before} {adapted}");
    // The folder holds the same numbers, so the strict check of the base accepts it.
    let on_folder = logits(&place, &[&["model"], &adapter[..]].concat());
    let on_file = logits(&place, &[&["model.gguf"], &adapter[..]].concat());
    assert_near(&on_file, &on_folder, 2e-5);

    let arguments = [
        "merge",
        "--model",
        "model.gguf",
        "--out",
        "merged",
        "--verify",
        "--json",
    ];
    let report = place.run(&[&arguments[..], &adapter].concat()).json();
    assert_eq!(
        (&report["dtype"], &report["exact"]),
        (&"f32".into(), &true.into())
    );
    assert!(report["max_abs_logit_diff"].as_f64().unwrap() < 1e-4);
    assert_near(&logits(&place, &["merged"]), &on_folder, 2e-5);
    // Its tokenizer is the file's: text has the same loss.
    let merged = loss(&place, "text.jsonl", &["merged"]);
    assert!(
        (merged - adapted).abs() < 1e-5 * adapted,
        "{merged} {adapted}"
    );
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(place.path("merged").join(file).exists(), "{file}");
    }
    let text = "the base model model.gguf; choose another";
    let inside = [
        "merge",
        "--model",
        "model.gguf",
        "--adapter",
        "run/adapter",
        "--out",
        ".",
    ];
    place.refuses(
        &inside,
        2,
        &[&format!("the output folder . contains {text}")],
    );
}

#[test]
fn all_weights_of_a_gguf_file_are_trained_in_f32() {
    let place = place();
    let before = loss(&place, "text.jsonl", &["model.gguf"]);
    place.write(
        "full.toml",
        RUN.replace(
            "r = 3\nlora_alpha = 5\ntarget_modules = \"all-linear\"",
            "family = \"full\"",
        ),
    );
    drop(place.run(&["train", "full.toml"]).ok());
    let after = loss(&place, "text.jsonl", &["run/model"]);
    assert!(after < 0.9 * before, "{before} {after}");
    assert!(
        place
            .tensors("run/model/model.safetensors")
            .values()
            .all(|tensor| tensor.dtype() == DType::F32)
    );
}

#[test]
fn an_adapter_that_saves_the_embedding_trains_its_numbers() {
    let place = place();
    let saving = RUN.replace("[data]", "modules_to_save = [\"embed_tokens\"]\n[data]");
    place.write("run.toml", saving);
    drop(
        place
            .run(&[
                "train",
                "run.toml",
                "--set",
                "train.steps=1",
                "--set",
                "train.learning_rate=1e-30",
            ])
            .ok(),
    );
    let saved = place.tensors("run/adapter/adapter_model.safetensors");
    let table = &saved["base_model.model.model.embed_tokens.weight"];
    let expected = &place.tensors("model/model.safetensors")["model.embed_tokens.weight"];
    assert!(max_difference(table, expected).unwrap() < 1e-20);
    let adapted = logits(&place, &["model.gguf", "--adapter", "run/adapter"]);
    assert_near(&adapted, &logits(&place, &["model"]), 2e-5);
}

/// The model's folder in another dtype.
fn half(place: &Place, dtype: DType) {
    place.duplicate("model", "half");
    place.edit_tensors("half/model.safetensors", |tensors| {
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_dtype(dtype).unwrap();
        }
    });
}

#[test]
fn halves_are_held_as_stored_and_computed_in_f32() {
    for (dtype, word) in [(DType::BF16, "bf16"), (DType::F16, "f16")] {
        let place = place();
        half(&place, dtype);
        let expected = logits(&place, &["half", "--dtype", "f32"]);
        assert_near(&logits(&place, &["half"]), &expected, 2e-5);
        // The norms of the folder are not rounded, so this is near and not equal.
        let cast = logits(&place, &["model", "--dtype", word]);
        assert!(max_difference(&cast["logits.2"], &expected["logits.2"]).unwrap() < 0.1);
        let full = logits(&place, &["model"]);
        assert!(max_difference(&cast["logits.2"], &full["logits.2"]).unwrap() > 1e-4);
    }
}

#[test]
fn training_on_halves_and_blocks_is_near_to_training_on_f32() {
    let place = place();
    half(&place, DType::BF16);
    let trained = |source: &str, dtype: &str| -> f64 {
        let source = format!("model.source={source}");
        let dtype = format!("model.dtype={dtype}");
        let sets = ["--set", &source, "--set", &dtype];
        drop(
            place
                .run(
                    &[
                        &[
                            "train",
                            "run.toml",
                            "--overwrite",
                            "--set",
                            "data.train=[\"rows.jsonl\"]",
                        ][..],
                        &sets,
                    ]
                    .concat(),
                )
                .ok(),
        );
        let metrics: Vec<Value> = place.json_lines("run/metrics.jsonl");
        metrics.last().unwrap()["loss"].as_f64().unwrap()
    };
    let expected = trained("model", "f32");
    for (source, dtype) in [
        ("model.gguf", "as-stored"),
        ("half", "as-stored"),
        ("model", "f16"),
    ] {
        let loss = trained(source, dtype);
        assert!(
            (loss / expected - 1.0).abs() < 0.02,
            "{source} {dtype}: {loss} {expected}"
        );
    }
}

#[test]
fn a_merge_of_halves_writes_halves() {
    let place = place();
    half(&place, DType::BF16);
    drop(place.run(&["train", "run.toml"]).ok());
    let arguments = [
        "merge",
        "--model",
        "half",
        "--adapter",
        "run/adapter",
        "--json",
    ];
    let report = place
        .run(&[&arguments[..], &["--out", "merged"]].concat())
        .json();
    assert_eq!(report["dtype"], "bf16");
    let written = place.tensors("merged/model.safetensors");
    assert!(written.values().all(|tensor| tensor.dtype() == DType::BF16));
    assert_eq!(place.json("merged/config.json")["torch_dtype"], "bfloat16");
    let report = place
        .run(
            &[
                &arguments[..],
                &["--out", "wide", "--dtype", "f32", "--verify"],
            ]
            .concat(),
        )
        .json();
    assert!(report["max_abs_logit_diff"].as_f64().unwrap() < 1e-4);
    let wide = place.tensors("wide/model.safetensors");
    for (name, tensor) in &written {
        let rounded = wide[name].to_dtype(DType::BF16).unwrap();
        assert_eq!(
            relative_difference(tensor, &rounded).unwrap(),
            0.0,
            "{name}"
        );
    }
}
