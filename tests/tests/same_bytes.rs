//! Training runs in processes of their own leave the same bytes, with one thread and with two.

use lowrank_tests::place::Place;
use serde_json::{Value, json};

/// Odd sizes everywhere: five rows of different lengths a batch, the last one alone, and a rank that fills no vector.
const RUN: &str = r#"[model]
source = "model"
[adapter]
r = 5
lora_alpha = 7
lora_dropout = 0.2
target_modules = "all-linear"
[data]
train = ["rows.jsonl"]
eval = ["rows.jsonl"]
[train]
steps = 5
batch_size = 5
accumulate = 2
learning_rate = 0.01
eval_every = 2
[output]
dir = "set by the command"
"#;

/// What a run leaves: its tensors, and its metrics without what the clock and the system say.
fn train(place: &Place, folder: &str, threads: &str, sets: &[&str]) -> (Vec<u8>, Vec<Value>) {
    let output = format!("output.dir={folder}");
    let mut arguments = vec!["train", "run.toml", "--set", &output];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    let variables = [("HF_HUB_OFFLINE", "1"), ("RAYON_NUM_THREADS", threads)];
    drop(place.run_with(&arguments, &variables).ok());
    let mut lines = place.json_lines(&format!("{folder}/metrics.jsonl"));
    for line in &mut lines {
        let fields = line.as_object_mut().expect("an object");
        if fields.contains_key("loss") {
            assert!(fields.remove("tokens_per_second").is_some());
            assert!(fields.remove("peak_rss_mb").is_some());
        }
    }
    let steps = lines.iter().filter(|line| line["loss"].is_f64()).count();
    let evaluations = lines.iter().filter(|line| line["eval_loss"].is_f64());
    assert_eq!((steps, evaluations.count()), (5, 4));
    let tensors = format!("{folder}/adapter/adapter_model.safetensors");
    (place.read(&tensors), lines)
}

fn check(model: &str, name: &str, sets: &[&str]) {
    let place = Place::with_model(model);
    place.write("run.toml", RUN);
    let expected = train(&place, &format!("{name}-0"), "1", sets);
    for (at, threads) in ["1", "2", "2"].into_iter().enumerate() {
        let found = train(&place, &format!("{name}-{}", at + 1), threads, sets);
        assert_eq!(found.1, expected.1, "{model}, {name}, {threads} threads");
        assert!(
            found.0 == expected.0,
            "{model}, {name}, {threads} threads: other tensors"
        );
    }
    // Not by chance: another seed gives other bytes.
    let other = train(&place, "other", "2", &[sets, &["train.seed=7"]].concat());
    assert!(other.0 != expected.0 && other.1 != expected.1);
}

#[test]
fn in_f32() {
    check("plain", "f32", &[]);
    check("biased", "f32", &["adapter.use_dora=true"]);
}

#[test]
fn in_bf16() {
    check("plain", "bf16", &["train.compute=\"bf16\""]);
}

#[test]
fn on_nf4_with_recomputation() {
    check(
        "plain",
        "nf4",
        &["model.dtype=\"nf4\"", "train.recompute=true"],
    );
}

/// A model whose products are large enough to be split over threads.
#[test]
fn of_a_larger_model() {
    let place = Place::new();
    let row = |i: usize| {
        let ids: Vec<usize> = (0..40 + i % 7)
            .map(|at| 3 + (at * 31 + i * 17) % 500)
            .collect();
        json!({"input_ids": ids, "labels": ids}).to_string() + "\n"
    };
    place.write("rows.jsonl", (0..20).map(row).collect::<String>());
    place.write("run.toml", RUN);
    for compute in ["f32", "bf16"] {
        let sets = [
            "model.source=\"tiny\"",
            &format!("train.compute=\"{compute}\""),
        ];
        let expected = train(&place, &format!("{compute}-1"), "1", &sets);
        for again in ["a", "b"] {
            let found = train(&place, &format!("{compute}-2{again}"), "2", &sets);
            assert_eq!(found.1, expected.1, "{compute}");
            assert!(found.0 == expected.0, "{compute}: other tensors");
        }
    }
}
