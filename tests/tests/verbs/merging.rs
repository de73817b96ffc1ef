//! `merge`: the folder that it writes computes what base and adapters compute.

use crate::{RUN, close, keys, logits, number};
use candle_core::{DType, Tensor};
use lowrank_tests::numbers::{max_difference, relative_difference};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const SHARDS: u32 = 3;

/// The golden model `plain` with two trained adapters of PEFT's for it: `first` on all linear layers, and `second`,
/// whose ranks and scales differ by module.
fn place() -> Place {
    let place = Place::with_model("plain");
    place.copy("cases/lora/adapter_final", "first");
    place.copy("cases/rslora_patterns/adapter_final", "second");
    place
}

fn base(place: &Place) -> BTreeMap<String, Tensor> {
    let shards = (1..=SHARDS)
        .map(|i| place.tensors(&format!("model/model-0000{i}-of-0000{SHARDS}.safetensors")));
    shards.flatten().collect()
}

/// `weight + factor * scale * B A` of every module that the adapter has, in f64; scales are those that `inspect` says.
fn add_update(place: &Place, weights: &mut BTreeMap<String, Tensor>, adapter: &str, factor: f64) {
    let tensors = place.tensors(&format!("{adapter}/adapter_model.safetensors"));
    let found = place.run(&["inspect", adapter, "--json"]).json();
    for site in found["sites"].as_array().unwrap() {
        let path = site["site"].as_str().unwrap();
        let part = |name: &str| {
            tensors[&format!("base_model.model.{path}.{name}.weight")]
                .to_dtype(DType::F64)
                .unwrap()
        };
        let update = part("lora_B").matmul(&part("lora_A")).unwrap();
        let update = (update * (factor * number(&site["scale"]))).unwrap();
        let weight = weights.get_mut(&format!("{path}.weight")).unwrap();
        *weight = (weight.to_dtype(DType::F64).unwrap() + update).unwrap();
    }
}

fn check_weights(place: &Place, merged: &str, expected: &BTreeMap<String, Tensor>) {
    let written = place.tensors(&format!("{merged}/model.safetensors"));
    assert_eq!(
        written.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (name, expected) in expected {
        let error = relative_difference(&written[name], expected).unwrap();
        assert!(error < 1e-6, "{name} is off by {error:e}");
    }
}

fn loss(place: &Place, model: &[&str]) -> Value {
    let arguments = ["eval", "--data", "rows.jsonl", "--json", "--model"];
    place.run(&[&arguments[..], model].concat()).json()["loss"].clone()
}

#[test]
fn one_adapter_verified() {
    let place = place();
    let arguments = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "first",
        "--out",
        "merged",
        "--verify",
        "--json",
    ];
    let report = place.run(&arguments).json();
    assert_eq!(
        keys(&report),
        [
            "out",
            "dtype",
            "exact",
            "max_abs_logit_diff",
            "kl",
            "tokens"
        ]
    );
    let out = place.path("merged").canonicalize().unwrap();
    let said = place
        .path(report["out"].as_str().unwrap())
        .canonicalize()
        .unwrap();
    assert_eq!(
        (said, &report["dtype"], &report["exact"]),
        (out, &"f32".into(), &true.into())
    );
    let difference = number(&report["max_abs_logit_diff"]);
    assert!(difference > 0.0 && difference < 2e-5, "{difference}");
    assert!((0.0..1e-9).contains(&number(&report["kl"])));
    assert_eq!(report["tokens"], 5 + 17 + 32 + 64);

    let mut expected = base(&place);
    add_update(&place, &mut expected, "first", 1.0);
    check_weights(&place, "merged", &expected);
    close(
        number(&loss(&place, &["merged"])),
        number(&loss(&place, &["model", "--adapter", "first"])),
        1e-6,
    );
    assert!((number(&loss(&place, &["merged"])) - number(&loss(&place, &["model"]))).abs() > 1e-3);
    assert_eq!(
        place.json("merged/config.json"),
        place.json("model/config.json")
    );
    assert_eq!(
        place.text("merged/generation_config.json"),
        place.text("model/generation_config.json")
    );

    // Without --verify nothing is measured, and the bytes are the same.
    let report = place
        .run(&[&arguments[..5], &["--out", "again", "--json"]].concat())
        .json();
    assert_eq!(keys(&report), ["out", "dtype", "exact"]);
    assert_eq!(
        place.read("again/model.safetensors"),
        place.read("merged/model.safetensors")
    );
}

#[test]
fn several_adapters_with_weights_add_up() {
    let place = place();
    let adapters = ["--adapter", "x=first@0.5", "--adapter", "second@-1.5"];
    let merge = [
        "merge", "--model", "model", "--out", "merged", "--verify", "--json",
    ];
    let report = place.run(&[&merge[..], &adapters].concat()).json();
    assert_eq!(report["exact"], true);
    let mut expected = base(&place);
    add_update(&place, &mut expected, "first", 0.5);
    add_update(&place, &mut expected, "second", -1.5);
    check_weights(&place, "merged", &expected);
    // In f64 only the merged weights are rounded. In f32 every operation is, and two orders of the same sums differ by
    // four times as much on the most sensitive of these rows.
    for (dtype, bound) in [("f64", 1e-5), ("f32", 5e-5)] {
        let of = |arguments: &[&str]| {
            let common = ["--data", "rows.jsonl", "--dtype", dtype];
            logits(&place, &[&common, arguments].concat())
        };
        let adapted = of(&[&["--model", "model"], &adapters[..]].concat());
        let merged = of(&["--model", "merged"]);
        for (name, adapted) in &adapted {
            let error = max_difference(adapted, &merged[name]).unwrap();
            assert!(error < bound, "{name} is off by {error:e} in {dtype}");
        }
    }
    // Weight 0 is the base, and 1 needs not be said.
    let of = |adapter: &str| number(&loss(&place, &["model", "--adapter", adapter]));
    close(of("first@0"), number(&loss(&place, &["model"])), 1e-9);
    close(of("first@1.0"), of("first"), 1e-9);
}

