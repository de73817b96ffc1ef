//! `eval --task generate`, against the texts that `generate` writes one by one.

use crate::{close, keys, number};
use lowrank_tests::place::Place;
use serde_json::{Value, json};

/// Of very different lengths, so that texts side by side need padding.
const PROMPTS: [&str; 7] = [
    "w5 w17 w3",
    "w9",
    "w22 w23 w24 w25 w26 w27 w28 w29 w30 w31 w32",
    "w50 w3",
    "w61 w62 w63 w64 w65 w66",
    "w8 w7 w6 w5 w4 w3 w90 w91 w92 w93 w94 w95 w96 w11 w12 w13",
    "w70 w71 w72",
];

const MODEL: [&str; 4] = ["--model", "model", "--adapter", "adapter"];

/// A model of words, whose texts have numbers in them: `w17` ends with 17.
fn place() -> Place {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    place.copy("cases/lora/adapter_final", "adapter");
    place
}

/// What the model writes after each prompt.
fn written(place: &Place, more: &[&str]) -> Vec<String> {
    let write = |prompt: &&str| {
        let arguments = [
            "generate",
            "--json",
            "--prompt",
            prompt,
            "--max-new-tokens",
            "9",
        ];
        let object = place.run(&[&arguments[..], &MODEL, more].concat()).json();
        object["text"].as_str().unwrap().to_owned()
    };
    PROMPTS.iter().map(write).collect()
}

fn last_number(text: &str) -> &str {
    text.trim_end()
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
}

/// Rows of which the first three are answered rightly.
fn write_rows(place: &Place, texts: &[String]) {
    let rows = texts.iter().zip(PROMPTS).enumerate();
    let rows = rows.map(|(row, (text, prompt))| {
        let number = last_number(text);
        let answer = match row {
            0 => number.to_owned(),
            1 => format!(" ${number}. "),
            2 => format!("so it is\n#### {number}"),
            3 => format!("{number}1"),
            4 => "w5 ".to_owned(),
            5 => String::new(),
            _ => format!("-{number}"),
        };
        json!({"prompt": prompt, "completion": " w5 w6", "answer": answer}).to_string()
    });
    place.write("rows.jsonl", rows.collect::<Vec<_>>().join("\n"));
}

fn evaluate(place: &Place, more: &[&str]) -> (Value, Vec<Value>) {
    let arguments = [
        "eval",
        "--json",
        "--data",
        "rows.jsonl",
        "--predictions",
        "p.jsonl",
    ];
    let limit = ["--max-new-tokens", "9"];
    let report = place.run(&[&arguments[..], &limit, more].concat()).json();
    (report, place.json_lines("p.jsonl"))
}

#[test]
fn final_answers_are_those_of_the_texts_written_alone() {
    let place = place();
    let free = written(&place, &[]);
    // Texts end at different places, so that they leave and others come.
    let words: Vec<&str> = free[0].split(' ').chain(free[4].split(' ')).collect();
    let stops = ["--stop", words[3], "--stop", words[14]];
    for more in [&[][..], &stops] {
        let texts = written(&place, more);
        write_rows(&place, &texts);
        let loss = ["eval", "--json", "--data", "rows.jsonl", "--task", "loss"];
        let loss = place.run(&[&loss[..], &MODEL].concat()).json();
        let mut first = None;
        for batch_size in ["8", "1", "3", "4", "100"] {
            let flags = ["--batch-size", batch_size];
            let (report, lines) = evaluate(&place, &[&MODEL[..], more, &flags].concat());
            let expected = [
                "task",
                "examples",
                "tokens",
                "supervised_tokens",
                "loss",
                "perplexity",
                "accuracy",
                "metrics",
                "truncated",
                "seconds",
                "peak_rss_mb",
            ];
            assert_eq!(keys(&report), expected);
            assert_eq!(
                (&report["task"], &report["examples"]),
                (&json!("generate"), &json!(7))
            );
            close(number(&report["loss"]), number(&loss["loss"]), 1e-6);
            assert_eq!(report["tokens"], loss["tokens"]);
            for (row, (line, text)) in lines.iter().zip(&texts).enumerate() {
                assert_eq!(
                    keys(line),
                    ["index", "prediction", "answer", "correct", "text"]
                );
                let found = (&line["index"], &line["text"], &line["correct"]);
                assert_eq!(
                    found,
                    (&json!(row), &json!(text), &json!(row < 3)),
                    "{line}"
                );
                let prediction = match row {
                    4 | 5 => text.trim(),
                    _ => last_number(text),
                };
                assert_eq!(line["prediction"], prediction);
            }
            assert_eq!(lines[1]["answer"], last_number(&texts[1]));
            assert_eq!(lines[4]["answer"], "w5");
            close(number(&report["accuracy"]), 3.0 / 7.0, 1e-12);
            let metrics = &report["metrics"];
            assert_eq!(
                keys(metrics),
                ["exact_match", "accuracy_low", "accuracy_high"]
            );
            close(number(&metrics["exact_match"]), 3.0 / 7.0, 1e-12);
            // Wilson's interval of 3 in 7.
            close(number(&metrics["accuracy_low"]), 0.158_229, 1e-5);
            close(number(&metrics["accuracy_high"]), 0.749_544, 1e-5);
            let bytes = place.read("p.jsonl");
            assert!(
                *first.get_or_insert(bytes.clone()) == bytes,
                "batches of {batch_size}"
            );
        }
    }
}

