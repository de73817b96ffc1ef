//! What is wrong is named: file, line, value, and what to do.

use crate::helpers::{Folder, count, options, tokenizer};
use lowrank_data::{Dataset, Error, Options, Problem};
use std::fs::File;

const KINDS: &str = r#"{"text"}, {"text"[,"text_pair"],"label"}, {"prompt","completion"[,"choices","answer"]}, {"messages"}, {"conversations"}, {"instruction","output"[,"input"]} or {"input_ids","labels"}"#;

/// Each file is refused with the message beside it.
fn check(cases: &[(&str, &str)]) {
    for (content, message) in cases {
        assert_eq!(
            refused(content.as_bytes(), &options()),
            format!("d.jsonl:{message}"),
            "{content}"
        );
    }
}

fn refused(content: &[u8], options: &Options) -> String {
    let folder = Folder::new(&[("d.jsonl", content)]);
    folder.message(
        &folder
            .open(&["d.jsonl"], Some(&tokenizer()), options)
            .unwrap_err(),
    )
}

#[test]
fn lines_that_are_no_object() {
    let hint = "(each row is one JSON object on a line of its own)";
    check(&[
        (
            "{\"text\": \"a\"}\n\n{\"text\": \"b\",}",
            &format!("3: not valid JSON at column 14: trailing comma {hint}"),
        ),
        (
            "{",
            &format!("1: not valid JSON at column 1: EOF while parsing an object {hint}"),
        ),
        (
            "{\"text\": \"a\"} {}",
            &format!("1: not valid JSON at column 15: trailing characters {hint}"),
        ),
        (
            "text",
            &format!("1: not valid JSON at column 2: expected ident {hint}"),
        ),
        (
            "[{\"text\": \"a\"}]",
            "1: expected a JSON object, found an array",
        ),
        ("\"text\"", "1: expected a JSON object, found a string"),
        ("3", "1: expected a JSON object, found a bare value"),
        (
            "{\"text\": \"a\", \"text\": \"b\"}",
            "1: the field `text` is written twice",
        ),
    ]);
    assert_eq!(
        refused(b"{}", &options()),
        format!("d.jsonl:1: a row with no fields is of no known kind: expected {KINDS}")
    );
    assert_eq!(
        refused(b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}", &options()),
        "d.jsonl:2: not UTF-8 at byte 11 of the line"
    );
    let deep = format!("{{\"text\": {}", "[".repeat(100_000));
    assert_eq!(
        refused(deep.as_bytes(), &options()),
        format!("d.jsonl:1: not valid JSON at column 136: recursion limit exceeded {hint}")
    );
}

#[test]
fn fields_that_do_not_fit() {
    check(&[
        (
            r#"{"promt": "a", "completon": "b"}"#,
            &format!(
                "1: a row with `promt`, `completon` is of no known kind: expected {KINDS} (did you mean `prompt`?)"
            ),
        ),
        (
            r#"{"prompt": "a", "completon": "b"}"#,
            r#"1: unknown field `completon` in a row {"prompt","completion"} (did you mean `completion`?)"#,
        ),
        (
            r#"{"prompt": "a", "completion": "b", "choises": []}"#,
            r#"1: unknown field `choises` in a row {"prompt","completion"} (did you mean `choices`?)"#,
        ),
        (
            r#"{"text": "a", "source": "b"}"#,
            r#"1: unknown field `source` in a row {"text"}"#,
        ),
        (
            "{\"text\": \"a\"}\n{\"Text\": \"b\"}",
            r#"2: unknown field `Text` in a row {"text"} (did you mean `text`?)"#,
        ),
        (
            r#"{"prompt": "a"}"#,
            r#"1: the field `completion` is missing in a row {"prompt","completion"}"#,
        ),
        (
            r#"{"labels": [1]}"#,
            r#"1: the field `input_ids` is missing in a row {"input_ids","labels"}"#,
        ),
        (
            "\n{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}",
            r#"3: the row is {"prompt","completion"}, but line 2 made this a file of {"text"} rows: one kind a file"#,
        ),
        (
            "{\"prompt\": \"a\", \"completion\": \"b\", \"choices\": [\"a\"]}\n{\"prompt\": \"a\", \"completion\": \"b\"}",
            "2: the row is {\"prompt\",\"completion\"}, but line 1 made this a file of \
             {\"prompt\",\"completion\",\"choices\",\"answer\"} rows: one kind a file",
        ),
    ]);
}