#[test]
fn dtypes_of_what_is_written() {
    let place = place();
    let mut expected = base(&place);
    add_update(&place, &mut expected, "first", 1.0);
    for (word, stored, named, tolerance) in [
        ("bf16", DType::BF16, "bfloat16", 4e-3),
        ("f16", DType::F16, "float16", 5e-4),
        ("f64", DType::F64, "float64", 1e-7),
    ] {
        let arguments = [
            "merge",
            "--model",
            "model",
            "--adapter",
            "first",
            "--out",
            word,
            "--dtype",
            word,
        ];
        let report = place
            .run(&[&arguments[..], &["--verify", "--json"]].concat())
            .json();
        assert_eq!(
            (&report["dtype"], &report["exact"]),
            (&word.into(), &true.into())
        );
        let difference = number(&report["max_abs_logit_diff"]);
        assert!(difference < tolerance * 30.0, "{word}: {difference}");
        assert_eq!(place.json(&format!("{word}/config.json"))["dtype"], named);
        let written = place.tensors(&format!("{word}/model.safetensors"));
        for (name, tensor) in &written {
            assert_eq!(tensor.dtype(), stored, "{name}");
            let error = relative_difference(tensor, &expected[name]).unwrap();
            assert!(error < tolerance, "{word} {name}: {error:e}");
        }
        let adapted = number(&loss(&place, &["model", "--adapter", "first"]));
        close(
            number(&loss(&place, &[word, "--dtype", "f32"])),
            adapted,
            tolerance,
        );
    }
}

#[test]
fn a_weight_that_overflows_is_not_written() {
    let place = place();
    place.edit_json("first/adapter_config.json", |config| {
        drop(config.insert("lora_alpha".into(), json!(1e9)))
    });
    let arguments = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "first",
        "--out",
        "merged",
        "--dtype",
        "f16",
    ];
    place.refuses(
        &arguments,
        1,
        &["error: model.layers.0.self_attn.q_proj.weight: the merged weight has values that are not finite in f16; choose a wider dtype"],
    );
    drop(place.run(&arguments[..7]).ok());
}

#[test]
fn a_trained_head_unties_a_tied_model() {
    let place = Place::with_model("biased");
    place.write(
        "run.toml",
        RUN.replace("[data]", "modules_to_save = [\"lm_head\"]\n[data]"),
    );
    drop(
        place
            .run(&["train", "run.toml", "--set", "train.steps=3"])
            .ok(),
    );
    // PEFT's adapter trains the embedding as well.
    place.copy("cases/modules_to_save_tied/adapter_final", "both");
    let base = place.tensors("model/model.safetensors");
    for (adapter, out, trains_embedding) in [
        ("run/adapter", "head", false),
        ("both", "both_merged", true),
    ] {
        let arguments = [
            "merge",
            "--model",
            "model",
            "--adapter",
            adapter,
            "--out",
            out,
            "--verify",
            "--json",
        ];
        let report = place.run(&arguments).json();
        assert_eq!(report["exact"], true);
        assert!(number(&report["max_abs_logit_diff"]) < 2e-5);
        let mut config = place.json("model/config.json");
        assert_eq!(config["tie_word_embeddings"], true);
        config["tie_word_embeddings"] = false.into();
        assert_eq!(place.json(&format!("{out}/config.json")), config);

        let merged = place.tensors(&format!("{out}/model.safetensors"));
        let saved = place.tensors(&format!("{adapter}/adapter_model.safetensors"));
        let difference =
            |name: &str, expected: &Tensor| max_difference(&merged[name], expected).unwrap();
        let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
        assert_eq!(
            difference(head, &saved[&format!("base_model.model.{head}")]),
            0.0
        );
        assert!(difference(head, &base[embedding]) > 1e-3);
        let expected = if trains_embedding {
            &saved[&format!("base_model.model.{embedding}")]
        } else {
            &base[embedding]
        };
        assert_eq!(difference(embedding, expected), 0.0);
        close(
            number(&loss(&place, &[out])),
            number(&loss(&place, &["model", "--adapter", adapter])),
            1e-6,
        );
    }

    // An adapter that leaves the head alone leaves it tied.
    place.copy("cases/gaussian/adapter_final", "other");
    drop(
        place
            .run(&[
                "merge",
                "--model",
                "model",
                "--adapter",
                "other",
                "--out",
                "tied",
            ])
            .ok(),
    );
    assert_eq!(
        place.json("tied/config.json"),
        place.json("model/config.json")
    );
    assert!(
        !place
            .tensors("tied/model.safetensors")
            .contains_key("lm_head.weight")
    );
}

#[test]
fn a_model_that_reads_few_tokens_is_verified_on_few() {
    let place = place();
    place.edit_json("model/config.json", |config| {
        drop(config.insert("max_position_embeddings".into(), json!(20)))
    });
    let arguments = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "first",
        "--out",
        "merged",
        "--verify",
        "--json",
    ];
    assert_eq!(place.run(&arguments).json()["tokens"], 5 + 17 + 20 + 20);
}
