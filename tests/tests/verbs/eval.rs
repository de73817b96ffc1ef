//! `eval`: losses of rows, logits.

use crate::{close, keys, logits, losses, number, token_rows};
use lowrank_tests::numbers::max_difference;
use lowrank_tests::place::Place;
use serde_json::Value;
use std::collections::BTreeMap;

const EVAL: [&str; 6] = ["eval", "--model", "model", "--data", "rows.jsonl", "--json"];

fn evaluate(place: &Place, more: &[&str]) -> Value {
    place.run(&[&EVAL[..], more].concat()).json()
}

/// Sum and number of the supervised losses of rows of tokens, from their logits.
fn expected(
    place: &Place,
    name: &str,
    found: &BTreeMap<String, candle_core::Tensor>,
) -> (f64, usize) {
    let (mut sum, mut count) = (0.0, 0);
    for (row, (ids, labels)) in token_rows(place, name).iter().enumerate() {
        for (loss, label) in losses(&found[&format!("logits.{row}")], ids)
            .iter()
            .zip(&labels[1..])
        {
            if *label != -100 {
                (sum, count) = (sum + loss, count + 1);
            }
        }
    }
    (sum, count)
}

#[test]
fn the_loss_is_that_of_the_logits() {
    let place = Place::with_model("plain");
    place.copy("cases/lora/adapter_final", "adapter");
    for adapter in [&[][..], &["--adapter", "adapter"]] {
        let found = logits(
            &place,
            &[&["--model", "model", "--data", "rows.jsonl"], adapter].concat(),
        );
        let rows = token_rows(&place, "rows.jsonl");
        assert_eq!(found.len(), rows.len());
        let (sum, count) = expected(&place, "rows.jsonl", &found);
        let report = evaluate(&place, adapter);
        assert_eq!(
            keys(&report),
            [
                "task",
                "examples",
                "tokens",
                "supervised_tokens",
                "loss",
                "perplexity",
                "metrics",
                "truncated",
                "seconds",
                "peak_rss_mb"
            ]
        );
        assert_eq!(
            (&report["task"], &report["examples"]),
            (&"loss".into(), &24.into())
        );
        let tokens: usize = rows.iter().map(|(ids, _)| ids.len()).sum();
        assert_eq!(
            (&report["tokens"], &report["supervised_tokens"]),
            (&tokens.into(), &count.into())
        );
        close(number(&report["loss"]), sum / count as f64, 1e-6);
        close(
            number(&report["perplexity"]),
            number(&report["loss"]).exp(),
            1e-12,
        );
        assert_eq!(
            (&report["truncated"], &report["metrics"]),
            (&0.into(), &serde_json::json!({}))
        );
        for batch_size in ["1", "5", "1000"] {
            let other = evaluate(&place, &[adapter, &["--batch-size", batch_size]].concat());
            close(number(&other["loss"]), number(&report["loss"]), 1e-6);
        }
    }
}

#[test]
fn limits_lengths_and_precisions() {
    let place = Place::with_model("plain");
    let rows = token_rows(&place, "rows.jsonl");
    let report = evaluate(&place, &["--limit", "5"]);
    let tokens: usize = rows[..5].iter().map(|(ids, _)| ids.len()).sum();
    assert_eq!(
        (&report["examples"], &report["tokens"]),
        (&5.into(), &tokens.into())
    );

    let report = evaluate(&place, &["--max-length", "9"]);
    let cut = rows.iter().filter(|(ids, _)| ids.len() > 9).count();
    let tokens: usize = rows.iter().map(|(ids, _)| ids.len().min(9)).sum();
    assert!(cut > 0);
    assert_eq!(
        (&report["truncated"], &report["tokens"]),
        (&cut.into(), &tokens.into())
    );

    let single = logits(&place, &["--model", "model", "--data", "rows.jsonl"]);
    let double = logits(
        &place,
        &["--model", "model", "--data", "rows.jsonl", "--dtype", "f64"],
    );
    let mut largest = 0.0f64;
    for (name, tensor) in &single {
        assert_eq!(double[name].dtype(), candle_core::DType::F32);
        largest = largest.max(max_difference(tensor, &double[name]).unwrap());
    }
    assert!(largest > 0.0 && largest < 1e-5, "{largest}");
}

#[test]
fn several_files_and_patterns() {
    let place = Place::with_model("plain");
    let text = place.text("rows.jsonl");
    let lines: Vec<&str> = text.lines().collect();
    place.write("parts/a.jsonl", lines[..9].join("\n"));
    place.write("parts/b.jsonl", lines[9..].join("\n"));
    let whole = evaluate(&place, &[]);
    for data in [
        &["parts/a.jsonl", "--data", "parts/b.jsonl"][..],
        &["parts/*.jsonl"],
    ] {
        let report = place
            .run(&[&["eval", "--json", "--model", "model", "--data"], data].concat())
            .json();
        assert_eq!(
            (&report["loss"], &report["examples"]),
            (&whole["loss"], &whole["examples"])
        );
    }
}

#[test]
fn rows_of_text() {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    // An end token is added (2) unless the text has one; a prompt is not supervised; without one, nothing predicts the
    // first token.
    let check = |text: &str, tokens: &str, supervised: usize| {
        place.write("text.jsonl", text);
        place.write("tokens.jsonl", tokens);
        let of_text = place
            .run(&["eval", "--model", "model", "--data", "text.jsonl", "--json"])
            .json();
        let of_tokens = place
            .run(&[
                "eval",
                "--model",
                "model",
                "--data",
                "tokens.jsonl",
                "--json",
            ])
            .json();
        for key in ["loss", "tokens", "supervised_tokens", "examples"] {
            assert_eq!(of_text[key], of_tokens[key], "{text}");
        }
        assert_eq!(of_text["supervised_tokens"], supervised);
        let found = logits(&place, &["--model", "model", "--data", "text.jsonl"]);
        let (sum, count) = expected(&place, "tokens.jsonl", &found);
        close(number(&of_text["loss"]), sum / count as f64, 1e-6);
    };
    check(
        r#"{"text":"w11 w7 w93 w5"}"#,
        r#"{"input_ids":[11,7,93,5,2],"labels":[11,7,93,5,2]}"#,
        4,
    );
    check(
        r#"{"text":"w11 w7</s>"}"#,
        r#"{"input_ids":[11,7,2],"labels":[11,7,2]}"#,
        2,
    );
    check(
        r#"{"prompt":"w11 w7 ","completion":"w93 w5"}"#,
        r#"{"input_ids":[11,7,93,5,2],"labels":[-100,-100,93,5,2]}"#,
        3,
    );
    check(
        r#"{"prompt":"","completion":"w93 w5"}"#,
        r#"{"input_ids":[93,5,2],"labels":[93,5,2]}"#,
        2,
    );
    check(
        r#"{"prompt":"w4 w5","completion":""}"#,
        r#"{"input_ids":[4,5,2],"labels":[-100,-100,2]}"#,
        1,
    );
}
