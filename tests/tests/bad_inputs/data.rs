//! Rows: JSON lines, tokens, labels, texts.

use lowrank_tests::place::Place;

const TOKENS: &str = r#"{"input_ids":[5,6,7],"labels":[5,6,7]}"#;

/// Rows that can be neither evaluated nor trained on, nor trained with as held-out data.
fn check(rows: &str, expected: &str) {
    check_bytes(rows.as_bytes(), expected);
}

fn check_bytes(rows: &[u8], expected: &str) {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 99);
    place.write("bad.jsonl", rows);
    place.write(
        "run.toml",
        "[model]\nsource = \"model\"\n[data]\ntrain = [\"rows.jsonl\"]\n[output]\ndir = \"out\"\n",
    );
    place.refuses(
        &["eval", "--model", "model", "--data", "bad.jsonl"],
        1,
        &[&format!("error: {expected}")],
    );
    for key in ["train", "eval"] {
        let set = format!("data.{key}=[\"bad.jsonl\"]");
        let expected = format!("error: run.toml: `data.{key}`: {expected}");
        place.refuses(&["train", "run.toml", "--set", &set], 1, &[&expected]);
    }
}

/// The third line is wrong; a blank line counts.
fn check_row(row: &str, expected: &str) {
    check(
        &format!("{TOKENS}\n\n{row}\n{TOKENS}\n"),
        &format!("bad.jsonl:3: {expected}"),
    );
}

/// The first line is wrong.
fn check_first(row: &str, expected: &str) {
    check(&format!("{row}\n"), &format!("bad.jsonl:1: {expected}"));
}

