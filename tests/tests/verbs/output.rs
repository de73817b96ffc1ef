//! Data on stdout, everything else on stderr.

use crate::RUN;
use lowrank_tests::{binary, place::Place};
use std::process::{Command, Stdio};

fn place() -> Place {
    let place = Place::with_model("plain");
    place.copy("cases/lora/adapter_final", "adapter");
    place.write("run.toml", RUN);
    place
}

/// Every verb, without `--json`.
const VERBS: [&[&str]; 4] = [
    &["train", "run.toml", "--set", "train.steps=3"],
    &[
        "eval",
        "--model",
        "model",
        "--adapter",
        "adapter",
        "--data",
        "rows.jsonl",
    ],
    &[
        "merge",
        "--model",
        "model",
        "--adapter",
        "adapter",
        "--out",
        "merged",
    ],
    &["inspect", "adapter"],
];

#[test]
fn lines_for_people_and_one_object_for_programs() {
    for verb in VERBS {
        let text = place().run(verb).ok();
        let object = place().run(&[verb, &["--json"]].concat());
        let stderr = (text.stderr.clone(), object.stderr.clone());
        let object = object.json();
        // Each number and word of the object that stands alone has its line.
        let plain = object
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| value.is_number() || value.is_string());
        for (key, _) in plain {
            assert!(
                text.stdout.lines().any(|line| line.starts_with(key)),
                "{key} in {}",
                text.stdout
            );
        }
        assert!(!text.stdout.contains(['{', '\u{1b}']) && !stderr.0.contains('\u{1b}'));
        if verb[0] == "train" {
            for line in [
                "3 steps over 24 rows, ",
                "before training: held-out loss ",
                "step 3/3  loss ",
                "saved ",
            ] {
                assert!(stderr.0.contains(line), "{line} in {}", stderr.0);
            }
        } else {
            assert_eq!(stderr, (String::new(), String::new()));
        }
    }
}

#[test]
fn quiet_runs_say_nothing_but_their_result() {
    for verb in VERBS {
        let place = place();
        // A warning is due: rows are cut, or the configuration has an empty key that nobody knows.
        place.edit_json("adapter/adapter_config.json", |config| {
            drop(config.insert("new_key".into(), 0.into()))
        });
        let cut: &[&str] = if verb[0] == "train" {
            &["--set", "data.max_length=6"]
        } else {
            &[]
        };
        let loud = place.run(&[verb, cut].concat()).ok();
        let warning = if verb[0] == "train" {
            "rows are longer than data.max_length = 6 and lost their right end"
        } else {
            "ignoring unknown key `new_key`"
        };
        assert!(loud.stderr.contains(warning), "{}", loud.stderr);
        let again: &[&str] = match verb[0] {
            "train" => &["--overwrite", "-q"],
            "merge" => &["--force", "-q"],
            _ => &["-q"],
        };
        let quiet = place.run(&[verb, cut, again].concat()).ok();
        assert_eq!(quiet.stderr, "", "{verb:?}");
        assert!(!quiet.stdout.is_empty());
    }
    let failed = place().run(&["-q", "inspect", "none"]);
    assert_eq!(failed.code, 1);
    assert!(
        failed.stderr.starts_with("error: none does not exist"),
        "{}",
        failed.stderr
    );
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let place = place();
    let mut child = Command::new(binary::path().unwrap())
        .args(["inspect", "adapter"])
        .current_dir(place.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap()
        ),
        (Some(0), String::new())
    );
}
