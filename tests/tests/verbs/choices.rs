//! `eval` of multiple choices: every score is recomputed from the logits of prompt and choice as one row.

use crate::{close, keys, logits, losses, number};
use lowrank_tests::place::Place;
use serde_json::{Value, json};

/// Prompt, choices, and the index of the right one.
type Question = (&'static [usize], &'static [&'static [usize]], usize);

const QUESTIONS: [Question; 6] = [
    (&[11, 7, 31], &[&[5], &[60, 9, 44], &[8, 3]], 0),
    (&[4], &[&[90, 12], &[33], &[71, 70, 69, 68]], 1),
    (&[22, 23, 24, 25, 26], &[&[14, 15, 16], &[14, 15], &[90]], 2),
    (&[50, 3], &[&[6], &[66]], 1),
    (&[9, 10, 11], &[&[40, 41], &[40, 41], &[40, 41, 42, 43]], 1),
    (&[77, 78, 79, 80], &[&[12, 96], &[91, 92, 93], &[3]], 2),
];

fn words(ids: &[usize]) -> String {
    let words: Vec<String> = ids.iter().map(|id| format!("w{id}")).collect();
    words.join(" ")
}

fn place(answers: bool) -> Place {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    place.copy("cases/lora/adapter_final", "adapter");
    let mut text = String::new();
    for (prompt, choices, gold) in QUESTIONS {
        let choices: Vec<String> = choices
            .iter()
            .map(|choice| format!(" {}", words(choice)))
            .collect();
        let mut row =
            json!({"prompt": words(prompt), "completion": choices[gold], "choices": choices});
        if answers {
            row["answer"] = gold.into();
        }
        text += &format!("{row}\n");
    }
    place.write("questions.jsonl", text);
    place
}

const MODEL: [&str; 4] = ["--model", "model", "--adapter", "adapter"];

fn evaluate(place: &Place, more: &[&str]) -> (Value, Vec<Value>) {
    let arguments = [
        "eval",
        "--json",
        "--data",
        "questions.jsonl",
        "--predictions",
        "p.jsonl",
    ];
    let report = place.run(&[&arguments[..], &MODEL, more].concat()).json();
    (report, place.json_lines("p.jsonl"))
}

/// The scores of all choices, and the losses of the right ones with their end token.
fn expected(place: &Place) -> (Vec<Vec<f64>>, Vec<f64>) {
    let mut text = String::new();
    for (prompt, choices, _) in QUESTIONS {
        for choice in choices {
            let ids = [prompt, choice, &[2]].concat();
            text += &format!("{}\n", json!({"input_ids": ids, "labels": ids}));
        }
    }
    place.write("spelt.jsonl", text);
    let found = logits(place, &[&MODEL[..], &["--data", "spelt.jsonl"]].concat());
    let (mut row, mut scores, mut gold_losses) = (0, Vec::new(), Vec::new());
    for (prompt, choices, gold) in QUESTIONS {
        let mut of_question = Vec::new();
        for (index, choice) in choices.iter().enumerate() {
            let ids = [prompt, choice, &[2]].concat();
            let losses = losses(&found[&format!("logits.{row}")], &ids);
            let completion = &losses[prompt.len() - 1..];
            of_question.push(-completion[..choice.len()].iter().sum::<f64>());
            if index == gold {
                gold_losses.extend(completion);
            }
            row += 1;
        }
        scores.push(of_question);
    }
    (scores, gold_losses)
}

fn first_best(scores: &[f64]) -> usize {
    (0..scores.len())
        .rev()
        .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
        .unwrap()
}

#[test]
fn scores_predictions_and_accuracies() {
    let place = place(true);
    let (scores, gold_losses) = expected(&place);
    for more in [
        &[][..],
        &["--task", "choices", "--batch-size", "1"],
        &["--batch-size", "2"],
    ] {
        let (report, lines) = evaluate(&place, more);
        assert_eq!(
            keys(&report),
            [
                "task",
                "examples",
                "tokens",
                "supervised_tokens",
                "loss",
                "perplexity",
                "accuracy",
                "accuracy_norm",
                "metrics",
                "truncated",
                "seconds",
                "peak_rss_mb"
            ]
        );
        assert_eq!(
            (&report["task"], &report["examples"]),
            (&"choices".into(), &6.into())
        );
        assert_eq!(report["supervised_tokens"], gold_losses.len());
        close(
            number(&report["loss"]),
            gold_losses.iter().sum::<f64>() / gold_losses.len() as f64,
            1e-6,
        );
        let (mut right, mut right_norm) = (0, 0);
        for (index, (line, scores)) in lines.iter().zip(&scores).enumerate() {
            let (_, choices, gold) = QUESTIONS[index];
            assert_eq!(
                keys(line),
                ["index", "scores", "prediction", "answer", "correct"]
            );
            for (found, expected) in line["scores"].as_array().unwrap().iter().zip(scores) {
                close(number(found), *expected, 1e-5);
            }
            assert_eq!(line["scores"].as_array().unwrap().len(), choices.len());
            let best = first_best(scores);
            let expected = (
                index.into(),
                best.into(),
                gold.into(),
                (best == gold).into(),
            );
            let found = (
                &line["index"],
                &line["prediction"],
                &line["answer"],
                &line["correct"],
            );
            assert_eq!(found, (&expected.0, &expected.1, &expected.2, &expected.3));
            right += usize::from(best == gold);
            // The space before a choice counts.
            let lengths = choices
                .iter()
                .map(|choice| words(choice).len() as f64 + 1.0);
            let normed: Vec<f64> = scores
                .iter()
                .zip(lengths)
                .map(|(score, length)| score / length)
                .collect();
            right_norm += usize::from(first_best(&normed) == gold);
        }
        assert_eq!(lines.len(), 6);
        assert_ne!(
            right, right_norm,
            "the questions do not tell the two accuracies apart"
        );
        assert_eq!(
            (
                number(&report["accuracy"]),
                number(&report["accuracy_norm"])
            ),
            (right as f64 / 6.0, right_norm as f64 / 6.0)
        );
    }
    // The fifth question's first two choices are the same: the first of them is taken.
    let (_, lines) = evaluate(&place, &[]);
    assert_eq!(
        (&lines[4]["scores"][0], &lines[4]["prediction"]),
        (&lines[4]["scores"][1], &0.into())
    );
}

#[test]
fn rows_without_an_answer_have_predictions_and_no_accuracy() {
    let place = place(false);
    let (report, lines) = evaluate(&place, &[]);
    assert!(report.get("accuracy").is_none() && report.get("accuracy_norm").is_none());
    let (scores, gold_losses) = expected(&place);
    assert_eq!(report["supervised_tokens"], gold_losses.len());
    close(
        number(&report["loss"]),
        gold_losses.iter().sum::<f64>() / gold_losses.len() as f64,
        1e-6,
    );
    for (line, scores) in lines.iter().zip(&scores) {
        assert_eq!(line["prediction"], first_best(scores));
        assert_eq!(
            (&line["answer"], &line["correct"]),
            (&Value::Null, &Value::Null)
        );
    }
}

#[test]
fn a_choice_that_was_cut_off_does_not_win() {
    let place = place(true);
    // The third prompt has five tokens: nothing of its choices is left.
    let (report, lines) = evaluate(&place, &["--max-length", "5"]);
    let expected = json!({"index": 2, "scores": [null, null, null], "prediction": null, "answer": 2, "correct": false});
    assert_eq!(lines[2], expected);
    assert!(number(&lines[3]["scores"][0]) < 0.0);
    // Rows whose choices or completion (with its end token) lost something.
    assert_eq!(report["truncated"], 4);
}

#[test]
fn the_loss_alone_can_be_asked_for() {
    let place = place(true);
    let (_, gold_losses) = expected(&place);
    let arguments = [
        "eval",
        "--json",
        "--data",
        "questions.jsonl",
        "--task",
        "loss",
    ];
    let report = place.run(&[&arguments[..], &MODEL].concat()).json();
    assert_eq!(report["task"], "loss");
    assert!(report.get("accuracy").is_none());
    close(
        number(&report["loss"]),
        gold_losses.iter().sum::<f64>() / gold_losses.len() as f64,
        1e-6,
    );
}
