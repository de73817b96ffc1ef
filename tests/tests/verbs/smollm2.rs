//! Evaluations of SmolLM2-135M-Instruct on a few rows of real data, if `cargo xtask fetch` and the data are there.

use crate::{chatting, close, number};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::env;
use std::path::{Path, PathBuf};

/// The model and the folder of data, or a word on what is missing.
fn at_hand() -> Option<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let model = root.join("models/SmolLM2-135M-Instruct");
    let data =
        env::var_os("LOWRANK_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    for needed in [
        model.join("config.json"),
        data.join("boolq/test.jsonl"),
        data.join("gsm8k/test.jsonl"),
    ] {
        if !needed.exists() {
            eprintln!("not run: {} is not there", needed.display());
            return None;
        }
    }
    let model = model.canonicalize().unwrap().display().to_string();
    Some((model, data.canonicalize().unwrap()))
}

fn evaluate(place: &Place, model: &str, data: &Path, more: &[&str]) -> (Value, Vec<Value>) {
    let data = data.display().to_string();
    let arguments = [
        "eval",
        "--json",
        "--model",
        model,
        "--data",
        &data,
        "--predictions",
        "p.jsonl",
    ];
    let report = place.run(&[&arguments[..], more].concat()).json();
    (report, place.json_lines("p.jsonl"))
}

#[test]
fn choices_have_an_accuracy_with_its_interval() {
    let Some((model, data)) = at_hand() else {
        return;
    };
    let place = Place::new();
    let boolq = data.join("boolq/test.jsonl");
    let (alone, lines) = evaluate(
        &place,
        &model,
        &boolq,
        &["--limit", "5", "--batch-size", "1"],
    );
    let (report, beside) = evaluate(
        &place,
        &model,
        &boolq,
        &["--limit", "5", "--batch-size", "3"],
    );
    close(number(&report["loss"]), number(&alone["loss"]), 1e-4);
    for (line, other) in lines.iter().zip(&beside) {
        for choice in 0..2 {
            close(
                number(&line["scores"][choice]),
                number(&other["scores"][choice]),
                1e-4,
            );
        }
    }
    // "the correct answer is true" and its end token under a model that has learnt English.
    assert!((1.5..6.0).contains(&number(&report["loss"])), "{report}");
    let right = lines.iter().filter(|line| line["correct"] == true).count();
    close(number(&report["accuracy"]), right as f64 / 5.0, 1e-12);
    let (low, high) = (
        &report["metrics"]["accuracy_low"],
        &report["metrics"]["accuracy_high"],
    );
    assert!(
        number(low) < number(&report["accuracy"]) + 1e-12
            && number(&report["accuracy"]) < number(high) + 1e-12
    );
}

#[test]
fn answers_are_written_and_compared() {
    let Some((model, data)) = at_hand() else {
        return;
    };
    let place = Place::new();
    let gsm8k = data.join("gsm8k/test.jsonl");
    let flags = [
        "--limit",
        "4",
        "--max-new-tokens",
        "24",
        "--stop",
        "Question:",
    ];
    let (report, lines) = evaluate(&place, &model, &gsm8k, &flags);
    assert_eq!(report["task"], "generate");
    // GSM8K's solutions are written by people and short of words: below 2 nats a token.
    assert!((1.0..2.0).contains(&number(&report["loss"])), "{report}");
    let answers: Vec<&Value> = lines.iter().map(|line| &line["answer"]).collect();
    assert_eq!(answers, ["18", "3", "70000", "540"]);
    let right = lines
        .iter()
        .filter(|line| line["prediction"] == line["answer"])
        .count();
    assert_eq!(report["metrics"]["exact_match"], json!(right as f64 / 4.0));
    let (_, beside) = evaluate(
        &place,
        &model,
        &gsm8k,
        &[&flags[..], &["--batch-size", "3"]].concat(),
    );
    assert_eq!(lines, beside);
}

#[test]
fn a_conversation_is_read_once() {
    let Some((model, _)) = at_hand() else { return };
    let place = Place::new();
    let said = ["What pulls the tide?", "And how often a day?"];
    let arguments = ["--model", &model, "--json", "--max-new-tokens", "12"];
    let found = chatting::object(chatting::talk(
        &place,
        &arguments,
        said.join("\n").as_bytes(),
    ));
    chatting::check(&model, &found, None, &said, 12);
}
