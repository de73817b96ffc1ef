//! Runs that are asked to stop.

use crate::folders::checkpoints;
use crate::kill::Moment;
use crate::scene::{End, KEEP, Scene, metrics};
use lowrank::ops::rng::{Key, Purpose};
use lowrank_tests::binary;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Instant;

/// How many runs must have ended after their step, saved.
const STOPS: usize = 8;

/// 12 epochs of 50 rows, 6 a step.
const STEPS: u64 = 100;

/// Everything that depends on where a run stands.
const KEYS: &str = "epochs = 12\nsave_every = 8\nschedule = \"cosine\"\nmin_learning_rate = 1e-3\nlabel_smoothing = 0.1\n\
                    neftune_noise_alpha = 5\nload_best = true\nearly_stopping_patience = 50";

/// Beside random moments: start-up, the first evaluation, steps, saving, the first lines, the result.
const EVENTS: [Moment; 7] = [
    Moment::Staged("", ".run.toml."),
    Moment::Written("metrics.jsonl"),
    Moment::Staged("checkpoints", ".step-"),
    Moment::Checkpoints(KEEP + 1),
    Moment::Written("checkpoints/step-000100"),
    Moment::Staged("", ".adapter."),
    Moment::Written("adapter"),
];

/// A run that was stopped has a checkpoint more than others, so that another may be missing: those of both are the same.
fn check_end(found: &End, expected: &End, what: &str) {
    assert!(found.adapter == expected.adapter, "{what}: adapter/");
    assert_eq!(found.run, expected.run, "{what}");
    assert_eq!(found.metrics, expected.metrics, "{what}");
    let last = format!("step-{STEPS:06}/");
    let mut both = 0;
    for (name, bytes) in &found.checkpoints {
        if let Some(same) = expected.checkpoints.get(name) {
            assert!(bytes == same, "{what}: {name}");
            both += usize::from(name.starts_with(&last));
        }
    }
    let files = expected.checkpoints.keys();
    assert_eq!(both, files.filter(|name| name.starts_with(&last)).count());
}

fn check_lines(folder: &Path, expected: &End) {
    let lines = metrics(folder);
    assert_eq!(lines, expected.metrics[..lines.len()]);
}

#[test]
fn runs_that_are_terminated_at_any_moment_go_on_to_the_same_bytes() {
    let scene = Scene::new(KEYS);
    binary::path().unwrap();
    let start = Instant::now();
    let expected = scene.finish(&scene.folder("whole"), &[]);
    let mut whole = start.elapsed();
    assert_eq!(
        expected
            .metrics
            .iter()
            .filter(|line| line.get("loss").is_some())
            .count() as u64,
        STEPS
    );

    let mut random = Key::new(43, Purpose::Test).stream();
    let (mut stops, mut attempts, mut events) = (0, 0, EVENTS.iter());
    // How runs ended, and how often.
    let mut ends: BTreeMap<Option<i32>, usize> = BTreeMap::new();
    while stops < STOPS || events.len() > 0 {
        attempts += 1;
        assert!(
            attempts < 10 * STOPS,
            "the runs end before they are stopped: {ends:?}"
        );
        let event = if attempts % 2 == 0 {
            events.next()
        } else {
            None
        };
        let moment = event
            .copied()
            .unwrap_or_else(|| Moment::After(whole.mul_f64(random.uniform())));
        let folder = scene.folder(&attempts.to_string());
        let start = Instant::now();
        let flags: &[&str] = if attempts % 3 == 0 {
            &["--resume"]
        } else {
            &[]
        };
        // Every fifth time a second signal follows at once, and nothing need be saved.
        let signals = if attempts % 5 == 0 {
            &["TERM", "TERM"][..]
        } else {
            &["TERM"]
        };
        let (status, said) = moment.signal(scene.train(&folder, flags), &folder, signals);
        let what = format!("attempt {attempts}, {moment:?}: {status}: {said}");
        *ends.entry(status.code()).or_default() += 1;
        match (status.code(), status.signal()) {
            (Some(0), None) => whole = whole.min(start.elapsed()),
            (Some(143), None) => {
                stops += 1;
                let step = said.split("stopped after step ").nth(1).unwrap();
                let step: u64 = step.split(' ').next().unwrap().parse().unwrap();
                assert!(
                    said.contains(&format!(
                        " of {STEPS}, as asked; go on with `--resume`, and what"
                    )),
                    "{what}"
                );
                let newest = checkpoints(&folder).pop();
                let saved = (step > 0).then(|| format!("step-{step:06}"));
                assert_eq!(newest, saved, "{what}");
                assert!(!folder.join("adapter").exists(), "{what}");
                let last = metrics(&folder)
                    .pop()
                    .map_or(0, |line| line["step"].as_u64().unwrap());
                assert_eq!(last, step, "{what}");
            }
            // Before the first step, or by the second signal.
            (None, Some(15)) => assert!(said.is_empty() || signals.len() == 2, "{what}"),
            _ => panic!("{what}"),
        }
        check_lines(&folder, &expected);
        check_end(&scene.finish(&folder, &["--resume"]), &expected, &what);
    }
}

#[test]
fn the_status_tells_the_signal() {
    let scene = Scene::new("steps = 1000000\nsave_every = 1000");
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let folder = scene.folder(signal);
        let moment = Moment::Written("checkpoints/step-001000");
        let (status, said) = moment.signal(scene.train(&folder, &[]), &folder, &[signal]);
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(
            said.starts_with(&format!("SIG{signal}: stopped after step ")),
            "{said}"
        );
    }
}
