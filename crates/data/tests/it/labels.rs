//! Rows with labels: tokens of texts and pairs as transformers has them, and what labels mean.

use crate::helpers::{Folder, count, options, tokenizer};
use lowrank_data::{Classes, Dataset, Expected, Kind, Options, Padded, Tokenizer, UNSUPERVISED};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/pairs.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().unwrap().iter();
    numbers
        .map(|number| u32::try_from(number.as_u64().unwrap()).unwrap())
        .collect()
}

fn check_cases(tokenizer: &Tokenizer, cases: &Value) {
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let length = usize::try_from(case["max_length"].as_u64().unwrap()).unwrap();
        let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str());
        let encoded = tokenizer.encode_template(text, pair, length).unwrap();
        assert_eq!(encoded.ids, numbers(&case["ids"]), "{case}");
        assert_eq!(encoded.types, numbers(&case["types"]), "{case}");
        assert_eq!(encoded.truncated, case["truncated"], "{case}");
    }
}

#[test]
fn texts_and_pairs_are_those_of_transformers() {
    let golden = golden();
    let text = golden["tokenizer"].to_string();
    let tokenizer = Tokenizer::from_bytes(text.as_bytes(), "pairs.json").unwrap();
    check_cases(&tokenizer, &golden["small"]);
}

#[test]
fn texts_and_pairs_of_minilm_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("../../models/all-MiniLM-L6-v2");
    if !folder.exists() {
        eprintln!("not run: {} is missing", folder.display());
        return;
    }
    check_cases(
        &Tokenizer::from_folder(folder).unwrap(),
        &golden()["minilm"],
    );
}

fn open(files: &[(&str, &str)], expected: Expected<'_>) -> Result<Dataset, String> {
    let contents: Vec<_> = files
        .iter()
        .map(|(name, content)| (*name, content.as_bytes()))
        .collect();
    let folder = Folder::new(&contents);
    let paths: Vec<String> = files
        .iter()
        .map(|(name, _)| folder.path(name).to_str().unwrap().to_owned())
        .collect();
    let data = Dataset::open_with(&paths, Some(&tokenizer()), &options(), expected);
    data.map_err(|error| folder.message(&error))
}

fn rows(labels: &[Value]) -> String {
    let row = |label: &Value| format!("{}\n", json!({"text": "the cat", "label": label}));
    labels.iter().map(row).collect()
}

fn found(labels: &[Value]) -> Result<Dataset, String> {
    open(&[("d.jsonl", &rows(labels))], Expected::Found(None))
}

fn labels(data: &Dataset) -> Vec<f64> {
    let rows = data.examples().iter();
    rows.map(|row| row.unwrap().label.unwrap()).collect()
}

#[test]
fn a_row_has_the_template_the_types_and_no_supervised_token() {
    let content = "{\"text\": \"the cat\", \"label\": 1}\n\
                   {\"label\": 0, \"text_pair\": \"sat on\", \"text\": \"a mat\"}\n";
    let data = open(&[("d.jsonl", content)], Expected::Found(None)).unwrap();
    assert_eq!(data.kind(), Some(Kind::Labelled));
    assert_eq!(data.classes(), Some(&Classes::new(count(2))));
    let rows: Vec<_> = data.examples().iter().map(Result::unwrap).collect();
    // No end token: the template is the tokenizer's, and nothing is added to it.
    assert_eq!(rows[0].ids, [1, 3, 4]);
    assert!(rows[0].types.is_empty());
    assert_eq!(rows[1].ids, [7, 8, 5, 6]);
    assert_eq!(rows[1].types, [0, 0, 1, 1]);
    assert_eq!((rows[0].label, rows[1].label), (Some(1.0), Some(0.0)));
    assert!(
        rows.iter()
            .all(|row| row.labels == vec![UNSUPERVISED; row.ids.len()])
    );
    assert_eq!(
        (data.summary().supervised, data.summary().unsupervised),
        (2, 0)
    );
    let padded = Padded::collate(rows.iter().map(AsRef::as_ref));
    assert_eq!(padded.types, Some(vec![0, 0, 0, 0, 0, 0, 1, 1]));
    assert_eq!(padded.row_labels, Some(vec![Some(1.0), Some(0.0)]));
    assert_eq!(padded.supervised(), 2);
}

