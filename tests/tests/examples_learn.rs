//! What is learned by example run files, as they stand but for the number of steps and the output folder: held-out loss falls, and
//! the folder evaluates to the loss that the run ended with.

use lowrank_tests::place::Place;
use serde_json::Value;
use std::path::Path;

/// Runs `docs/examples/<name>.toml` with settings of its own, and returns the lines of its log.
fn trained(place: &Place, name: &str, settings: &[&str]) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = format!("output.dir={}", place.path(name).display());
    let run = format!("docs/examples/{name}.toml");
    let mut arguments = vec!["train", &run, "--set", &output];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let _ended = lowrank_tests::binary::run(&root, &arguments).ok();
    place.json_lines(&format!("{name}/metrics.jsonl"))
}

fn losses(lines: &[Value]) -> Vec<f64> {
    let losses = lines.iter().filter_map(|line| line["eval_loss"].as_f64());
    losses.collect()
}

/// Held-out loss falls, and the adapter's folder has the loss of the end.
fn check(name: &str, settings: &[&str]) -> Vec<Value> {
    let place = Place::new();
    let lines = trained(&place, name, settings);
    let [before, after] = losses(&lines)[..] else {
        panic!("{lines:?}");
    };
    assert!(
        after < before - 0.05,
        "{name}: {before} before, {after} after"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let adapter = place.path(name).join("adapter");
    let adapter = adapter.to_string_lossy();
    let data = "docs/examples/letters-held-out.jsonl";
    let arguments = [
        "eval",
        "--model",
        "tiny",
        "--adapter",
        &adapter,
        "--data",
        data,
        "--json",
        "--task",
        "loss",
    ];
    let found = lowrank_tests::binary::run(&root, &arguments).json();
    let loss = found["loss"].as_f64().expect("a loss");
    assert!((loss - after).abs() < 1e-5 * after, "{loss} and {after}");
    lines
}

#[test]
fn loha() {
    check("loha", &["train.steps=40"]);
}

#[test]
fn lokr() {
    check("lokr", &["train.steps=40"]);
}

#[test]
fn adalora() {
    let settings = ["train.steps=60", "adapter.tinit=5", "adapter.tfinal=15"];
    let lines = check("adalora", &settings);
    let allocations: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "allocate")
        .collect();
    let steps: Vec<u64> = allocations
        .iter()
        .filter_map(|line| line["step"].as_u64())
        .collect();
    assert!(steps.len() > 2 && steps.is_sorted(), "{allocations:?}");
    let last = allocations.last().expect("an allocation");
    let ranks = last["ranks"].as_object().expect("ranks");
    let sum: u64 = ranks.values().filter_map(Value::as_u64).sum();
    // Four a module on average, and equals at the threshold fall together.
    assert_eq!(last["budget"], 4 * ranks.len());
    assert!(
        sum <= 4 * ranks.len() as u64 && sum > 3 * ranks.len() as u64,
        "{sum}"
    );
    assert!(ranks.values().any(|rank| *rank != 4), "{ranks:?}");
}
