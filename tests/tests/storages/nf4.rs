//! Bases that are quantised to NF4 while they are loaded.

use super::smollm2::models;
use super::{assert_near, logits, loss, place};
use candle_core::{DType, Tensor};
use lowrank::adapter::Selection;
use lowrank::format::Existing;
use lowrank::frozen::{Nf4, Stored};
use lowrank::models::Precision;
use lowrank::{Base, StrictBase, load_adapter, merge_into};
use lowrank_tests::numbers::max_difference;
use lowrank_tests::place::Place;
use std::path::Path;

const NF4: [&str; 2] = ["--dtype", "nf4"];

/// Replaces the layers of the folder `model` by their numbers in NF4, as the folder `held`.
fn held(place: &Place) {
    place.duplicate("model", "held");
    place.edit_tensors("held/model.safetensors", |tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if name.ends_with("_proj.weight") {
                *tensor = quantised(tensor);
            }
        }
    });
}

fn quantised(tensor: &Tensor) -> Tensor {
    let numbers = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let numbers = Nf4::quantise(&numbers, true).unwrap();
    let stored = Stored::nf4(numbers, tensor.dims2().unwrap()).unwrap();
    stored.to_dense().unwrap()
}

#[test]
fn a_folder_and_a_gguf_file_compute_what_their_quantised_layers_do() {
    let place = place();
    held(&place);
    let expected = logits(&place, &["held"]);
    assert_near(
        &logits(&place, &[&["model"], &NF4[..]].concat()),
        &expected,
        2e-5,
    );
    assert_near(
        &logits(&place, &[&["model.gguf"], &NF4[..]].concat()),
        &expected,
        2e-5,
    );
    let full = logits(&place, &["model"]);
    assert!(max_difference(&full["logits.2"], &expected["logits.2"]).unwrap() > 1e-2);
}

#[test]
fn an_adapter_is_trained_on_nf4_and_merged() {
    let place = place();
    held(&place);
    let set = [
        "--set",
        "model.source=\"model\"",
        "--set",
        "data.train=[\"rows.jsonl\"]",
        "--set",
        "model.dtype=nf4",
    ];
    let weights = |sets: &[&str]| {
        let plan = place.run(&[&["plan", "run.toml", "--json"], sets].concat());
        plan.json()["memory_mb"]["weights"].as_f64().unwrap()
    };
    let (small, large) = (weights(&set), weights(&set[..4]));
    assert!(small < 0.4 * large, "{small} {large}");

    let before = loss(&place, "rows.jsonl", &[&["model"], &NF4[..]].concat());
    drop(place.run(&[&["train", "run.toml"], &set[..]].concat()).ok());
    assert!(place.text("run/run.toml").contains("dtype = \"nf4\""));
    let adapter = ["--adapter", "run/adapter"];
    let strict = ["--strict-base"];
    // Its base is the checkpoint, however that was held.
    let arguments = [&["model"], &NF4[..], &adapter, &strict].concat();
    let adapted = loss(&place, "rows.jsonl", &arguments);
    assert!(adapted < 0.95 * before, "{before} {adapted}");
    let expected = logits(&place, &arguments);
    assert_near(
        &logits(&place, &[&["held"], &adapter[..]].concat()),
        &expected,
        2e-5,
    );

    // Into what it was trained on, and into what that was quantised from.
    let source = place.path("model").to_string_lossy().into_owned();
    let mut base = Base::open(&source, Precision::Nf4 { double: true }).unwrap();
    let folder = place.path("run/adapter");
    load_adapter(&mut base, "trained", &folder, StrictBase::Yes).unwrap();
    let out = place.path("merged");
    let selection = Selection::one("trained");
    let written = merge_into(&mut base, &selection, None, &out, Existing::Refuse).unwrap();
    assert_eq!((written.dtype, written.exact), (DType::F32, true));
    assert_near(&logits(&place, &["merged"]), &expected, 2e-5);
    let arguments = [
        "merge", "--model", "model", "--out", "full", "--verify", "--json",
    ];
    let report = place.run(&[&arguments[..], &adapter].concat()).json();
    assert_eq!(
        (&report["dtype"], &report["exact"]),
        (&"f32".into(), &true.into())
    );
    let arguments = [
        "merge", "--model", "model", "--out", "four", "--dtype", "nf4",
    ];
    let says = "--dtype `nf4` is how a base is held and not how a model is written";
    place.refuses(&[&arguments[..], &adapter].concat(), 2, &[says]);
}

#[test]
fn text_is_generated_from_tiny_in_nf4() {
    let place = Place::new();
    let arguments = [
        "generate",
        "--model",
        "tiny",
        "--prompt",
        "The",
        "--max-new-tokens",
        "4",
    ];
    let report = place
        .run(&[&arguments[..], &NF4, &["--json"]].concat())
        .json();
    assert!(
        report["tokens"].as_u64().is_some_and(|tokens| tokens > 0),
        "{report}"
    );
}

#[test]
fn smollm2_loses_what_bitsandbytes_does() {
    let Some((_, folder)) = models() else {
        return;
    };
    let place = Place::new();
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/smollm2/rows.jsonl");
    place.write("rows.jsonl", std::fs::read(rows).unwrap());
    let folder = folder.to_string_lossy();
    let of = |dtype: &str| {
        let arguments = ["eval", "--data", "rows.jsonl", "--limit", "6", "--json"];
        let base = ["--dtype", dtype, "--model", &folder];
        let report = place.run(&[&arguments[..], &base].concat()).json();
        let number = |key: &str| report[key].as_f64();
        (number("loss").unwrap(), number("peak_rss_mb"))
    };
    let (full, quantised) = (of("f32"), of("nf4"));
    // What parity/smollm2_nf4.py prints.
    assert!((full.0 - 4.326_230_8).abs() < 2e-5, "{full:?}");
    assert!((quantised.0 - 4.558_333_0).abs() < 2e-5, "{quantised:?}");
    if let (Some(full), Some(quantised)) = (full.1, quantised.1) {
        // The mapped file counts in both.
        assert!(quantised < 0.75 * full, "{quantised} MB against {full} MB");
    }
}