#[test]
fn kinds_that_are_planned() {
    check(&[(
        r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#,
        &format!(
            r#"1: rows {{"prompt","chosen","rejected"}} are not yet supported: expected {KINDS}"#
        ),
    )]);
}

#[test]
fn values_that_do_not_fit() {
    let choices = |choices: &str, answer: &str| {
        format!(r#"{{"prompt": "a", "completion": "b", "choices": {choices}, "answer": {answer}}}"#)
    };
    check(&[
        (r#"{"text": 3}"#, "1: `text` is 3, expected a string"),
        (
            r#"{"prompt": "a", "completion": null}"#,
            "1: `completion` is null, expected a string",
        ),
        (
            r#"{"prompt": "a", "completion": "b", "answer": 18}"#,
            "1: `answer` is 18, expected a string",
        ),
        (
            &choices("\"a\"", "0"),
            "1: `choices` is a string, expected a list of strings",
        ),
        (
            &choices("[\"a\", [true]]", "0"),
            "1: `choices[1]` is a list, expected a string",
        ),
        (&choices("[]", "0"), "1: `choices` is empty"),
        (
            &choices("[\"a\", \"\"]", "0"),
            "1: `choices[1]` gives no tokens, so it has no score",
        ),
        (
            &choices("[\"a\", \"b\"]", "2"),
            "1: `answer` is 2, but there are 2 choices: expected 0 to 1",
        ),
        (
            &choices("[\"a\", \"b\"]", "-1"),
            "1: `answer` is -1, but there are 2 choices: expected 0 to 1",
        ),
        (
            &choices("[\"a\", \"b\"]", "\"b\""),
            "1: `answer` is a string, expected the index of a choice",
        ),
        (
            &choices("[\"a\", \"b\"]", "0.5"),
            "1: `answer` is 0.5, expected the index of a choice",
        ),
        (
            r#"{"prompt": "", "completion": "b", "choices": ["a"], "answer": 0}"#,
            "1: `prompt` gives no tokens, so the first token of each choice has no score",
        ),
        (
            r#"{"input_ids": {}, "labels": []}"#,
            "1: `input_ids` is an object, expected a list of integers",
        ),
        (
            r#"{"input_ids": [1, 1.5], "labels": [1, 1]}"#,
            "1: `input_ids[1]` is 1.5, expected an integer",
        ),
        (
            "{\"input_ids\": [1, 2], \"labels\": [1, 2]}\n{\"input_ids\": [1, 2], \"labels\": [1, 2, 3]}",
            "2: `labels` has 3 entries and `input_ids` 2: expected the same length",
        ),
        (
            r#"{"input_ids": [1, 12], "labels": [1, 1]}"#,
            "1: token 12 at position 1 of `input_ids` is out of range: the model's vocabulary has 12 entries",
        ),
        (
            r#"{"input_ids": [-1, 2], "labels": [1, 1]}"#,
            "1: token -1 at position 0 of `input_ids` is out of range: the model's vocabulary has 12 entries",
        ),
        (
            r#"{"input_ids": [1, 2, 3], "labels": [1, -100, -101]}"#,
            "1: `labels[2]` is -101, expected -100 (unsupervised) or a token below 12",
        ),
        (
            r#"{"input_ids": [1, 2], "labels": [1, 4294967297]}"#,
            "1: `labels[1]` is 4294967297, expected -100 (unsupervised) or a token below 12",
        ),
        (
            r#"{"input_ids": [], "labels": []}"#,
            "1: the row gives no tokens",
        ),
    ]);
    let smaller = Options {
        vocab: 8,
        ..options()
    };
    assert_eq!(
        refused(b"{\"text\": \"the mat\"}", &smaller),
        "d.jsonl:1: token 8 at position 2 of `text` is out of range: the model's vocabulary has 8 entries"
    );
    assert_eq!(
        refused(
            b"{\"text\": \"a\"}",
            &Options {
                vocab: 2,
                ..options()
            }
        ),
        "the end token 2 is out of range: the model's vocabulary has 2 entries"
    );
}

#[test]
fn errors_carry_file_and_line() {
    let folder = Folder::new(&[("d.jsonl", b"\n{\"text\": 3}")]);
    match folder
        .open(&["d.jsonl"], Some(&tokenizer()), &options())
        .unwrap_err()
    {
        Error::Row {
            path,
            line: 2,
            problem: Problem::Type { place, .. },
        } => {
            assert_eq!((path, place.as_str()), (folder.path("d.jsonl"), "text"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn text_without_a_tokenizer() {
    let folder = Folder::new(&[("d.jsonl", b"{\"text\": \"a\"}")]);
    assert_eq!(
        folder.message(&folder.open(&["d.jsonl"], None, &options()).unwrap_err()),
        "d.jsonl:1: a row {\"text\"} needs a tokenizer, and the model has none: add its tokenizer.json or give \
         {\"input_ids\",\"labels\"} rows"
    );
}

#[test]
fn nothing_to_learn_from() {
    let folder = Folder::new(&[
        (
            "a.jsonl",
            b"{\"input_ids\": [1, 2, 3], \"labels\": [1, -100, 3]}",
        ),
        ("b.jsonl", b"\n \n"),
    ]);
    let two = Options {
        max_length: count(2),
        ..options()
    };
    let message = |names: &[&str], options: &Options| {
        folder.message(&folder.open(names, None, options).unwrap_err())
    };
    assert_eq!(
        message(&["a.jsonl"], &two),
        "nothing is supervised in `a.jsonl`: 1 rows, 1 of them cut at max_length = 2; raise max_length"
    );
    assert_eq!(
        message(&["a.jsonl", "b.jsonl"], &options()),
        "data file `b.jsonl` has no rows"
    );
    assert_eq!(
        Dataset::open(&[], None, &two).unwrap_err().to_string(),
        "no data files are given"
    );
}

#[test]
fn files_that_are_not_there() {
    let folder = Folder::new(&[("c.jsonl.gz", b"")]);
    std::fs::create_dir(folder.path("sub.jsonl")).unwrap();
    let message = |name: &str| folder.message(&folder.open(&[name], None, &options()).unwrap_err());
    let relative = "(paths are relative to the working directory)";
    assert_eq!(
        message("d.jsonl"),
        format!("data file `d.jsonl` does not exist {relative}")
    );
    assert_eq!(
        message("*.txt"),
        format!("data files `*.txt`: no file matches {relative}")
    );
    // A folder is not a file, whatever its name.
    assert_eq!(
        message("*.jsonl"),
        format!("data files `*.jsonl`: no file matches {relative}")
    );
    assert_eq!(
        message("sub.jsonl"),
        "data file `sub.jsonl` is a folder: name its files, for example `sub.jsonl/*.jsonl`"
    );
    assert_eq!(
        message("a[.csv"),
        "data files `a[.csv`: not a valid pattern: invalid range pattern"
    );
    assert!(
        message("c.jsonl.gz")
            .ends_with("`: compressed files are not yet supported: unpack the file")
    );
    assert_eq!(
        Dataset::open(&["hub:org/set/train.jsonl".to_owned()], None, &options())
            .unwrap_err()
            .to_string(),
        "data source `hub:org/set/train.jsonl`: data sets of the hub are not yet supported: download the file and give \
         its path"
    );
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let folder = Folder::new(&[]);
    // Sparse: a terabyte of zeros takes no space.
    File::create(folder.path("d.jsonl"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert_eq!(
        folder.message(&folder.open(&["d.jsonl"], None, &options()).unwrap_err()),
        "d.jsonl:1: the line is longer than 67108864 bytes: each row is one JSON object on a line of its own"
    );
}

#[test]
fn names_from_a_file_stay_short() {
    let content = format!("{{\"text\": \"a\", \"{}\\u001b\": 1}}", "x".repeat(1000));
    check(&[(
        &content,
        &format!(
            r#"1: unknown field `{}..` in a row {{"text"}}"#,
            "x".repeat(40)
        ),
    )]);
}