#[test]
fn a_pair_is_cut_longest_first_and_counted() {
    let content = "{\"text\": \"the cat sat on a mat\", \"text_pair\": \"the mat\", \"label\": 1}\n\
                   {\"text\": \"the\", \"text_pair\": \"cat\", \"label\": 0}\n";
    let folder = Folder::new(&[("d.jsonl", content.as_bytes())]);
    let options = Options {
        max_length: count(5),
        ..options()
    };
    let data = folder
        .open(&["d.jsonl"], Some(&tokenizer()), &options)
        .unwrap();
    assert_eq!(data.examples().get(0).unwrap().ids, [3, 4, 5, 3, 8]);
    assert_eq!(data.summary().truncated, 1);
}

#[test]
fn integers_are_classes_up_to_the_highest_in_all_files() {
    let files = [
        ("a.jsonl", rows(&[json!(0), json!(1)])),
        ("b.jsonl", rows(&[json!(4)])),
    ];
    let files = files.each_ref().map(|(name, rows)| (*name, rows.as_str()));
    let data = open(&files, Expected::Found(None)).unwrap();
    assert_eq!(data.classes(), Some(&Classes::new(count(5))));
    assert_eq!(labels(&data), [0.0, 1.0, 4.0]);
    // A number that is given may be larger.
    let data = open(&files, Expected::Found(Some(count(7)))).unwrap();
    assert_eq!(data.classes(), Some(&Classes::new(count(7))));
}

#[test]
fn decimals_are_values() {
    let data = found(&[json!(0.5), json!(-2.25), json!(3.0)]).unwrap();
    let classes = data.classes().unwrap();
    assert!(classes.is_regression());
    assert_eq!(labels(&data), [0.5, -2.25, 3.0]);
    // Where it is known that labels are values, integers are values too.
    let expected = Expected::Found(Some(count(1)));
    let content = rows(&[json!(0.5), json!(3), json!(-4)]);
    let data = open(&[("d.jsonl", &content)], expected).unwrap();
    assert_eq!(labels(&data), [0.5, 3.0, -4.0]);
    assert!(data.classes().unwrap().is_regression());
}

#[test]
fn names_are_classes_in_alphabetical_order() {
    let names = ["neutral", "good", "bad", "good"].map(|name| json!(name));
    let data = found(&names).unwrap();
    assert_eq!(data.classes().unwrap().names(), ["bad", "good", "neutral"]);
    assert_eq!(labels(&data), [2.0, 1.0, 0.0, 1.0]);
    // A model that has names keeps its own order, and knows numbers too.
    let names = ["good", "bad"].map(str::to_owned).to_vec();
    let given = Classes::named(count(2), names).unwrap();
    let content = rows(&[json!("bad"), json!("good")]);
    let data = open(&[("d.jsonl", &content)], Expected::Given(&given)).unwrap();
    assert_eq!(labels(&data), [1.0, 0.0]);
    let content = rows(&[json!(0), json!(1)]);
    let data = open(&[("d.jsonl", &content)], Expected::Given(&given)).unwrap();
    assert_eq!(labels(&data), [0.0, 1.0]);
    assert_eq!(data.classes(), Some(&given));
    // More classes than names: what has no name gets transformers' word for it.
    let content = rows(&[json!("b"), json!("a")]);
    let data = open(&[("d.jsonl", &content)], Expected::Found(Some(count(3)))).unwrap();
    assert_eq!(data.classes().unwrap().names(), ["a", "b", "LABEL_2"]);
}