#[test]
fn lines_that_are_no_rows() {
    check_row(
        "{\"input_ids\":[5,6,7],",
        "not valid JSON at column 21: EOF while parsing a value (each row is one JSON object on a line of its own)",
    );
    check_row("[5,6,7]", "expected a JSON object, found an array");
    check_row("7", "expected a JSON object, found a bare value");
    check_row(
        "{}",
        "the field `input_ids` is missing in a row {\"input_ids\",\"labels\"}",
    );
    check_row(
        r#"{"text":"w4"}"#,
        "the row is {\"text\"}, but line 1 made this a file of {\"input_ids\",\"labels\"} rows: one kind a file",
    );
    check_row(
        r#"{"input_ids":[5],"labels":[5],"labels":[6]}"#,
        "the field `labels` is written twice",
    );
    check_first(
        r#"{"txet":"w4 w5"}"#,
        "a row with `txet` is of no known kind: expected {\"text\"}, ",
    );
    check_first(
        r#"{"prompt":"w4","completion":"w5","choises":["w5"]}"#,
        "unknown field `choises` in a row {\"prompt\",\"completion\"} (did you mean `choices`?)",
    );
    check_first(
        r#"{"messages":[{"role":"usr","content":"w4"}]}"#,
        "`messages[0].role` is \"usr\", expected one of assistant, ",
    );
    check_first(
        r#"{"messages":[{"role":"user","content":"w4"}]}"#,
        "model has no chat template: expected `chat_template` in tokenizer_config.json, ",
    );
    check_first(r#"{"text":7}"#, "`text` is 7, expected a string");
    check_bytes(
        b"{\"text\":\"w4 \xff\"}\n",
        "bad.jsonl:1: not UTF-8 at byte 13 of the line",
    );
}

#[test]
fn files_without_rows() {
    check("", "data file `bad.jsonl` has no rows");
    check("\n \n\t\n", "data file `bad.jsonl` has no rows");
}

#[test]
fn tokens_and_labels() {
    let row = |ids: &str, labels: &str| format!("{{\"input_ids\":{ids},\"labels\":{labels}}}");
    let vocabulary = "the model's vocabulary has 97 entries";
    check_row(
        &row("[5,97]", "[5,6]"),
        &format!("token 97 at position 1 of `input_ids` is out of range: {vocabulary}"),
    );
    check_row(
        &row("[-1,6]", "[5,6]"),
        &format!("token -1 at position 0 of `input_ids` is out of range: {vocabulary}"),
    );
    check_row(
        &row("[5,6.5]", "[5,6]"),
        "`input_ids[1]` is 6.5, expected an integer",
    );
    check_row(
        &row("[5,6,7]", "[5,6]"),
        "`labels` has 2 entries and `input_ids` 3: expected the same length",
    );
    check_row(
        &row("[5,6]", "[5,-99]"),
        "`labels[1]` is -99, expected -100 (unsupervised) or a token below 97",
    );
    check_row(
        &row("[5,6]", "[5,97]"),
        "`labels[1]` is 97, expected -100 (unsupervised) or a token below 97",
    );
    check_row(&row("[]", "[]"), "the row gives no tokens");
    check_first(
        r#"{"text":"w4 w98"}"#,
        &format!("token 98 at position 1 of `text` is out of range: {vocabulary}"),
    );
}

#[test]
fn nothing_supervised() {
    let unsupervised = r#"{"input_ids":[5,6,7],"labels":[5,-100,-100]}"#;
    check(
        &format!("{unsupervised}\n{unsupervised}\n"),
        "nothing is supervised in `bad.jsonl`: 2 rows, 0 of them cut at max_length = 512; expected a token behind the first that is \
         predicted: one of `labels` that is not -100, a completion, or a turn of the assistant",
    );
    let place = Place::with_model("plain");
    place.refuses(
        &[
            "eval",
            "--model",
            "model",
            "--data",
            "rows.jsonl",
            "--max-length",
            "2",
        ],
        1,
        &["nothing is supervised in `rows.jsonl`: 24 rows, 24 of them cut at max_length = 2;"],
    );
}

#[test]
fn choices() {
    let row = |prompt: &str, choices: &str, answer: &str| {
        format!(
            r#"{{"prompt":"{prompt}","completion":"w5","choices":{choices},"answer":{answer}}}"#
        )
    };
    check_first(&row("w4", "[]", "0"), "`choices` is empty");
    check_first(
        &row("w4", r#"["w5","w6"]"#, "2"),
        "`answer` is 2, but there are 2 choices: expected 0 to 1",
    );
    check_first(
        &row("w4", r#"["w5","w6"]"#, "-1"),
        "`answer` is -1, but there are 2 choices: expected 0 to 1",
    );
    check_first(
        &row("w4", r#"["w5","w6"]"#, r#""w5""#),
        "`answer` is a string, expected the index of a choice",
    );
    check_first(
        &row("w4", r#"["w5",""]"#, "0"),
        "`choices[1]` gives no tokens, so it has no score",
    );
    check_first(
        &row("", r#"["w5","w6"]"#, "0"),
        "`prompt` gives no tokens, so the first token of each choice has no score",
    );
    check_first(
        &row("w4", r#"["w5",6]"#, "0"),
        "`choices[1]` is 6, expected a string",
    );
}

#[test]
fn tokenizers() {
    let check = |tokenizer: Option<&str>, expected: &str| {
        let place = Place::with_model("plain");
        if let Some(text) = tokenizer {
            place.write("model/tokenizer.json", text);
        }
        place.write("text.jsonl", "{\"text\":\"w4 w5\"}\n");
        place.refuses(
            &["eval", "--model", "model", "--data", "text.jsonl"],
            1,
            &[expected],
        );
    };
    check(
        None,
        "text.jsonl:1: a row {\"text\"} needs a tokenizer, and the model has none: add its tokenizer.json or give {\"input_ids\",\"labels\"} rows",
    );
    check(
        Some("{\"model\": 3}"),
        "tokenizer `model/tokenizer.json`: not a tokenizer file: ",
    );
    check(
        Some(""),
        "tokenizer `model/tokenizer.json`: not a tokenizer file: EOF while parsing a value at line 1 column 0",
    );
    // The library panics on a template whose tokens it does not know.
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 90);
    let template = serde_json::json!({"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
        "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    place.edit_json("model/tokenizer.json", |file| {
        file.insert("post_processor".into(), template);
    });
    check(
        Some(&place.text("model/tokenizer.json")),
        "tokenizer `model/tokenizer.json`: ",
    );
    // Rows of tokens need none.
    let arguments = ["eval", "--model", "model", "--data", "rows.jsonl"];
    assert_eq!(place.run(&arguments).ok().stderr, "");
}

#[test]
fn sources() {
    let place = Place::with_model("plain");
    place.write("folder/rows.csv", "text,label\nw4\n");
    place.write("folder/rows.parquet", "PAR1 no more");
    place.write("folder/rows.jsonl.gz", "");
    let check = |data: &str, expected: &str| {
        place.refuses(
            &["eval", "--model", "model", "--data", data],
            1,
            &[expected],
        );
    };
    let relative = "(paths are relative to the working directory)";
    check(
        "none.jsonl",
        &format!("data file `none.jsonl` does not exist {relative}"),
    );
    check(
        "none*.jsonl",
        &format!("data files `none*.jsonl`: no file matches {relative}"),
    );
    check(
        "folder",
        "data file `folder` is a folder: name its files, for example `folder/*.jsonl`",
    );
    check(
        "folder/rows.csv",
        "folder/rows.csv:2: the line has 1 cells, and the header 2",
    );
    check(
        "folder/rows.parquet",
        "`folder/rows.parquet` cannot be read as a Parquet file: ",
    );
    check(
        "folder/rows.jsonl.gz",
        "data source `folder/rows.jsonl.gz`: compressed files are not yet supported: unpack the file",
    );
    check(
        "hub:org/set/x.jsonl",
        "error: data set `org/set` of the hub, revision `main`: is not in the cache ",
    );
}

#[test]
fn rows_that_are_longer_than_the_model_reads() {
    let ids: Vec<u32> = (0..130).map(|i| 3 + i % 90).collect();
    check(
        &format!("{{\"input_ids\":{ids:?},\"labels\":{ids:?}}}\n"),
        "a row of `bad.jsonl` has 130 tokens, more than the model's limit of 128 (`max_position_embeddings`); \
         lower the maximal length to 128 to cut such rows",
    );
}
