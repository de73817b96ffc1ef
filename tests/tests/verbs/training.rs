//! `train`: metrics, run file, checkpoints, result.

use crate::{RUN, close, keys, number, token_rows};
use lowrank_tests::place::Place;
use serde_json::Value;

pub const TENSORS: &str = "adapter/adapter_model.safetensors";

pub fn place() -> Place {
    let place = Place::with_model("plain");
    place.write("run.toml", RUN);
    place
}

/// Trains and returns the report.
pub fn train(place: &Place, sets: &[&str]) -> Value {
    let mut arguments = vec!["train", "run.toml", "--json"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    place.run(&arguments).json()
}

#[test]
fn metrics_and_report() {
    let place = place();
    let sets = [
        "train.steps=5",
        "train.eval_every=2",
        "train.accumulate=2",
        "data.shuffle=false",
    ];
    let sets = [
        &sets[..],
        &["train.schedule=linear", "train.warmup_steps=2"],
    ]
    .concat();
    let report = train(&place, &sets);
    let lines = place.json_lines("run/metrics.jsonl");
    let kind = |line: &Value| {
        if line.get("loss").is_some() {
            "step"
        } else {
            "evaluation"
        }
    };
    let order: Vec<(&str, u64)> = lines
        .iter()
        .map(|line| (kind(line), line["step"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        order,
        [
            ("evaluation", 0),
            ("step", 1),
            ("step", 2),
            ("evaluation", 2),
            ("step", 3),
            ("step", 4),
            ("evaluation", 4),
            ("step", 5),
            ("evaluation", 5)
        ]
    );
    let rows = token_rows(&place, "rows.jsonl");
    let all: usize = rows.iter().map(|(ids, _)| ids.len()).sum();
    let rates = [0.0, 0.005, 0.01, 0.01 * 2.0 / 3.0, 0.01 / 3.0];
    for line in &lines {
        let step = line["step"].as_u64().unwrap() as usize;
        if kind(line) == "evaluation" {
            assert_eq!(keys(line), ["step", "eval_loss", "eval_tokens"]);
            assert_eq!(line["eval_tokens"], all);
            continue;
        }
        assert_eq!(
            keys(line),
            [
                "step",
                "loss",
                "lr",
                "grad_norm",
                "tokens",
                "tokens_per_second",
                "peak_rss_mb"
            ]
        );
        close(number(&line["lr"]), rates[step - 1], 1e-12);
        // Rows are taken in the order of the file, and begin anew after the last.
        let taken = (8 * (step - 1)..8 * step).map(|row| rows[row % rows.len()].0.len());
        assert_eq!(line["tokens"], taken.sum::<usize>());
        assert!(number(&line["grad_norm"]) > 0.0 && number(&line["tokens_per_second"]) > 0.0);
        assert!((2.0..2000.0).contains(&number(&line["peak_rss_mb"])));
    }
    // The first rate is 0, so the second step starts from the base as well; then the loss falls.
    let base = place
        .run(&["eval", "--model", "model", "--data", "rows.jsonl", "--json"])
        .json();
    close(number(&lines[0]["eval_loss"]), number(&base["loss"]), 1e-6);
    assert!(number(&lines[8]["eval_loss"]) < number(&lines[0]["eval_loss"]) - 0.01);

    assert_eq!(
        keys(&report),
        [
            "folder",
            "result",
            "steps",
            "trainable_parameters",
            "result_of",
            "best",
            "last_step",
            "last_evaluation"
        ]
    );
    assert_eq!(report["last_step"], lines[7]);
    assert_eq!(report["last_evaluation"], lines[8]);
    assert_eq!(report["steps"], 5);
    assert_eq!(report["folder"], place.path("run").to_str().unwrap());
    assert_eq!(
        report["result"],
        place.path("run/adapter").to_str().unwrap()
    );
    // Three layers of q, k, v, o, gate, up, down, each with 3 * (n_in + n_out).
    let sizes = [
        (48, 48),
        (48, 16),
        (48, 16),
        (48, 48),
        (48, 80),
        (48, 80),
        (80, 48),
    ];
    let expected: usize = sizes
        .iter()
        .map(|(n_in, n_out)| 3 * 3 * (n_in + n_out))
        .sum();
    assert_eq!(report["trainable_parameters"], expected);
}

#[test]
fn the_result_is_an_adapter_that_evaluates_as_the_run_said() {
    let place = place();
    let report = train(&place, &["train.steps=6"]);
    let adapted = [
        "eval",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--adapter",
        "run/adapter",
        "--json",
    ];
    let loss = place.run(&adapted).json()["loss"].clone();
    close(
        number(&loss),
        number(&report["last_evaluation"]["eval_loss"]),
        1e-6,
    );
    let files = place.entries();
    let expected = [
        "run/.lock",
        "run/adapter",
        "run/adapter/README.md",
        "run/adapter/adapter_config.json",
        "run/adapter/adapter_model.safetensors",
        "run/adapter/lowrank.json",
        "run/checkpoints",
        "run/checkpoints/step-000006",
        "run/metrics.csv",
        "run/metrics.jsonl",
        "run/report.html",
        "run/run.toml",
        "run/tb",
    ];
    for file in expected {
        assert!(files.contains(file), "{file} in {files:?}");
    }
    let card = place.text("run/adapter/README.md");
    let rows = place.text("rows.jsonl").lines().count();
    for part in [
        "library_name: peft\npipeline_tag: text-generation\ntags:\n- lowrank\n",
        &format!("6 steps on:\n\n- `rows.jsonl`: {rows} rows\n"),
        "| `loss` | ",
        "| `adapter.lora_alpha` | `5",
    ] {
        assert!(card.contains(part), "{part} in {card}");
    }
    // The base is a folder of this machine, of which a card names nothing but the last part.
    assert!(!card.contains(place.path("").to_str().unwrap()));
    let found = place.run(&["inspect", "run/adapter", "--json"]).json();
    assert_eq!(
        found["trainable_parameters"],
        report["trainable_parameters"]
    );
    assert_eq!(found["base"], place.path("model").to_str().unwrap());
    assert_eq!(
        (
            &found["config"]["r"],
            number(&found["config"]["lora_alpha"])
        ),
        (&3.into(), 5.0)
    );
    assert_eq!(found["config"]["peft_type"], "LORA");
}

#[test]
fn the_resolved_run_file_gives_the_same_bytes() {
    let place = place();
    train(
        &place,
        &["train.steps=4", "train.seed=9", "adapter.lora_dropout=0.25"],
    );
    drop(
        place
            .run(&["train", "run/run.toml", "--set", "output.dir=again"])
            .ok(),
    );
    assert_eq!(
        place.read("run/adapter/adapter_model.safetensors"),
        place.read("again/adapter/adapter_model.safetensors")
    );
    assert_eq!(
        place.read("run/adapter/adapter_config.json"),
        place.read("again/adapter/adapter_config.json")
    );
    let (first, second) = (place.text("run/run.toml"), place.text("again/run.toml"));
    assert_eq!(first.replace("/run\"", "/again\""), second);
    for line in [
        "seed = 9",
        "steps = 4",
        "lora_dropout = 0.25",
        "family = \"lora\"",
        "optimizer = \"adamw\"",
        "shuffle = true",
        "dtype = \"as-stored\"",
    ] {
        assert!(
            first.lines().any(|found| found == line),
            "{line} in {first}"
        );
    }
    let source = format!("source = \"{}\"", place.path("model").display());
    assert!(first.contains(&source), "{first}");

    drop(
        place
            .run(&[
                "train",
                "run/run.toml",
                "--set",
                "output.dir=other",
                "--set",
                "train.seed=10",
            ])
            .ok(),
    );
    assert_ne!(
        place.read("run/adapter/adapter_model.safetensors"),
        place.read("other/adapter/adapter_model.safetensors")
    );
}

#[test]
fn micro_batches_of_one_step_count_by_tokens() {
    let place = place();
    let losses = |dir: &str, batch: &str, accumulate: &str| -> Vec<f64> {
        let sets = [
            format!("output.dir={dir}"),
            format!("train.batch_size={batch}"),
            format!("train.accumulate={accumulate}"),
        ];
        let sets: Vec<&str> = sets
            .iter()
            .map(String::as_str)
            .chain(["train.steps=4"])
            .collect();
        train(&place, &sets);
        let lines = place.json_lines(&format!("{dir}/metrics.jsonl"));
        lines
            .iter()
            .filter_map(|line| line.get("loss"))
            .map(number)
            .collect()
    };
    let whole = losses("whole", "12", "1");
    assert_eq!(whole.len(), 4);
    for (dir, batch, accumulate) in [("six", "6", "2"), ("one", "1", "12")] {
        for (ours, whole) in losses(dir, batch, accumulate).iter().zip(&whole) {
            close(*ours, *whole, 1e-5);
        }
    }
}

#[test]
fn epochs_end_with_a_short_step() {
    let place = place();
    // Twice 24 rows, five at a time: nine whole steps, and one of three rows.
    let report = train(
        &place,
        &["train.epochs=2", "train.batch_size=5", "data.shuffle=false"],
    );
    assert_eq!(report["steps"], 10);
    let rows = token_rows(&place, "rows.jsonl");
    let last: usize = rows[21..].iter().map(|(ids, _)| ids.len()).sum();
    assert_eq!(report["last_step"]["tokens"], last);
    // Neither steps nor epochs is one epoch.
    let report = train(&place, &["output.dir=one", "train.batch_size=5"]);
    assert_eq!(report["steps"], 5);
}

#[test]
fn recomputation_gives_the_same_bytes() {
    let place = place();
    train(&place, &["train.steps=3", "adapter.lora_dropout=0.25"]);
    train(
        &place,
        &[
            "train.steps=3",
            "adapter.lora_dropout=0.25",
            "train.recompute=true",
            "output.dir=again",
        ],
    );
    assert_eq!(
        place.read(&format!("run/{TENSORS}")),
        place.read(&format!("again/{TENSORS}"))
    );
}

#[test]
fn what_is_no_number_is_a_dash() {
    let place = place();
    let sets = [
        "train.steps=2",
        "train.optimizer=sgd",
        "train.learning_rate=1e30",
        "train.on_non_finite=skip",
    ];
    let mut arguments = vec!["train", "run.toml"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    let ended = place.run(&arguments).ok();
    let line = ended
        .stdout
        .lines()
        .find(|line| line.starts_with("held-out loss"));
    let line = line.unwrap();
    assert!(line.ends_with(" before training, - after"), "{line}");
    assert!(!ended.stderr.contains("NaN"), "{}", ended.stderr);
}
