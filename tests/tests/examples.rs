//! The run files of docs/examples that train the embedded model, as they stand there but for a few steps on a few rows
//! and the output folder.

use lowrank_tests::place::Place;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Run files that train `tiny`: their names without the ending.
fn examples() -> Vec<String> {
    let files = fs::read_dir(root().join("docs/examples")).expect("a folder of the repository");
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let names = names.filter_map(|name| name.strip_suffix(".toml").map(str::to_owned));
    let tiny = |name: &String| {
        let path = root().join(format!("docs/examples/{name}.toml"));
        let text = fs::read_to_string(path).expect("a file of the repository");
        text.contains("source = \"tiny\"")
    };
    let mut names: Vec<String> = names.filter(tiny).collect();
    names.sort();
    names
}

/// Four steps, with a checkpoint in their middle, into a folder of the place; `more` ends the command.
fn train(place: &Place, name: &str, folder: &str, more: &[&str]) {
    let held_out = root().join("docs/examples/letters-held-out.jsonl");
    let held_out = fs::read_to_string(held_out).expect("a file of the repository");
    let few: Vec<&str> = held_out.lines().take(8).collect();
    fs::write(place.path("few.jsonl"), few.join("\n")).expect("a folder of this test");
    let run = format!("docs/examples/{name}.toml");
    let set = [
        format!("data.eval=[{:?}]", place.path("few.jsonl")),
        format!("output.dir={}", place.path(folder).display()),
        "train.steps=4".to_owned(),
        "train.batch_size=2".to_owned(),
        "train.save_every=2".to_owned(),
    ];
    let set = set.iter().flat_map(|key| ["--set", key]);
    let arguments = ["train", &run].into_iter().chain(set);
    let arguments: Vec<&str> = arguments.chain(more.iter().copied()).collect();
    drop(lowrank_tests::binary::run(&root(), &arguments).ok());
}

#[test]
fn every_example_trains_is_evaluated_and_resumes_to_the_same_bytes() {
    let place = Place::new();
    let names = examples();
    assert!(names.len() > 1, "{names:?}");
    for name in names {
        train(&place, &name, &name, &[]);
        let lines = place.json_lines(&format!("{name}/metrics.jsonl"));
        let losses = lines.iter().filter_map(|line| line["loss"].as_f64());
        assert_eq!(losses.filter(|loss| loss.is_finite()).count(), 4, "{name}");
        let evaluations = lines.iter().filter_map(|line| line["eval_loss"].as_f64());
        assert_eq!(evaluations.count(), 2, "{name}");
        let found = place
            .run(&["inspect", &format!("{name}/adapter"), "--json"])
            .json();
        let sites = found["sites"].as_array().map_or(0, Vec::len);
        assert!(sites > 0, "{name}: {found}");

        // As if it had been killed after two steps.
        let again = format!("{name}-again");
        place.duplicate(&name, &again);
        for gone in ["adapter", "checkpoints/step-000004"] {
            let gone = place.path(&format!("{again}/{gone}"));
            fs::remove_dir_all(&gone).unwrap_or_else(|error| panic!("{}: {error}", gone.display()));
        }
        train(&place, &name, &again, &["--resume"]);
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let bytes = |folder: &str| {
                fs::read(place.path(&format!("{folder}/adapter/{file}"))).expect("a saved adapter")
            };
            assert!(bytes(&name) == bytes(&again), "{name}: {file} differs");
        }
    }
}

/// Sixteen indices a module are in the file, and are not trained.
#[test]
fn indices_are_no_trained_parameters() {
    let place = Place::new();
    train(&place, "sbora", "run", &[]);
    let found = place.run(&["inspect", "run/adapter", "--json"]).json();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let sites = found["sites"].as_array().map_or(0, Vec::len) as u64;
    let indices = number(&found["file_parameters"]) - number(&found["trainable_parameters"]);
    assert_eq!((sites, indices), (28, 16 * 28));
    let plan = ["plan", "docs/examples/sbora.toml", "--json"];
    let plan = lowrank_tests::binary::run(&root(), &plan).json();
    assert_eq!(plan["trainable_parameters"], found["trainable_parameters"]);
}