#[test]
fn integers_are_names_where_names_are_integers() {
    let named = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Classes::named(count(names.len()), names).unwrap()
    };
    let given = named(&["1", "2", "3"]);
    let table = "text,label\nthe cat,3\nthe cat,1\na mat,2\n";
    let data = open(&[("d.csv", table)], Expected::Given(&given)).unwrap();
    assert_eq!(labels(&data), [2.0, 0.0, 1.0]);
    let content = rows(&[json!(3), json!(1)]);
    let data = open(&[("d.jsonl", &content)], Expected::Given(&given)).unwrap();
    assert_eq!(labels(&data), [2.0, 0.0]);
    let refused = open(
        &[("d.csv", "text,label\nthe cat,0\n")],
        Expected::Given(&given),
    );
    assert_eq!(
        refused.unwrap_err(),
        "d.csv:2: `label` is \"0\", expected one of \"1\", \"2\", \"3\""
    );
    // One is enough; a name with zeros before it is found by its value, unless there is another of that value.
    let given = named(&["none", "007", "8"]);
    let table = "text,label\nthe cat,007\nthe cat,7\na mat,8\n";
    let data = open(&[("d.csv", table)], Expected::Given(&given)).unwrap();
    assert_eq!(labels(&data), [1.0, 1.0, 2.0]);
    let given = named(&["none", "08", "8"]);
    let table = "text,label\nthe cat,8\n";
    open(&[("d.csv", table)], Expected::Given(&given)).unwrap_err();
}

#[test]
fn names_are_as_many_as_classes_and_differ() {
    let named = |names: &[&str]| {
        Classes::named(
            count(2),
            names.iter().map(|name| (*name).to_owned()).collect(),
        )
    };
    assert!(named(&["a", "b"]).is_some());
    assert!(named(&["a", "a"]).is_none());
    assert!(named(&["a"]).is_none());
    assert!(named(&["a", "b", "a"]).is_none());
}

#[test]
fn labels_that_mean_nothing_are_refused_with_their_line() {
    let check = |labels: &[Value], message: &str| {
        assert_eq!(found(labels).unwrap_err(), format!("d.jsonl:{message}"));
    };
    let mixed = "expected labels of one form throughout (if they are values, write all of them with a decimal point or \
                 set `task.num_labels = 1`)";
    check(
        &[json!(1), json!(0), json!(0.5)],
        &format!(
            "3: `label` is a decimal number, but it is an integer in line 1 of `d.jsonl`: {mixed}"
        ),
    );
    check(
        &[json!("a"), json!(0)],
        &format!("2: `label` is an integer, but it is a name in line 1 of `d.jsonl`: {mixed}"),
    );
    check(
        &[json!(1), json!(-1)],
        "2: `label` is -1, expected a class from 0 (the value of a regression has a decimal point, unless `task.num_labels = 1` says that it is one)",
    );
    check(
        &[json!(1), json!(65_536)],
        "2: `label` is 65536, expected one of 65536 classes, 0 to 65535",
    );
    check(
        &[json!(1), json!(u64::MAX)],
        "2: `label` is 18446744073709551615, expected one of 65536 classes, 0 to 65535",
    );
    for (label, found) in [
        (json!(null), "null"),
        (json!(true), "true"),
        (json!([1]), "a list"),
        (json!({"class": 1}), "an object"),
    ] {
        check(
            &[json!(1), label],
            &format!("2: `label` is {found}, expected an integer, a decimal number or a string"),
        );
    }
}

#[test]
fn labels_that_are_no_class_of_the_model_are_refused() {
    let check = |label: Value, expected: Expected<'_>, message: &str| {
        let content = rows(&[label]);
        let refused = open(&[("d.jsonl", &content)], expected).unwrap_err();
        assert_eq!(refused, format!("d.jsonl:1: `label` is {message}"));
    };
    let two = Classes::new(count(2));
    let names = ["bad", "good"].map(str::to_owned).to_vec();
    let named = Classes::named(count(2), names).unwrap();
    let value = Classes::new(count(1));
    check(
        json!(2),
        Expected::Given(&two),
        "2, expected one of 2 classes, 0 to 1",
    );
    check(
        json!(2),
        Expected::Found(Some(count(2))),
        "2, expected one of 2 classes, 0 to 1",
    );
    check(
        json!(0.5),
        Expected::Given(&two),
        "0.5, expected one of 2 classes, 0 to 1",
    );
    check(
        json!("good"),
        Expected::Given(&two),
        "\"good\", but the model's classes have no names: expected their numbers",
    );
    check(
        json!("fine"),
        Expected::Given(&named),
        "\"fine\", expected one of \"bad\", \"good\"",
    );
    check(
        json!("good"),
        Expected::Given(&value),
        "a name, expected a number: one class stands for a value",
    );
    let content = rows(&["a", "b", "c"].map(|name| json!(name)));
    let refused = open(&[("d.jsonl", &content)], Expected::Found(Some(count(2)))).unwrap_err();
    assert_eq!(
        refused,
        "d.jsonl:3: `label` is \"c\", a name more than the 2 classes that there may be"
    );
}

