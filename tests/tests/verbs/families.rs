//! `families`: what it prints, and that the README has it.

use crate::keys;
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn one_array_for_programs() {
    let ended = Place::new().run(&["families", "--json"]).ok();
    assert_eq!(
        (ended.stdout.lines().count(), ended.stderr.as_str()),
        (1, "")
    );
    let rows: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap();
    for row in &rows {
        let expected = ["name", "peft_type", "bases", "merges", "to_lora", "gated"];
        assert_eq!(keys(row), expected);
    }
    let named = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
    let bases = [
        "f32", "f64", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1", "q2_k",
        "q3_k", "q4_k", "q5_k", "q6_k", "q8_k", "nf4",
    ];
    let lora = json!({"name": "lora", "peft_type": "LORA", "bases": bases, "merges": "exact",
        "to_lora": "exact", "gated": false});
    assert_eq!(*named("lora"), lora);
    let full = json!({"name": "full", "peft_type": null, "bases": bases, "merges": "exact",
        "to_lora": "no", "gated": false});
    assert_eq!(*named("full"), full);
    // Every choice of `family =` is there.
    let registered = lowrank::registry::FAMILIES.iter();
    let mut expected: Vec<&str> = registered.map(|family| family.name()).collect();
    expected.push("full");
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, expected);
}

#[test]
fn the_readme_has_the_table() {
    let table = Place::new().run(&["families"]).ok().stdout;
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    let lora = [
        "lora",
        "LORA",
        "f32, f64, f16, bf16, nf4, GGUF",
        "exact",
        "exact",
        "no",
    ];
    assert!(table.lines().any(|line| cells(line) == lora), "{table}");
    let widths: Vec<usize> = table.lines().map(str::len).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(path).unwrap();
    let start = "<!-- families: written by `cargo xtask readme` -->\n";
    let (_, rest) = readme.split_once(start).unwrap();
    let (found, _) = rest.split_once("<!-- /families -->\n").unwrap();
    assert_eq!(found, table, "run `cargo xtask readme`");
}
