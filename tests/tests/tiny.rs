//! The embedded model behaves as any other: trained, resumed, measured, merged and inspected by its name.
#![expect(
    clippy::unwrap_used,
    reason = "a file that the binary should have written fails the test"
)]

use lowrank_tests::place::Place;
use serde_json::Value;

const RUN: &str = r#"[model]
source = "tiny"
[adapter]
r = 3
lora_alpha = 5
target_modules = ["q_proj", "down_proj"]
[data]
train = ["rows.jsonl"]
[train]
steps = 4
batch_size = 3
learning_rate = 0.01
save_every = 2
[output]
dir = "run"
"#;

const ROWS: &str = r#"{"text": "A cow moos. Cows eat grass."}
{"text": "The opposite of hot is cold."}
{"text": "Monday comes before Tuesday."}
{"text": "Anna went to Cindel and bought cheese."}
"#;

fn place() -> Place {
    let place = Place::new();
    place.write("run.toml", RUN);
    place.write("rows.jsonl", ROWS);
    place
}

fn loss(place: &Place, model: &str, more: &[&str]) -> f64 {
    let arguments = ["eval", "--model", model, "--data", "rows.jsonl", "--json"];
    let report = place.run(&[&arguments, more].concat()).json();
    report["loss"].as_f64().unwrap()
}

#[test]
fn it_knows_its_world() {
    let place = place();
    // Wrong in one word each, and nothing else.
    let wrong = ROWS
        .replace("moos", "clucks")
        .replace("cold", "late")
        .replace("Tuesday", "Friday")
        .replace("cheese", "boats");
    let right = loss(&place, "tiny", &[]);
    place.write("rows.jsonl", wrong);
    let wrong = loss(&place, "tiny", &[]);
    assert!(right + 0.5 < wrong, "{right} {wrong}");
}

#[test]
fn adapters_know_it_by_name_and_fingerprint() {
    let place = place();
    drop(place.run(&["train", "run.toml"]).ok());
    let adapter = "run/adapter";
    let config = place.json(&format!("{adapter}/adapter_config.json"));
    assert_eq!(config["base_model_name_or_path"], "tiny");
    assert!(place.text("run/run.toml").contains("source = \"tiny\"\n"));

    let inspected = place.run(&["inspect", adapter, "--json"]).json();
    assert_eq!(inspected["base"], "tiny");
    let model = place.run(&["inspect", "tiny", "--json"]).json();
    assert_eq!(model["kind"], "model");
    assert_eq!(model["file_parameters"], 1_049_728);

    // The merged model is a folder like any other, and the adapter fits the model's own folder.
    let merge = ["merge", "--model", "tiny", "--adapter", adapter];
    let merged = place.run(
        &[
            &merge[..],
            &["--out", "tiny/merged", "--dtype", "f32", "--verify"],
        ]
        .concat(),
    );
    assert!(merged.ok().stdout.contains("max_abs_logit_diff"));
    let adapted = loss(&place, "tiny", &["--adapter", adapter, "--strict-base"]);
    let merged = loss(&place, "tiny/merged", &[]);
    assert!((adapted - merged).abs() < 1e-4, "{adapted} {merged}");
    assert!(
        (adapted - loss(&place, "tiny", &[])).abs() > 1e-2,
        "{adapted}"
    );
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(place.path("tiny/merged").join(name).is_file(), "{name}");
    }

    // Without an adapter's change it is written as it is stored, and is the same base.
    let none = format!("{adapter}@0");
    let arguments = [
        "merge",
        "--model",
        "tiny",
        "--adapter",
        &none,
        "--out",
        "copy",
    ];
    drop(place.run(&arguments).ok());
    let strict = ["--adapter", adapter, "--strict-base"];
    assert_eq!(loss(&place, "copy", &strict), adapted);
}

#[test]
fn a_folder_of_its_name_is_another_model() {
    let place = place();
    place.copy("models/plain", "tiny");
    let kind = |path: &str| -> Value {
        let report = place.run(&["inspect", path, "--json"]).json();
        report["file_parameters"].clone()
    };
    assert_eq!(kind("tiny"), 1_049_728);
    assert_ne!(kind("./tiny"), 1_049_728);
    // Neither the run's folder nor the resolved run file takes the name for a path.
    let arguments = ["train", "run.toml", "--set", "output.dir=tiny/run"];
    drop(place.run(&arguments).ok());
    assert!(
        place
            .text("tiny/run/run.toml")
            .contains("source = \"tiny\"\n")
    );
    let scores = ["--predictions", "tiny/scores.jsonl"];
    let refused = place.run(
        &[
            &["eval", "--model", "tiny", "--data", "rows.jsonl"],
            &scores[..],
        ]
        .concat(),
    );
    assert_eq!(refused.code, 2);
    assert!(
        refused
            .stderr
            .contains("--predictions needs a --task that predicts"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let place = place();
    drop(place.run(&["train", "run.toml"]).ok());
    let half = ["train", "run.toml", "--set", "output.dir=again"];
    drop(
        place
            .run(&[&half[..], &["--set", "train.steps=2"]].concat())
            .ok(),
    );
    drop(place.run(&[&half[..], &["--resume"]].concat()).ok());
    let tensors = "adapter/adapter_model.safetensors";
    assert_eq!(
        place.read(&format!("run/{tensors}")),
        place.read(&format!("again/{tensors}"))
    );
}

#[test]
fn all_of_it_can_be_trained() {
    let place = place();
    let text = RUN.split("r = 3").next().unwrap().to_owned() + "family = \"full\"\n[data]";
    let rest = RUN.split("[data]").nth(1).unwrap();
    place.write("run.toml", text + rest);
    let before = loss(&place, "tiny", &[]);
    drop(
        place
            .run(&["train", "run.toml", "--set", "train.learning_rate=0.002"])
            .ok(),
    );
    let after = loss(&place, "run/model", &[]);
    assert!(after < before - 0.1, "{before} {after}");
}

#[test]
fn its_perplexity_on_texts_it_has_not_seen() {
    let place = place();
    let texts = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/examples/tiny-held-out.jsonl"
    );
    let arguments = ["eval", "--model", "tiny", "--data", texts, "--json"];
    let report = place.run(&arguments).json();
    assert_eq!(report["examples"], 200);
    let perplexity = report["perplexity"].as_f64().unwrap();
    assert!(perplexity < 3.0, "{perplexity}");
}
