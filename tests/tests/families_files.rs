//! Files of the families that are odd or hostile, and forms that only larger models have.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use candle_core::{DType, Device, Tensor};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::collections::HashMap;

/// An adapter folder `adapter` of this configuration and these tensors.
fn folder(config: &Value, tensors: &[(&str, Tensor)]) -> Place {
    let place = Place::new();
    place.write("adapter/adapter_config.json", config.to_string());
    let named = tensors.iter();
    let named: HashMap<String, Tensor> = named
        .map(|(name, tensor)| (format!("base_model.model.{name}"), tensor.clone()))
        .collect();
    let path = place.path("adapter/adapter_model.safetensors");
    candle_core::safetensors::save(&named, path).unwrap();
    place
}

fn numbers(rows: usize, columns: usize) -> Tensor {
    let numbers: Vec<f32> = (0..rows * columns)
        .map(|i| (i as f32 + 1.0).sin())
        .collect();
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
}

/// ResLoRA joins a layer to the ones before it: layer 10 comes after layer 9 also for who only sees names.
#[test]
fn inspect_knows_the_order_of_ten_layers_and_more() {
    let tensors: Vec<(String, Tensor)> = (0..12)
        .flat_map(|layer| {
            let path = format!("model.layers.{layer}.self_attn.q_proj");
            let a = (numbers(2, 6) * f64::from(layer + 1)).unwrap();
            [
                (format!("{path}.lora_A.weight"), a),
                (format!("{path}.lora_B.weight"), numbers(5, 2)),
            ]
        })
        .collect();
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    let config = json!({
        "peft_type": "RESLORA", "r": 2, "lora_alpha": 3, "pre_num": 3, "res_type": "bs", "target_modules": ["q_proj"],
    });
    let place = folder(&config, &tensors);
    let report = place.run(&["inspect", "adapter", "--json"]).json();
    let sites = report["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 12);
    for (n, site) in sites.iter().enumerate() {
        assert_eq!(site["site"], format!("model.layers.{n}.self_attn.q_proj"));
        assert_eq!(site["rank"], 2 * (n.min(3) + 1), "{site}");
    }
    // s B sum(A) of layers 7 to 10, all with the same B and multiples 8 to 11 of the same A.
    let square = |tensor: Tensor| -> f64 {
        let sum = tensor
            .to_dtype(DType::F64)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all();
        sum.unwrap().to_scalar().unwrap()
    };
    let norm = 1.5 * 38.0 * square(numbers(5, 2).matmul(&numbers(2, 6)).unwrap()).sqrt();
    let found = sites[10]["delta_norm"].as_f64().unwrap();
    assert!((found - norm).abs() < 1e-4 * norm, "{found} {norm}");
}

#[test]
fn indices_that_no_weight_has_end_with_a_message() {
    let path = "model.layers.0.self_attn.q_proj";
    let (idx, b) = (format!("{path}.sbora_idx"), format!("{path}.sbora_b"));
    let config = json!({
        "peft_type": "SBORA", "r": 2, "lora_alpha": 3, "variant": "fa", "target_modules": ["q_proj"],
    });
    let with = |indices: Tensor| folder(&config, &[(&idx, indices), (&b, numbers(5, 2))]);
    let inspect = ["inspect", "adapter", "--json"];
    let largest = Tensor::new(&[3_u32, u32::MAX], &Device::Cpu).unwrap();
    with(largest).refuses(
        &inspect,
        1,
        &["sbora_idx` holds 4294967295, which no weight has"],
    );
    // They would wrap to 1 and 2.
    let wide = Tensor::new(&[(1_i64 << 32) + 1, (1 << 32) + 2], &Device::Cpu).unwrap();
    with(wide).refuses(&inspect, 1, &["sbora_idx` is i64, expected u32"]);
    // A column far out takes no memory where the weight is not known.
    let far = Tensor::new(&[3_u32, u32::MAX - 1], &Device::Cpu).unwrap();
    let report = with(far).run(&inspect).json();
    let norm = report["sites"][0]["delta_norm"].as_f64().unwrap();
    let b = numbers(5, 2)
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert!((norm - 1.5 * f64::from(b).sqrt()).abs() < 1e-5, "{norm}");
}

#[test]
fn factors_of_a_weight_that_no_memory_holds_are_answered_at_once() {
    let path = "model.layers.0.self_attn.q_proj";
    let config = json!({"peft_type": "LOKR", "r": 4, "alpha": 6, "target_modules": ["q_proj"]});
    let (w1, w2) = (format!("{path}.lokr_w1"), format!("{path}.lokr_w2"));
    let inspect = ["inspect", "adapter", "--json"];
    // A side that is a large prime, of a tensor without numbers.
    let prime = (1_usize << 59) - 55;
    let empty = Tensor::zeros((prime, 0), DType::F32, &Device::Cpu).unwrap();
    let place = folder(&config, &[(&w1, numbers(1, 1)), (&w2, empty)]);
    // It has no module, and what there is not is not said.
    assert_eq!(place.run(&inspect).json()["sites"], Value::Null);
    // A million by a million.
    let config = json!({
        "peft_type": "LOKR", "r": 1000, "alpha": 6, "target_modules": ["q_proj"], "decompose_factor": 1000,
    });
    let place = folder(
        &config,
        &[(&w1, numbers(1000, 1000)), (&w2, numbers(1000, 1000))],
    );
    // Its update has no plain form that could be measured.
    assert_eq!(place.run(&inspect).json()["sites"], json!([{"site": path}]));
}

#[test]
fn more_experts_than_outputs_are_refused() {
    let place = Place::with_model("plain");
    let run = "[model]\nsource = \"model\"\n[adapter]\nfamily = \"mor\"\nr = 3\ntarget_modules = \"all-linear\"\n\
               [data]\ntrain = [\"rows.jsonl\"]\nmax_length = 128\n[train]\nsteps = 1\nbatch_size = 2\n[output]\ndir = \"out\"\n";
    place.write("run.toml", run);
    for experts in ["1000000000", "9223372036854775807"] {
        let set = format!("adapter.num_experts={experts}");
        for verb in ["plan", "train"] {
            let what = format!("`num_experts = {experts}`, expected at most the ");
            place.refuses(&[verb, "run.toml", "--set", &set], 2, &[&what]);
        }
    }
}

/// A bias that was trained beside a module of rank 0 needs a module that carries it.
#[test]
fn biases_of_modules_without_ranks_are_exported() {
    for bias in ["all", "alora_only"] {
        let place = Place::with_model("biased");
        let run = format!(
            "[model]\nsource = \"model\"\n[adapter]\nfamily = \"alora\"\nr = 3\nbias = \"{bias}\"\nscore = \"sensitivity\"\n\
             target_modules = \"all-linear\"\nrank_pattern = {{ k_proj = 0 }}\n[data]\ntrain = [\"rows.jsonl\"]\nmax_length = 64\n\
             [train]\nsteps = 3\nbatch_size = 2\nlearning_rate = 0.01\n[output]\ndir = \"out\"\n"
        );
        place.write("run.toml", run);
        let _ended = place.run(&["train", "run.toml"]).ok();
        let export = [
            "export",
            "--model",
            "model",
            "--adapter",
            "out/adapter",
            "--to",
            "lora",
            "--out",
            "plain",
            "--json",
        ];
        let report = place.run(&export).json();
        assert_eq!(report["exact"], true);
        assert!(
            report["max_abs_logit_diff"].as_f64().unwrap() < 1e-5,
            "{report}"
        );
        let loss = |adapter: &str| {
            let eval = [
                "eval",
                "--model",
                "model",
                "--adapter",
                adapter,
                "--data",
                "rows.jsonl",
                "--json",
            ];
            place.run(&eval).json()["loss"].as_f64().unwrap()
        };
        assert!((loss("plain") - loss("out/adapter")).abs() < 1e-6);
    }
}
