//! Killed runs.

use crate::folders::{checkpoints, tree};
use crate::kill::Moment;
use crate::scene::{EVAL_EVERY, End, KEEP, Scene, metrics};
use lowrank::format::FolderLock;
use lowrank::ops::rng::{Key, Purpose};
use lowrank_tests::binary;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

/// Random kills that every test must come to.
const KILLS: usize = 10;

/// 20 epochs of 50 rows, 6 a step: the last step is short.
const STEPS: u64 = 167;

/// Beside random moments.
const EVENTS: [Moment; 7] = [
    Moment::Staged("", ".run.toml."),
    Moment::Staged("checkpoints", ".step-"),
    Moment::Staged("", ".metrics.jsonl."),
    Moment::Checkpoints(KEEP + 1),
    Moment::Written("checkpoints/step-000167"),
    Moment::Staged("", ".adapter."),
    Moment::Written("adapter"),
];

/// What happens after a kill.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// The run goes on to its end.
    Finish,
    /// It goes on until the next kill.
    KillAgain,
}

/// What is there under its final name is what the whole run writes there, and the lock is free.
fn check_remains(folder: &Path, expected: &End) {
    if folder.exists() {
        drop(FolderLock::acquire(folder).unwrap());
    }
    let adapter = tree(&folder.join("adapter"));
    assert!(adapter.is_empty() || adapter == expected.adapter);
    let lines = metrics(folder);
    assert_eq!(lines, expected.metrics[..lines.len()]);
}

fn check(keys: &str, seed: u64, then: Then) {
    let scene = Scene::new(keys);
    // Where cargo builds the binary first, this is not a part of the run.
    binary::path().unwrap();
    let start = Instant::now();
    let expected = scene.finish(&scene.folder("whole"), &[]);
    let mut whole = start.elapsed();
    let of = |field: &str| -> Vec<u64> {
        let lines = expected
            .metrics
            .iter()
            .filter(|line| line.get(field).is_some());
        lines.map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(of("loss"), (1..=STEPS).collect::<Vec<_>>());
    let mut evaluated: Vec<u64> = (0..STEPS).step_by(EVAL_EVERY as usize).collect();
    evaluated.push(STEPS);
    assert_eq!(of("eval_loss"), evaluated);
    assert_eq!(checkpoints(&scene.folder("whole")).len(), KEEP);

    let share = match then {
        Then::Finish => 1.0,
        Then::KillAgain => 0.3,
    };
    let mut random = Key::new(seed, Purpose::Test).stream();
    let events: &[Moment] = match then {
        Then::Finish => &[],
        Then::KillAgain => &EVENTS,
    };
    let (mut kills, mut attempts, mut events) = (0, 0, events.iter());
    let mut folder = scene.folder("0");
    while kills < KILLS || events.len() > 0 {
        attempts += 1;
        assert!(attempts < 10 * KILLS, "the runs end before they are killed");
        let event = if attempts % 2 == 0 {
            events.next()
        } else {
            None
        };
        let moment = event
            .copied()
            .unwrap_or_else(|| Moment::After(whole.mul_f64(share * random.uniform())));
        let (start, fresh) = (Instant::now(), !folder.exists());
        let killed = moment.kill(scene.train(&folder, &["--resume"]), &folder);
        if killed {
            kills += usize::from(event.is_none());
            check_remains(&folder, &expected);
        } else if fresh {
            // The machine may have become faster.
            whole = whole.min(start.elapsed());
        }
        if !killed || then == Then::Finish {
            let what = format!("attempt {attempts}, {moment:?}, killed: {killed}");
            scene
                .finish(&folder, &["--resume"])
                .check_against(&expected, &what);
            folder = scene.folder(&attempts.to_string());
        }
    }
    scene
        .finish(&folder, &["--resume"])
        .check_against(&expected, "the last");
}

#[test]
fn runs_killed_once_end_with_the_same_bytes() {
    let keys = "epochs = 20\nsave_every = 6\nschedule = \"cosine\"\nrecompute = true";
    check(keys, 31, Then::Finish);
}

#[test]
fn a_run_killed_again_and_again_ends_with_the_same_bytes() {
    let keys = "epochs = 20\nsave_every = 4\nschedule = \"linear\"";
    check(keys, 37, Then::KillAgain);
}

/// The binary refuses; its message.
fn refused(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(output.stdout, b"");
    said
}

#[test]
fn nothing_to_resume_means_step_one_and_other_settings_are_refused() {
    let scene = Scene::new("steps = 5\nsave_every = 2");
    let whole = scene.folder("whole");
    let expected = scene.finish(&whole, &[]);
    let empty = scene.folder("empty");
    fs::create_dir_all(&empty).unwrap();
    for folder in [empty, scene.folder("missing"), whole.clone()] {
        let what = folder.display().to_string();
        scene
            .finish(&folder, &["--resume"])
            .check_against(&expected, &what);
    }
    let before = tree(&whole);
    for (set, change) in [
        (
            "train.learning_rate=4e-3",
            "`train.learning_rate` was 0.005, now it is 0.004",
        ),
        ("adapter.r=5", "`adapter.r` was 4, now it is 5"),
        ("train.seed=7", "`train.seed` was 42, now it is 7"),
    ] {
        let said = refused(scene.train(&whole, &["--resume", "--set", set]), 2);
        assert!(said.contains(change), "{said}");
        assert!(tree(&whole) == before, "{set}");
    }
}

/// A process that does not outlive a test, even one that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_second_run_is_refused_and_the_first_goes_on() {
    let scene = Scene::new("save_every = 4");
    let expected = scene
        .finish(&scene.folder("whole"), &["--set", "train.steps=30"])
        .metrics;
    let folder = scene.folder("held");
    let mut command = scene.train(&folder, &["--set", "train.steps=1000000"]);
    let mut first = Killed(command.spawn().unwrap());
    let mut wait_for = |lines: usize| {
        while metrics(&folder).len() < lines {
            assert_eq!(first.0.try_wait().unwrap(), None);
        }
    };
    for flags in [&[][..], &["--resume"], &["--overwrite"]] {
        let lines = metrics(&folder).len();
        wait_for(lines + 3);
        let said = refused(scene.train(&folder, flags), 1);
        assert!(said.contains("is in use by another run"), "{said}");
        assert!(said.contains(&folder.display().to_string()), "{said}");
    }
    // The other run is not as long, so it has an evaluation more, after its last step.
    wait_for(expected.len());
    drop(first);
    let same = expected.len() - 1;
    assert_eq!(metrics(&folder)[..same], expected[..same]);
    // The kill has let go of the folder.
    drop(FolderLock::acquire(&folder).unwrap());
}
