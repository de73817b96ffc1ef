//! The run files of docs/examples that train the embedded model, as they stand there but for a few steps on a few rows
//! and the output folder.

use lowrank_tests::place::Place;
use std::path::Path;

#[test]
fn every_example_on_tiny_trains_and_is_evaluated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = std::fs::read_dir(root.join("docs/examples")).expect("a folder of the repository");
    let mut names: Vec<String> = files
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    let place = Place::new();
    let held_out = root.join("docs/examples/letters-held-out.jsonl");
    let held_out = std::fs::read_to_string(held_out).expect("a file of the repository");
    let few: Vec<&str> = held_out.lines().take(8).collect();
    std::fs::write(place.path("few.jsonl"), few.join("\n")).expect("a folder of this test");
    let few = format!("data.eval=[{:?}]", place.path("few.jsonl"));
    let mut ran = 0;
    for name in names {
        let run = format!("docs/examples/{name}.toml");
        let text = std::fs::read_to_string(root.join(&run)).expect("a file of the repository");
        if !text.contains("source = \"tiny\"") {
            continue;
        }
        let output = format!("output.dir={}", place.path(&name).display());
        let set = [&output, &few, "train.steps=3", "train.batch_size=2"];
        let set = set.into_iter().flat_map(|key| ["--set", key]);
        let arguments: Vec<&str> = ["train", &run].into_iter().chain(set).collect();
        drop(lowrank_tests::binary::run(&root, &arguments).ok());
        let lines = place.json_lines(&format!("{name}/metrics.jsonl"));
        let losses = lines.iter().filter_map(|line| line["loss"].as_f64());
        assert_eq!(losses.filter(|loss| loss.is_finite()).count(), 3, "{name}");
        let evaluations = lines.iter().filter_map(|line| line["eval_loss"].as_f64());
        assert_eq!(evaluations.count(), 2, "{name}");
        ran += 1;
    }
    assert!(ran > 0, "no example trains the embedded model");
}
