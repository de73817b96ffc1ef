//! The memory that `plan` foretells is within a fifth of what `train` takes.

use crate::number;
use lowrank_tests::place::Place;
use serde_json::json;
use std::path::Path;

fn check(place: &Place, model: &Path, sets: &[&str]) {
    let model = format!("model.source={:?}", model.display().to_string());
    let sets = [&[model.as_str()], sets].concat();
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let plan = place.run(&[&["plan", "run.toml", "--json"], &sets[..]].concat());
    let memory = &plan.json()["memory_mb"];
    let train = place.run(&[&["train", "run.toml", "--overwrite"], &sets[..]].concat());
    drop(train.ok());
    let lines = place.json_lines("run/metrics.jsonl");
    let peak = lines.iter().map(|line| number(&line["peak_rss_mb"]));
    let peak = peak.fold(0.0, f64::max);
    let ratio = number(&memory["total"]) / peak;
    assert!(
        (0.8..=1.25).contains(&ratio),
        "{sets:?}: {memory}, and the peak was {peak}"
    );
}

/// Rows of text.
fn place() -> Place {
    let place = Place::new();
    let mut rows = String::new();
    for row in 0..24 {
        let text: Vec<&str> = (0..12 + row)
            .map(|i| ["the inn", "a letter", "of the road", "is sorted"][(i * 7 + row) % 4])
            .collect();
        rows += &format!("{}\n", json!({"text": text.join(" ")}));
    }
    place.write("rows.jsonl", rows);
    place.write(
        "run.toml",
        "model.source = \"given\"\n\
         data = { train = [\"rows.jsonl\"], max_length = 128 }\n\
         output.dir = \"run\"\n\
         adapter = { r = 8, target_modules = \"all-linear\" }\n\
         train = { steps = 2, batch_size = 8 }\n",
    );
    place
}

#[cfg(target_os = "linux")]
#[test]
fn of_the_embedded_model() {
    let place = place();
    let tiny = Path::new("tiny");
    check(&place, tiny, &[]);
    check(&place, tiny, &["train.batch_size=4", "data.packing=true"]);
    check(
        &place,
        tiny,
        &["train.recompute=true", "train.batch_size=24"],
    );
    check(
        &place,
        tiny,
        &["train.optimizer=sgd", "adapter={family=\"full\"}"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn of_a_real_model() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let place = place();
    for model in ["SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.gguf"] {
        let path = models.join(model);
        match path.canonicalize() {
            Ok(path) => check(&place, &path, &["train.batch_size=2"]),
            Err(_) => println!("not run: there is no {}", path.display()),
        }
    }
}
