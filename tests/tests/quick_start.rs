//! The README's first command, as it stands there but for the seed and the output folder.

use lowrank_tests::place::Place;
use std::path::Path;

/// The least that the fine-tune must gain, as a share of the held-out rows.
const GAIN: f64 = 0.2;

#[test]
fn a_fine_tune_of_tiny_gains_accuracy_on_held_out_rows_for_every_seed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let place = Place::new();
    for seed in [1, 2, 3] {
        let (seed, dir) = (format!("train.seed={seed}"), format!("run-{seed}"));
        let output = format!("output.dir={}", place.path(&dir).display());
        let run = "docs/examples/letters.toml";
        let arguments = ["train", run, "--set", &seed, "--set", &output];
        let ended = lowrank_tests::binary::run(&root, &arguments).ok();
        let evaluations: Vec<_> = place
            .json_lines(&format!("{dir}/metrics.jsonl"))
            .into_iter()
            .filter_map(|line| line["eval_accuracy"].as_f64())
            .collect();
        let [before, after] = evaluations[..] else {
            panic!("{evaluations:?}");
        };
        eprintln!("{seed}: {before} before, {after} after");
        assert!(
            after - before >= GAIN,
            "{seed}: {before} before, {after} after"
        );
        // What a new user reads.
        let shown = |share: f64| format!("{:.1} %", 100.0 * share);
        let (before, after) = (shown(before), shown(after));
        let line = format!("held-out accuracy     {before} before training, {after} after");
        assert!(ended.stdout.contains(&line), "{}", ended.stdout);
        assert!(
            ended.stderr.contains(&format!("accuracy {before}")),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn the_held_out_rows_are_many_and_new() {
    let rows = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs/examples")
            .join(name);
        let text = std::fs::read_to_string(path).expect("a file of the repository");
        text.lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let (train, held_out) = (rows("letters-train.jsonl"), rows("letters-held-out.jsonl"));
    assert_eq!((train.len(), held_out.len()), (400, 240));
    assert!(train.is_disjoint(&held_out));
}
