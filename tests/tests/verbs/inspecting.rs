//! `inspect`: what an adapter or a model is, by numbers.

use crate::{close, keys, number};
use candle_core::DType;
use lowrank_tests::numbers::values;
use lowrank_tests::place::Place;
use serde_json::json;

#[test]
fn an_adapter_of_peft() {
    let place = Place::new();
    place.copy("cases/lora/adapter_final", "adapter");
    let found = place.run(&["inspect", "adapter", "--json"]).json();
    assert_eq!(
        keys(&found),
        [
            "kind",
            "family",
            "peft_type",
            "config",
            "trainable_parameters",
            "file_parameters",
            "base",
            "sites",
            "tensors"
        ]
    );
    let tensors = place.tensors("adapter/adapter_model.safetensors");
    let parameters: usize = tensors.values().map(candle_core::Tensor::elem_count).sum();
    assert_eq!(
        (&found["kind"], &found["family"], &found["peft_type"]),
        (&"adapter".into(), &"lora".into(), &"LORA".into())
    );
    assert_eq!(
        (&found["trainable_parameters"], &found["file_parameters"]),
        (&parameters.into(), &parameters.into())
    );
    assert_eq!(found["base"], "models/plain");
    assert_eq!(found["config"], place.json("adapter/adapter_config.json"));

    let listed = found["tensors"].as_array().unwrap();
    assert_eq!(listed.len(), tensors.len());
    for (listed, (name, tensor)) in listed.iter().zip(&tensors) {
        let name = name.strip_prefix("base_model.model.").unwrap();
        assert_eq!(
            *listed,
            json!({"name": name, "dtype": "f32", "shape": tensor.dims()})
        );
    }
    let sites = found["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 21);
    for site in sites {
        assert_eq!(keys(site), ["site", "rank", "scale", "delta_norm"]);
        assert_eq!(site["rank"], 4);
        close(number(&site["scale"]), 1.5, 1e-15);
        let part = |name: &str| {
            let name = format!(
                "base_model.model.{}.{name}.weight",
                site["site"].as_str().unwrap()
            );
            tensors[&name].to_dtype(DType::F64).unwrap()
        };
        let update = part("lora_B").matmul(&part("lora_A")).unwrap();
        let norm = values(&update)
            .unwrap()
            .iter()
            .map(|x| x * x)
            .sum::<f64>()
            .sqrt();
        assert!(norm > 1e-3);
        close(number(&site["delta_norm"]) / (1.5 * norm), 1.0, 1e-5);
    }
}

#[test]
fn ranks_and_scales_that_differ_by_module() {
    let place = Place::new();
    place.copy("cases/rslora_patterns/adapter_init", "adapter");
    let found = place.run(&["inspect", "adapter", "--json"]).json();
    let tensors = place.tensors("adapter/adapter_model.safetensors");
    let mut ranks = std::collections::BTreeSet::new();
    let mut scales = std::collections::BTreeSet::new();
    for site in found["sites"].as_array().unwrap() {
        let path = site["site"].as_str().unwrap();
        let rank = tensors[&format!("base_model.model.{path}.lora_A.weight")].dims()[0];
        assert_eq!(site["rank"], rank);
        // rsLoRA divides by the root of the rank; alpha is the configuration's, or that of a pattern.
        let alpha = match path {
            "model.layers.0.mlp.down_proj" | "model.layers.1.mlp.down_proj" => 11.0,
            path if path.ends_with("v_proj") => 7.0,
            _ => 5.0,
        };
        close(number(&site["scale"]), alpha / (rank as f64).sqrt(), 1e-12);
        ranks.insert(rank);
        scales.insert(site["scale"].to_string());
    }
    assert!(ranks.len() > 1 && scales.len() > 1, "{ranks:?} {scales:?}");
}

#[test]
fn whole_modules_and_biases_count() {
    let place = Place::new();
    place.copy("cases/modules_to_save_tied/adapter_init", "adapter");
    let found = place.run(&["inspect", "adapter", "--json"]).json();
    let tensors = place.tensors("adapter/adapter_model.safetensors");
    let parameters: usize = tensors.values().map(candle_core::Tensor::elem_count).sum();
    assert_eq!(found["trainable_parameters"], parameters);
    let named = |name: &str| {
        found["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .any(|tensor| tensor["name"] == name)
    };
    assert!(named("lm_head.weight"));
    // Whole modules have no rank, and are no sites.
    let sites = found["sites"].as_array().unwrap();
    assert!(
        !sites.is_empty()
            && sites
                .iter()
                .all(|site| site["rank"].as_u64().is_some() && site["site"] != "lm_head")
    );
}

#[test]
fn models_of_one_file_and_of_several() {
    let place = Place::with_model("plain");
    let found = place.run(&["inspect", "model", "--json"]).json();
    assert_eq!(
        keys(&found),
        ["kind", "family", "config", "file_parameters", "tensors"]
    );
    assert_eq!(
        (&found["kind"], &found["family"]),
        (&"model".into(), &"llama".into())
    );
    assert_eq!(found["config"], place.json("model/config.json"));
    let index = place.json("model/model.safetensors.index.json");
    assert_eq!(
        found["file_parameters"],
        index["metadata"]["total_parameters"]
    );
    let names: Vec<&str> = found["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, keys(&index["weight_map"]));
    let embedding = json!({"name": "model.embed_tokens.weight", "dtype": "f32", "shape": [97, 48]});
    assert!(found["tensors"].as_array().unwrap().contains(&embedding));

    let place = Place::with_model("biased");
    let found = place.run(&["inspect", "model", "--json"]).json();
    let tensors = place.tensors("model/model.safetensors");
    assert_eq!(found["tensors"].as_array().unwrap().len(), tensors.len());
    let parameters: usize = tensors.values().map(candle_core::Tensor::elem_count).sum();
    assert_eq!(found["file_parameters"], parameters);
}
