//! Evaluation keeps nothing from one batch to the next.

use crate::number;
use lowrank_tests::place::Place;
use serde_json::json;

/// Megabytes that a run of many batches may hold more than one of half as many: rows are read whole. Both are long enough for
/// what the allocator keeps to be the same.
const GROWTH: f64 = 4.0;

/// The peak with 220 batches of 8 rows, and with 440.
fn peaks(place: &Place, arguments: &[&str]) -> (f64, f64) {
    let peak = |rows: &str| {
        let all = [
            "eval",
            "--model",
            "model",
            "--adapter",
            "adapter",
            "--json",
            "--limit",
            rows,
        ];
        let report = place.run(&[&all[..], arguments].concat()).json();
        assert_eq!(report["examples"].to_string(), rows);
        number(&report["peak_rss_mb"])
    };
    (peak("1760"), peak("3520"))
}

fn check(place: &Place, arguments: &[&str]) {
    let (few, many) = peaks(place, arguments);
    assert!(
        many - few < GROWTH,
        "{arguments:?}: {few} MB, then {many} MB"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn memory_stays_flat_over_batches() {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    place.copy("cases/lora/adapter_final", "adapter");
    let (mut tokens, mut questions) = (String::new(), String::new());
    for row in 0..3520usize {
        let ids: Vec<usize> = (0..24).map(|i| 3 + (row * 31 + i * 17) % 90).collect();
        tokens += &format!("{}\n", json!({"input_ids": ids, "labels": ids}));
        let words: Vec<String> = ids.iter().map(|id| format!("w{id}")).collect();
        let choices = [words[12..15].join(" "), words[15..20].join(" ")];
        let question = json!({"prompt": words[..12].join(" "), "completion": choices[0], "choices": choices, "answer": 0});
        questions += &format!("{question}\n");
    }
    place.write("tokens.jsonl", tokens);
    place.write("questions.jsonl", questions);
    check(&place, &["--data", "tokens.jsonl"]);
    check(
        &place,
        &["--data", "questions.jsonl", "--predictions", "p.jsonl"],
    );
    // 16 MB of logits, which are written row by row.
    check(
        &place,
        &["--data", "tokens.jsonl", "--logits", "l.safetensors"],
    );
}
