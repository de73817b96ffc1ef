//! Data files that are larger than what a run holds in memory.
#![cfg(target_os = "linux")]

use crate::{RUN, number};
use lowrank_tests::place::Place;
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Write as _};

/// Of 120 tokens, a kilobyte each.
const ROWS: usize = 180_000;

/// Only the first rows are supervised, so that an evaluation reads the others and does not run them.
fn rows(place: &Place) -> u64 {
    let path = place.path("large.jsonl");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    let unsupervised = vec!["-100"; 120].join(", ");
    for row in 0..ROWS {
        let ids: Vec<String> = (0..120)
            .map(|i| (3 + (row * 7 + i * 31) % 90).to_string())
            .collect();
        let ids = ids.join(", ");
        let labels = if row % 6000 == 0 { &ids } else { &unsupervised };
        writeln!(file, "{{\"input_ids\": [{ids}], \"labels\": [{labels}]}}").unwrap();
    }
    file.flush().unwrap();
    std::fs::metadata(path).unwrap().len()
}

/// The files of kept rows, with their lengths.
fn kept(place: &Place) -> Vec<u64> {
    let Ok(entries) = place.path("kept/rows").read_dir() else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect()
}

#[test]
fn files_larger_than_memory_are_trained_on_and_evaluated() {
    let place = Place::with_model("plain");
    place.write("run.toml", RUN);
    let megabytes = rows(&place) as f64 / 1_048_576.0;
    assert!(megabytes > 150.0, "{megabytes}");
    let run = |arguments: &[&str]| place.run_with(arguments, &[("LOWRANK_CACHE", "kept")]);
    let sets = [
        "--set",
        "data={train = ['large.jsonl'], eval_fraction = 0.5}",
        "--set",
        "train={steps = 2, batch_size = 2}",
    ];
    let plan = run(&[&["plan", "run.toml", "--json"], &sets[..]].concat()).json();
    assert_eq!(
        (&plan["cached"], &plan["held_out"]),
        (&Value::Bool(true), &(ROWS / 2).into())
    );
    let kept_before = kept(&place);
    assert!(
        matches!(kept_before[..], [bytes] if bytes > 80 << 20),
        "{kept_before:?}"
    );

    // The peak of a run that tokenises the rows itself.
    std::fs::remove_dir_all(place.path("kept")).unwrap();
    let _ended = run(&[&["--quiet", "train", "run.toml"], &sets[..]].concat()).ok();
    let lines = place.json_lines("run/metrics.jsonl");
    let trained = lines
        .iter()
        .rfind(|line| line.get("peak_rss_mb").is_some())
        .unwrap();
    let trained = number(&trained["peak_rss_mb"]);

    let eval = [
        "eval",
        "--model",
        "model",
        "--data",
        "large.jsonl",
        "--batch-size",
        "2",
        "--json",
    ];
    let report = run(&eval).json();
    assert_eq!(
        (&report["examples"], &report["tokens"]),
        (&ROWS.into(), &(120 * ROWS).into())
    );
    assert_eq!(report["supervised_tokens"], 30 * 119);
    let evaluated = number(&report["peak_rss_mb"]);
    assert_eq!(kept(&place), kept_before);

    // Everything else is model, program and threads: the same run on a few rows.
    let few = number(&run(&[&eval[..], &["--limit", "6001"]].concat()).json()["peak_rss_mb"]);
    println!("{megabytes} MB: train {trained}, eval {evaluated}, a few rows {few}");
    assert!(trained < 0.4 * megabytes, "{trained} of {megabytes} MB");
    assert!(evaluated < few + 32.0, "{evaluated}, {few} MB");
}