#[test]
fn without_an_answer_the_completion_is_compared() {
    let place = place();
    let texts = written(&place, &[]);
    let row = |row: usize, completion: &str| {
        json!({"prompt": PROMPTS[row], "completion": completion}).to_string()
    };
    let rows = [
        row(0, &texts[0]),
        row(1, "w5 w5"),
        row(2, &format!(" {} ", texts[2])),
    ];
    place.write("rows.jsonl", rows.join("\n"));
    let (report, lines) = evaluate(&place, &[&MODEL[..], &["--task", "generate"]].concat());
    let correct: Vec<&Value> = lines.iter().map(|line| &line["correct"]).collect();
    assert_eq!(correct, [true, false, true]);
    close(number(&report["accuracy"]), 2.0 / 3.0, 1e-12);

    // Without being asked, rows of this kind are measured by their loss.
    let plain = place.run(&["eval", "--model", "model", "--data", "rows.jsonl", "--json"]);
    assert_eq!(plain.json()["task"], "loss");
    place.refuses(
        &["eval", "--model", "model", "--data", "rows.jsonl", "--task", "generate", "--max-length", "10"],
        1,
        &["row 0 (counted from 0): its completion, which the answer is compared with, was cut at 10 tokens; raise --max-length"],
    );
}

#[test]
fn merged_and_unmerged_are_measured_alike() {
    let place = place();
    let merge = ["merge", "--out", "merged", "--dtype", "f32"];
    drop(place.run(&[&merge[..], &MODEL].concat()).ok());
    let texts = written(&place, &[]);
    write_rows(&place, &texts);
    let (adapted, lines) = evaluate(&place, &MODEL);
    let (merged, merged_lines) = evaluate(&place, &["--model", "merged"]);
    assert_eq!(lines, merged_lines);
    assert_eq!(adapted["metrics"], merged["metrics"]);
    close(number(&merged["loss"]), number(&adapted["loss"]), 1e-5);
    let (base, base_lines) = evaluate(&place, &["--model", "model"]);
    assert!(lines != base_lines && base["loss"] != adapted["loss"]);
}

#[test]
fn people_read_the_interval_too() {
    let place = place();
    write_rows(&place, &vec!["w5".to_owned(); 7]);
    let arguments = [
        "eval",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--max-new-tokens",
        "2",
    ];
    let text = place.run(&arguments).ok().stdout;
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(
        names.ends_with(&["exact_match", "accuracy_low", "accuracy_high"]),
        "{text}"
    );
}

#[test]
fn rows_that_cannot_be_answered() {
    let place = place();
    let eval = ["eval", "--model", "model", "--data", "rows.jsonl"];
    let check = |rows: &str, more: &[&str], code: i32, expected: &str| {
        place.write("rows.jsonl", rows);
        place.refuses(&[&eval[..], more].concat(), code, &[expected]);
    };
    let good = r#"{"prompt":"w5","completion":"w6","answer":"7"}"#;
    check(
        &format!(
            "{good}\n{}",
            r#"{"prompt":"","completion":"w6","answer":"7"}"#
        ),
        &[],
        1,
        "error: row 1 (counted from 0): there is no prompt to continue",
    );
    let long = vec!["w7"; 128].join(" ");
    let long = format!("{good}\n{{\"prompt\":\"{long}\",\"completion\":\"w6\",\"answer\":\"7\"}}");
    check(
        &long,
        &[],
        1,
        "error: a row of `rows.jsonl` has 130 tokens, more than the model's limit of 128",
    );
    check(
        &long,
        &["--max-length", "128"],
        1,
        "error: row 1 (counted from 0): the prompt has 128 tokens and the model reads at most 128 (`max_position_embeddings`)",
    );
    check(
        r#"{"prompt":"w5","completion":"w6","answer":7}"#,
        &[],
        1,
        "`answer` is 7, expected a string",
    );
    check(
        &format!("{good}\n{}", r#"{"prompt":"w5","completion":"w6"}"#),
        &[],
        1,
        "rows.jsonl:2: ",
    );
    check(
        good,
        &["--max-new-tokens", "0"],
        2,
        "invalid value '0' for '--max-new-tokens",
    );
    check(good, &["--stop", ""], 2, "error: --stop: ");
    for (flag, value) in [("--max-new-tokens", "7"), ("--stop", "w3")] {
        let expected = format!("error: {flag} is for --task generate, and this is --task loss");
        check(good, &["--task", "loss", flag, value], 2, &expected);
    }
    check(
        r#"{"text":"w5 w6"}"#,
        &["--task", "generate"],
        2,
        "error: --task generate needs rows with a prompt and what follows it, and with no `choices`",
    );

    // A prompt that lost its end is answered as it is, and said to be cut.
    let cut = r#"{"prompt":"w5 w6 w7 w8","completion":"w6","answer":"7"}"#;
    place.write("rows.jsonl", format!("{good}\n{cut}"));
    let more = ["--max-length", "3", "--max-new-tokens", "4"];
    let ended = place.run(&[&eval[..], &more].concat()).ok();
    assert!(
        ended.stderr.contains("1 prompts were cut at 3 tokens"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stdout.contains("truncated          1\n"),
        "{}",
        ended.stdout
    );
}
