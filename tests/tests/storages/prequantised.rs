//! Model folders that were saved in NF4 by transformers and bitsandbytes.

use super::{assert_near, logits, loss};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The folders that crates/format/tests/golden/prequantised.py made, each with its text.
fn place(case: &str) -> Place {
    let place = Place::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/format/tests/golden");
    let folder = golden.join("prequantised").join(case);
    for file in ["config.json", "model.safetensors"] {
        place.write(
            &format!("model/{file}"),
            fs::read(folder.join(file)).unwrap(),
        );
    }
    place.write(
        "expected.safetensors",
        fs::read(folder.join("expected.safetensors")).unwrap(),
    );
    let ids = place.tensors("expected.safetensors")["ids"].to_vec1::<i64>();
    let ids = ids.unwrap();
    let row = json!({"input_ids": ids, "labels": ids});
    place.write("rows.jsonl", row.to_string() + "\n");
    place
}

#[test]
fn logits_are_those_of_the_dequantised_model() {
    for case in ["double", "single", "storage"] {
        let place = place(case);
        let expected = place.tensors("expected.safetensors").remove("logits");
        let expected = BTreeMap::from([("logits.0".to_owned(), expected.unwrap())]);
        let numbers = expected["logits.0"].flatten_all().unwrap();
        let numbers = numbers.to_vec1::<f64>().unwrap();
        assert!(numbers.iter().any(|logit| logit.abs() > 1.0), "{case}");
        // Asked for, NF4 also takes the layers that were left out of it.
        let quantised = ["nf4"].into_iter().filter(|_| case != "single");
        for dtype in ["as-stored", "f32"].into_iter().chain(quantised) {
            assert_near(
                &logits(&place, &["model", "--dtype", dtype]),
                &expected,
                2e-5,
            );
        }
        assert_near(
            &logits(&place, &["model", "--dtype", "f64"]),
            &expected,
            2e-6,
        );
    }
}

#[test]
fn an_adapter_is_trained_on_it_and_merged_into_plain_numbers() {
    let place = place("single");
    place.write("run.toml", super::RUN);
    let set = [
        "--set",
        "model.source=\"model\"",
        "--set",
        "data.train=[\"rows.jsonl\"]",
    ];
    let before = loss(&place, "rows.jsonl", &["model"]);
    drop(place.run(&[&["train", "run.toml"], &set[..]].concat()).ok());
    let adapter = ["--adapter", "run/adapter", "--strict-base"];
    let adapted = loss(&place, "rows.jsonl", &[&["model"], &adapter[..]].concat());
    assert!(adapted < 0.9 * before, "{before} {adapted}");
    let expected = logits(&place, &[&["model"], &adapter[..]].concat());

    let merge = [
        "merge", "--model", "model", "--out", "merged", "--verify", "--json",
    ];
    let report = place.run(&[&merge[..], &adapter].concat()).json();
    assert_eq!(
        (&report["dtype"], &report["exact"]),
        (&"f32".into(), &true.into())
    );
    let config = place.json("merged/config.json");
    assert_eq!(config.get("quantization_config"), None);
    assert_eq!(config["dtype"], "float32");
    let names: Vec<String> = place
        .tensors("merged/model.safetensors")
        .into_keys()
        .collect();
    assert!(
        !names.iter().any(|name| name.contains("absmax")),
        "{names:?}"
    );
    assert_near(&logits(&place, &["merged"]), &expected, 2e-5);
}

#[test]
fn it_is_inspected_as_the_model_that_it_is() {
    let place = place("double");
    let found = place.run(&["inspect", "model", "--json"]).json();
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 12);
    let of = |name: &str| {
        tensors
            .iter()
            .find(|tensor| tensor["name"] == name)
            .unwrap()
    };
    let up = of("model.layers.0.mlp.up_proj.weight");
    assert_eq!(
        (&up["dtype"], &up["shape"]),
        (&json!("nf4"), &json!([230, 72]))
    );
    assert_eq!(of("lm_head.weight")["dtype"], "f32");
}

#[test]
fn other_quantisations_are_refused() {
    let eval = ["eval", "--model", "model", "--data", "rows.jsonl"];
    let refuse = |change: &dyn Fn(&mut Value), says: &str| {
        let place = place("single");
        place.edit_json("model/config.json", |config| {
            change(config.get_mut("quantization_config").unwrap());
        });
        place.refuses(&eval, 1, &["model/config.json", says]);
    };
    refuse(
        &|config| config["bnb_4bit_quant_type"] = "fp4".into(),
        "`quantization_config.bnb_4bit_quant_type` = \"fp4\" is not yet supported; supported: \"nf4\"",
    );
    refuse(
        &|config| config["load_in_8bit"] = true.into(),
        "`quantization_config.load_in_8bit` = true is not yet supported; supported: NF4, `load_in_4bit`",
    );
    refuse(
        &|config| config["quant_method"] = "gptq".into(),
        "`quantization_config.quant_method` = \"gptq\" is not yet supported; supported: \"bitsandbytes\"",
    );

    // transformers would quantise what is not.
    let place = place("single");
    let config = place.json("model/config.json");
    place.copy("models/plain", "plain");
    place.edit_json("plain/config.json", |plain| {
        plain.insert(
            "quantization_config".into(),
            config["quantization_config"].clone(),
        );
    });
    let eval = ["eval", "--model", "plain", "--data", "rows.jsonl"];
    place.refuses(
        &eval,
        1,
        &["expected null, since plain holds no quantised matrix"],
    );
    // A part of a matrix that is gone.
    place.edit_tensors("model/model.safetensors", |tensors| {
        tensors.remove("model.layers.1.self_attn.v_proj.weight.absmax");
    });
    let says = "tensor `model.layers.1.self_attn.v_proj.weight.absmax` is missing";
    let eval = ["eval", "--model", "model", "--data", "rows.jsonl"];
    place.refuses(&eval, 1, &["model/model.safetensors", says]);
}
