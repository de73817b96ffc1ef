//! Resumed runs of every optimiser.

use crate::scene::{End, Scene};
use std::collections::BTreeMap;

const STEPS: u64 = 12;

fn trained(keys: &str) -> (Scene, End) {
    let scene = Scene::new(&format!("steps = {STEPS}\nsave_every = 5\n{keys}"));
    let end = scene.finish(&scene.folder("whole"), &[]);
    (scene, end)
}

#[test]
fn a_resumed_run_of_any_optimiser_gives_the_same_bytes() {
    let mut losses = BTreeMap::new();
    for keys in [
        "",
        "lora_plus_ratio = 8",
        "optimizer = \"lora_fa\"",
        "optimizer = \"sgd\"\nmomentum = 0.9\nnesterov = true",
    ] {
        let (scene, end) = trained(keys);
        scene.check_killed(&end, 11, STEPS);
        let last = end.metrics.iter().rev().find_map(|line| line.get("loss"));
        losses.insert(last.unwrap().to_string(), keys);
    }
    // Each was what trained.
    assert_eq!(losses.len(), 4, "{losses:?}");
}

/// The ratio and the optimiser decide what the numbers are: neither may change on the way.
#[test]
fn another_optimiser_is_no_continuation() {
    let (scene, _) = trained("");
    let whole = scene.folder("whole");
    for (set, what) in [
        (
            "train.optimizer=\"sgd\"",
            "`train.optimizer` was \"adamw\", now it is \"sgd\"",
        ),
        (
            "train.lora_plus_ratio=8",
            "`train.lora_plus_ratio` was absent, now it is 8.0",
        ),
    ] {
        let command = scene.train(&whole, &["--resume", "--set", set]).output();
        let output = command.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(what), "{said}");
    }
}
