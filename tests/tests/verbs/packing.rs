//! `train` with packed rows.

use crate::training::{TENSORS, place, train};
use crate::{close, number, token_rows};
use lowrank_tests::place::Place;
use serde_json::Value;

/// The metrics of a run without what no two runs have in common.
fn lines(place: &Place, dir: &str) -> Vec<Value> {
    let mut lines = place.json_lines(&format!("{dir}/metrics.jsonl"));
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        line.remove("tokens_per_second");
        line.remove("peak_rss_mb");
    }
    lines
}

#[test]
fn a_packed_step_is_the_step_of_the_same_rows_padded() {
    let place = place();
    let text = place.text("rows.jsonl");
    let few: String = text.lines().take(6).map(|row| format!("{row}\n")).collect();
    place.write("few.jsonl", few);
    let lengths: Vec<usize> = token_rows(&place, "few.jsonl")
        .iter()
        .map(|(ids, _)| ids.len())
        .collect();
    let all: usize = lengths.iter().sum();
    assert!(lengths.iter().any(|&length| length != lengths[0]));
    let common = [
        "data.train=[\"few.jsonl\"]",
        "data.shuffle=false",
        "train.steps=4",
        "train.eval_every=2",
    ];
    let run = |dir: &str, sets: &[&str]| {
        let dir = format!("output.dir={dir}");
        train(&place, &[&common[..], &[&dir], sets].concat());
    };
    run("padded", &["train.batch_size=6"]);
    // Every sequence is full, and holds each row once.
    let max_length = format!("data.max_length={all}");
    let packed = ["data.packing=true", "train.batch_size=1", &max_length];
    run("packed", &packed);
    assert!(place.text("packed/run.toml").contains("packing = true"));
    let (padded, packed) = (lines(&place, "padded"), lines(&place, "packed"));
    assert_eq!(padded.len(), 4 + 3);
    assert_eq!(packed.len(), padded.len());
    for (packed, padded) in packed.iter().zip(&padded) {
        assert_eq!(packed["step"], padded["step"]);
        let fields: &[&str] = match padded.get("loss") {
            Some(_) => &["loss", "grad_norm", "tokens"],
            None => &["eval_loss", "eval_tokens"],
        };
        for field in fields {
            close(number(&packed[*field]), number(&padded[*field]), 1e-5);
        }
    }
    assert_eq!(packed[1]["tokens"], all);
}

#[test]
fn a_packed_run_resumes_to_the_same_bytes() {
    let place = place();
    // 24 rows of 5 to 16 tokens: some 7 sequences an epoch, of which a step takes four.
    let common = [
        "data.packing=true",
        "data.max_length=40",
        "train.batch_size=2",
        "train.accumulate=2",
        "train.save_every=1",
        "adapter.lora_dropout=0.2",
    ];
    let run = |dir: &str, steps: &str, flags: &[&str]| {
        let mut arguments = vec!["train", "run.toml"];
        let dir = format!("output.dir={dir}");
        for set in common.iter().chain([&&*dir, &steps]) {
            arguments.extend(["--set", set]);
        }
        arguments.extend(flags);
        place.run(&arguments).ok().stderr
    };
    let said = run("whole", "train.steps=7", &[]);
    assert!(!said.contains("lost their right end"), "{said}");
    for steps in ["train.steps=1", "train.steps=3", "train.steps=5"] {
        let dir = steps.replace("train.steps=", "after");
        run(&dir, steps, &[]);
        let said = run(&dir, "train.steps=7", &["--resume"]);
        assert!(said.contains("resuming from"), "{said}");
        assert_eq!(
            place.read(&format!("{dir}/{TENSORS}")),
            place.read(&format!("whole/{TENSORS}"))
        );
        let steps = |dir: &str| -> Vec<Value> {
            let lines = lines(&place, dir).into_iter();
            lines.filter(|line| line.get("loss").is_some()).collect()
        };
        assert_eq!(steps(&dir), steps("whole"));
    }
    // Packed otherwise it is another run.
    let arguments = [
        "train",
        "run.toml",
        "--resume",
        "--set",
        "output.dir=whole",
        "--set",
        "data.packing=false",
    ];
    place.refuses(&arguments, 2, &["`data.packing` was true, now it is false"]);
}

#[test]
fn longer_rows_are_cut_and_counted_and_epochs_end() {
    let place = place();
    let rows = token_rows(&place, "rows.jsonl");
    let cut = rows.iter().filter(|(ids, _)| ids.len() > 10).count();
    let left: usize = rows.iter().map(|(ids, _)| ids.len().min(10)).sum();
    assert!(cut > 0);
    let run = place.run(&[
        "train",
        "run.toml",
        "--set",
        "data.packing=true",
        "--set",
        "data.max_length=10",
        "--set",
        "train.epochs=3",
    ]);
    let said = run.ok().stderr;
    let warning = format!("data.train: {cut} rows are longer than data.max_length = 10");
    assert!(said.contains(&warning), "{said}");
    let lines = place.json_lines("run/metrics.jsonl");
    let tokens = lines.iter().filter_map(|line| line.get("tokens"));
    let tokens: f64 = tokens.map(number).sum();
    close(tokens, 3.0 * left as f64, 0.0);
}
