//! Rows in every order that a run file can ask for: stopped in the middle of an epoch and continued, from kept rows or
//! from memory, a run ends with the same bytes.

use crate::folders::tree;
use crate::scene::{Scene, metrics};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// In the middle of the first epoch, and of a later one.
const STOPPED: &str = "train.steps=7";
const STEPS: &str = "train.steps=13";

const WEIGHTED: &str =
    "data.train=[{path = 'train.jsonl', weight = 0.7}, {path = 'eval.jsonl', weight = 1.5}]";
const HELD_OUT: [&str; 2] = ["data.eval=[]", "data.eval_fraction=0.2"];

/// What a run leaves, without what says where its rows are kept.
type End = (
    BTreeMap<String, Vec<u8>>,
    BTreeMap<String, Vec<u8>>,
    Vec<serde_json::Value>,
);

fn finish(scene: &Scene, folder: &Path, sets: &[&str]) -> End {
    let mut flags: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    flags.push("--resume");
    let output = scene.train(folder, &flags).output().unwrap();
    assert!(output.status.success(), "{sets:?}: {output:?}");
    (
        tree(&folder.join("adapter")),
        tree(&folder.join("checkpoints")),
        metrics(folder),
    )
}

#[test]
fn a_run_stopped_within_an_epoch_ends_with_the_same_bytes_in_every_order() {
    let orders: [&[&str]; 9] = [
        &[],
        &["data.packing=true", "data.max_length=40"],
        &["data.group_by_length=true"],
        &[WEIGHTED],
        &[WEIGHTED, "data.packing=true", "data.max_length=40"],
        &[WEIGHTED, "data.shuffle=false"],
        &[
            WEIGHTED,
            HELD_OUT[0],
            HELD_OUT[1],
            "data.group_by_length=true",
        ],
        &[
            HELD_OUT[0],
            HELD_OUT[1],
            "data.packing=true",
            "train.recompute=true",
        ],
        &[
            HELD_OUT[0],
            HELD_OUT[1],
            "adapter.family=alora",
            "adapter.k1_steps=3",
            "adapter.k2_steps=3",
            "adapter.rounds=2",
            "adapter.probe_examples=4",
            "adapter.target_modules=['q_proj']",
        ],
    ];
    let scene = Scene::new("save_every = 4");
    let kept = scene.folder("kept");
    let cached = format!("data.cache={}", kept.display());
    let mut ends: Vec<End> = Vec::new();
    for (number, order) in orders.into_iter().enumerate() {
        let with = |more: &[&'static str], cache: &str| -> Vec<String> {
            let sets = order.iter().chain(more).map(|&set| set.to_owned());
            sets.chain([cache.to_owned()]).collect()
        };
        let finish = |name: &str, sets: Vec<String>| {
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            finish(&scene, &scene.folder(&format!("{name}-{number}")), &sets)
        };
        let memory = "data.cache=false";
        let whole = finish("whole", with(&[STEPS], memory));
        assert!(
            finish("cached", with(&[STEPS], &cached)) == whole,
            "{order:?}, cached"
        );
        // From kept rows to rows in memory, and the other way round.
        for (name, first, then) in [
            ("first", cached.as_str(), memory),
            ("then", memory, &cached),
        ] {
            finish(name, with(&[STOPPED], first));
            assert!(
                finish(name, with(&[STEPS], then)) == whole,
                "{order:?}, {name} cached"
            );
        }
        assert!(
            ends.iter().all(|end| end.0 != whole.0),
            "{order:?} changes nothing"
        );
        ends.push(whole);
    }
    // Two files, whatever was asked of them; rows are cut at two lengths.
    assert_eq!(kept.read_dir().unwrap().count(), 4);
}

#[test]
fn rows_that_change_are_noticed_when_they_are_kept() {
    let scene = Scene::new("save_every = 4");
    let folder = scene.folder("run");
    let cached = format!("data.cache={}", scene.folder("kept").display());
    finish(&scene, &folder, &[STOPPED, &cached]);
    let path = folder.ancestors().nth(2).unwrap().join("train.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    // The first token of the first row.
    let (head, rest) = text.split_once(',').unwrap();
    let (head, id) = head.split_once('[').unwrap();
    let other = if id == "5" { "6" } else { "5" };
    fs::write(&path, format!("{head}[{other},{rest}")).unwrap();
    let flags = ["--resume", "--set", STEPS, "--set", &cached];
    let output = scene.train(&folder, &flags).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("`the content of data.train` was"), "{said}");
}
