//! What rows become.

use crate::helpers::{Folder, count, examples, options, read, tokenizer};
use lowrank_data::{
    ChoiceExample, Example, FileSummary, Kind, Options, Reference, Summary, UNSUPERVISED,
};
use proptest::prelude::*;

const NO: i32 = UNSUPERVISED;

fn example(ids: &[u32], labels: &[i32]) -> Example {
    Example {
        ids: ids.to_vec(),
        labels: labels.to_vec(),
        ..Example::default()
    }
}

#[test]
fn text_gets_the_template_and_the_end_token() {
    let rows = read(
        "{\"text\": \"the cat sat on a mat\"}\n\n  \n{\"text\": \"cat </s>\"}\r\n{\"text\":\"\"}",
        &options(),
    );
    let expected = [
        example(&[1, 3, 4, 5, 6, 7, 8, 2], &[1, 3, 4, 5, 6, 7, 8, 2]),
        // The text already ends.
        example(&[1, 4, 2], &[1, 4, 2]),
        example(&[1, 2], &[1, 2]),
    ];
    assert_eq!(examples(&rows), expected);
    assert_eq!(rows.references(), []);
    assert_eq!(rows.kind(), Some(Kind::Text));
    let counted: Vec<_> = examples(&rows).iter().map(Example::supervised).collect();
    assert_eq!(counted, [7, 2, 1]);
}

#[test]
fn without_an_end_token_nothing_is_added() {
    let rows = read(
        r#"{"text": "the cat"}"#,
        &Options {
            end_token: None,
            ..options()
        },
    );
    assert_eq!(examples(&rows), [example(&[1, 3, 4], &[1, 3, 4])]);
}

#[test]
fn completions_are_supervised_with_their_end() {
    let content = r#"{"prompt": "the cat", "completion": "sat on"}
{"completion": "", "prompt": "a"}
{"prompt": "", "completion": "mat"}"#;
    let rows = read(content, &options());
    let expected = [
        example(&[3, 4, 5, 6, 2], &[NO, NO, 5, 6, 2]),
        example(&[7, 2], &[NO, 2]),
        example(&[8, 2], &[8, 2]),
    ];
    assert_eq!(examples(&rows), expected);
    // The first token of a row is never predicted.
    assert_eq!(rows.summary().supervised, 3 + 1 + 1);
    assert_eq!(rows.kind(), Some(Kind::Completion));
}

#[test]
fn choices_are_scored_without_the_end_token() {
    let content = r#"{"prompt": "the cat", "completion": "sat", "choices": ["on a", "sat", "été"], "answer": 1}
{"prompt": "a", "completion": "mat", "choices": ["mat"]}"#;
    let rows = read(content, &options());
    let first = ChoiceExample {
        prompt: vec![3, 4],
        choices: vec![vec![6, 7], vec![5], vec![11]],
        gold: Some(1),
        choice_bytes: vec![4, 3, 5],
        truncated: false,
    };
    let second = ChoiceExample {
        prompt: vec![7],
        choices: vec![vec![8]],
        gold: None,
        choice_bytes: vec![3],
        truncated: false,
    };
    assert_eq!(
        rows.references(),
        [Reference::Choices(first), Reference::Choices(second)]
    );
    assert_eq!(
        examples(&rows),
        [
            example(&[3, 4, 5, 2], &[NO, NO, 5, 2]),
            example(&[7, 8, 2], &[NO, 8, 2])
        ]
    );
    assert_eq!(rows.kind(), Some(Kind::Choices));
}

#[test]
fn a_choice_that_is_too_long_is_cut_and_counted() {
    let content =
        r#"{"prompt": "the cat", "completion": "sat", "choices": ["on a", "sat"], "answer": 1}"#;
    let rows = read(
        content,
        &Options {
            max_length: count(3),
            ..options()
        },
    );
    let expected = ChoiceExample {
        prompt: vec![3, 4],
        choices: vec![vec![6], vec![5]],
        gold: Some(1),
        choice_bytes: vec![4, 3],
        truncated: true,
    };
    assert_eq!(rows.references(), [Reference::Choices(expected)]);
    assert_eq!(rows.summary().truncated, 1);
}

#[test]
fn an_answer_without_choices_is_kept_as_text() {
    let rows = read(
        r#"{"prompt": "a", "completion": "mat", "answer": "8"}"#,
        &options(),
    );
    assert_eq!(rows.references(), [Reference::Answer("8".to_owned())]);
    assert_eq!(examples(&rows), [example(&[7, 8, 2], &[NO, 8, 2])]);
    assert_eq!(rows.kind(), Some(Kind::Answer));
}

#[test]
fn tokens_are_used_as_they_are_and_need_no_tokenizer() {
    let content = "\u{feff}{\"input_ids\": [9, 10, 11], \"labels\": [9, -100, 0]}";
    let folder = Folder::new(&[("d.jsonl", content.as_bytes())]);
    let rows = folder.open(&["d.jsonl"], None, &options()).unwrap();
    assert_eq!(examples(&rows), [example(&[9, 10, 11], &[9, NO, 0])]);
}