#[test]
fn one_class_alone_is_refused() {
    let message = "every `label` from d.jsonl on is of one class: there is nothing to tell apart (if they are values, \
                   write them with a decimal point or set `task.num_labels = 1`)";
    assert_eq!(found(&[json!(0), json!(0)]).unwrap_err(), message);
    assert_eq!(found(&[json!("a"), json!("a")]).unwrap_err(), message);
    // Not if the number of classes is known.
    let content = rows(&[json!(0)]);
    open(&[("d.jsonl", &content)], Expected::Found(Some(count(2)))).unwrap();
}

#[test]
fn rows_that_are_not_whole_are_refused() {
    let check = |content: &str, message: &str| {
        let refused = open(&[("d.jsonl", content)], Expected::Found(None)).unwrap_err();
        assert_eq!(refused, format!("d.jsonl:{message}"));
    };
    let row = r#"{"text"[,"text_pair"],"label"}"#;
    check(
        r#"{"text": "a", "text_pair": "the"}"#,
        &format!("1: the field `label` is missing in a row {row}"),
    );
    check(
        r#"{"text": "a", "label": 1, "text_piar": "the"}"#,
        &format!("1: unknown field `text_piar` in a row {row} (did you mean `text_pair`?)"),
    );
    check(
        r#"{"text": ["a"], "label": 1}"#,
        "1: `text` is a list, expected a string",
    );
    check(
        r#"{"text": "a", "text_pair": 4, "label": 1}"#,
        "1: `text_pair` is 4, expected a string",
    );
    check(
        "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\"}",
        &format!(
            "2: the row is {{\"text\"}}, but line 1 made this a file of {row} rows: one kind a file"
        ),
    );
    // The template of pairs adds nothing, and neither has a text.
    check(
        r#"{"text": "", "text_pair": "", "label": 1}"#,
        "1: the row gives no tokens",
    );
}

#[test]
fn special_tokens_must_fit() {
    let content = rows(&[json!(0), json!(1)]);
    let golden = golden();
    let text = golden["tokenizer"].to_string();
    let tokenizer = Tokenizer::from_bytes(text.as_bytes(), "pairs.json").unwrap();
    let folder = Folder::new(&[("d.jsonl", content.as_bytes())]);
    let open = |max_length| {
        let options = Options {
            max_length: count(max_length),
            end_token: None,
            vocab: 200,
            limit: None,
        };
        folder.open(&["d.jsonl"], Some(&tokenizer), &options)
    };
    // [CLS] and [SEP] alone.
    assert_eq!(open(2).unwrap().examples().get(0).unwrap().ids, [2, 3]);
    assert_eq!(
        folder.message(&open(1).unwrap_err()),
        "d.jsonl:1: max_length is 1, which has no room for the 2 special tokens of this row"
    );
}

proptest! {
    /// Whatever the lengths: nothing longer than asked, all special tokens, and types in two runs.
    #[test]
    fn cut_pairs_keep_their_special_tokens(
        first in 0usize..40, second in 0usize..40, max_length in 3usize..50,
    ) {
        let golden = golden();
        let text = golden["tokenizer"].to_string();
        let tokenizer = Tokenizer::from_bytes(text.as_bytes(), "pairs.json").unwrap();
        let (a, b) = ("cat ".repeat(first), "mat ".repeat(second));
        let encoded = tokenizer.encode_template(&a, Some(&b), max_length).unwrap();
        prop_assert_eq!(encoded.ids.len(), (first + second + 3).min(max_length));
        prop_assert_eq!(encoded.truncated, first + second + 3 > max_length);
        prop_assert_eq!(encoded.ids.iter().filter(|&&id| id == 2).count(), 1);
        prop_assert_eq!(encoded.ids.iter().filter(|&&id| id == 3).count(), 2);
        prop_assert!(encoded.types.is_sorted());
        let ones = encoded.types.iter().filter(|&&kind| kind == 1).count();
        // Neither text is cut below half of the room while the other has more.
        let room = max_length - 3;
        prop_assert!(ones > second.min(room / 2));
    }
}