#[test]
fn the_summary_counts_what_was_cut() {
    let tokens = br#"{"input_ids": [9, 10, 11, 3, 4], "labels": [-100, -100, -100, -100, 4]}"#;
    let words = b"{\"text\": \"the cat\"}\n{\"text\": \"the cat sat on\"}\n";
    let folder = Folder::new(&[("a.jsonl", tokens), ("b.jsonl", words)]);
    let options = Options {
        max_length: count(4),
        ..options()
    };
    let rows = folder
        .open(&["b.jsonl", "*.jsonl"], Some(&tokenizer()), &options)
        .unwrap();
    let file = |name, pattern, kind, rows| FileSummary {
        path: folder.path(name),
        pattern,
        kind,
        rows,
        per_epoch: rows,
    };
    let expected = Summary {
        // Patterns keep their order, the matches of one are sorted.
        files: vec![
            file("b.jsonl", 0, Kind::Text, 2),
            file("a.jsonl", 1, Kind::Tokens, 1),
            file("b.jsonl", 1, Kind::Text, 2),
        ],
        rows: 5,
        truncated: 3,
        unsupervised: 1,
        tokens: 5 * 4,
        supervised: 4 * 3,
        longest: 4,
    };
    assert_eq!(rows.summary(), &expected);
    assert_eq!(rows.kind(), None);
    assert_eq!(rows.rows(), count(5));
    assert_eq!(
        examples(&rows)[1],
        Example {
            ids: vec![1, 3, 4, 5],
            labels: vec![1, 3, 4, 5],
            truncated: true,
            ..Example::default()
        }
    );
    assert_eq!(examples(&rows)[2].labels, [NO; 4]);
}

#[test]
fn the_limit_stops_reading() {
    let folder = Folder::new(&[
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \"cat\"}\nnot read",
        ),
        ("b.jsonl", b""),
    ]);
    let limited = Options {
        limit: Some(count(2)),
        ..options()
    };
    let rows = folder
        .open(&["a.jsonl", "b.jsonl"], Some(&tokenizer()), &limited)
        .unwrap();
    assert_eq!(
        examples(&rows),
        [
            example(&[1, 7, 2], &[1, 7, 2]),
            example(&[1, 4, 2], &[1, 4, 2])
        ]
    );
}

#[test]
fn a_bracket_in_a_file_name_is_not_a_pattern() {
    let folder = Folder::new(&[("d[1].jsonl", b"{\"text\": \"a\"}")]);
    assert_eq!(
        folder
            .open(&["d[1].jsonl"], Some(&tokenizer()), &options())
            .unwrap()
            .rows(),
        count(1)
    );
}

proptest! {
    #[test]
    fn prompt_and_completion_are_joined_and_cut_on_the_right(
        prompt in prop::collection::vec(3u32..9, 0..12),
        completion in prop::collection::vec(3u32..9, 0..12),
        max_length in 1usize..30,
    ) {
        let words = ["the", "cat", "sat", "on", "a", "mat"];
        let text = |ids: &[u32]| ids.iter().map(|&id| words[id as usize - 3]).collect::<Vec<_>>().join(" ");
        // The first row keeps the data set supervised whatever is cut from the second.
        let content = format!(
            "{{\"prompt\": \"\", \"completion\": \"a mat\"}}\n{{\"prompt\": {:?}, \"completion\": {:?}}}",
            text(&prompt), text(&completion),
        );
        let max_length = max_length.max(2);
        let rows = read(&content, &Options { max_length: count(max_length), ..options() });
        let whole: Vec<u32> = prompt.iter().chain(&completion).copied().chain([2]).collect();
        let length = whole.len().min(max_length);
        let row = &examples(&rows)[1];
        prop_assert_eq!(&row.ids, &whole[..length]);
        prop_assert_eq!(row.truncated, whole.len() > max_length);
        for (i, &label) in row.labels.iter().enumerate() {
            prop_assert_eq!(label, if i < prompt.len() { NO } else { whole[i] as i32 });
        }
        prop_assert_eq!(row.labels.len(), length);
        prop_assert_eq!(row.supervised(), length.saturating_sub(prompt.len().max(1)));
    }

    #[test]
    fn no_line_panics(line in "[\\[\\]{}\",:a-e0-9.\\-\\\\ ]{0,60}") {
        let folder = Folder::new(&[("d.jsonl", line.as_bytes())]);
        prop_assert!(folder.open(&["d.jsonl"], Some(&tokenizer()), &options()).is_err());
    }
}

#[test]
fn instructions_are_written_as_alpaca_was_trained() {
    let content = r#"{"instruction": "the cat", "input": "on a mat", "output": "sat"}
{"instruction": "the cat", "input": "", "output": "sat"}
{"output": "sat", "instruction": "the cat"}"#;
    let rows = read(content, &options());
    assert_eq!(rows.kind(), Some(Kind::Instruction));
    let prompt = "Below is an instruction that describes a task, paired with an input that provides further context. \
        Write a response that appropriately completes the request.\n\n### Instruction:\nthe cat\n\n### Input:\non a mat\n\n\
        ### Response:";
    let bare = "Below is an instruction that describes a task. \
        Write a response that appropriately completes the request.\n\n### Instruction:\nthe cat\n\n### Response:";
    let expected = |prompt: &str| {
        let row = serde_json::json!({"prompt": prompt, "completion": "sat"}).to_string();
        examples(&read(&row, &options()))[0].clone()
    };
    let (with, without) = (expected(prompt), expected(bare));
    assert_eq!(examples(&rows), [with, without.clone(), without]);
}
