//! Rows of CSV, TSV and Parquet files: the same as those of JSON lines, or refused with file and line.

use crate::helpers::{Folder, examples, options, tokenizer};
use lowrank_data::{Dataset, Kind, Reference};
use proptest::prelude::*;
use serde_json::{Value, json};

fn open(name: &str, content: &[u8]) -> Result<Dataset, String> {
    let folder = Folder::new(&[(name, content)]);
    folder
        .open(&[name], Some(&tokenizer()), &options())
        .map_err(|error| folder.message(&error))
}

fn same(name: &str, content: &[u8], rows: &[Value]) -> Dataset {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let expected = open("d.jsonl", lines.as_bytes()).unwrap();
    let found = open(name, content).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(examples(&found), examples(&expected));
    assert_eq!(found.references(), expected.references());
    assert_eq!(found.kind(), expected.kind());
    found
}

#[test]
fn cells_are_fields() {
    let rows = [
        json!({"prompt": "the cat, \"été\"", "completion": "sat\non"}),
        json!({"prompt": "", "completion": "mat"}),
        json!({"prompt": "a", "completion": ""}),
    ];
    let csv =
        "\u{feff}prompt, completion\r\n\"the cat, \"\"été\"\"\",\"sat\non\"\r\n\r\n,mat\r\na,\"\"";
    same("d.csv", csv.as_bytes(), &rows);
    // Tabs separate, and quotes are themselves.
    let rows = [
        json!({"text": "\"the cat"}),
        json!({"text": "a \"mat\", on"}),
    ];
    same("d.TSV", b"text\n\"the cat\n\na \"mat\", on\n", &rows);
}

#[test]
fn numbers_and_lists_are_typed() {
    let rows = [
        json!({"prompt": "a", "completion": "cat", "choices": ["cat", "mat"], "answer": 0}),
        json!({"prompt": "3", "completion": "cat", "choices": ["mat", "cat", "a"]}),
    ];
    let csv = "prompt,completion,choices,answer\na,cat,\"[\"\"cat\"\", \"\"mat\"\"]\", 0\n3,cat,\"[\"\"mat\"\",\"\"cat\"\",\"\"a\"\"]\",\n";
    let data = same("d.csv", csv.as_bytes(), &rows);
    assert!(
        matches!(&data.references()[0], Reference::Choices(choices) if choices.gold == Some(0))
    );
    // Without choices an answer is a text, also one that looks like a number.
    let rows = [json!({"prompt": "a", "completion": "cat", "answer": "18"})];
    same("d.csv", b"prompt,completion,answer\na,cat,18\n", &rows);
    let rows = [json!({"input_ids": [3, 4], "labels": [-100, 4]})];
    same("d.tsv", b"input_ids\tlabels\n[3, 4]\t[-100, 4]\n", &rows);
    let rows = [
        json!({"instruction": "the cat", "output": "sat"}),
        json!({"instruction": "a", "input": "mat", "output": "on"}),
    ];
    let data = same(
        "d.csv",
        b"instruction,input,output\nthe cat,,sat\na,mat,on",
        &rows,
    );
    assert_eq!(data.kind(), Some(Kind::Instruction));
}

#[test]
fn tables_that_are_none_are_refused_with_their_line() {
    let check = |name: &str, content: &[u8], message: &str| {
        assert_eq!(open(name, content).unwrap_err(), message);
    };
    check("d.csv", b"", "data file `d.csv` has no rows");
    check("d.csv", b"text\n\n", "data file `d.csv` has no rows");
    check(
        "d.csv",
        b"text\na\n\"b\n",
        "d.csv:3: a quote in the row that begins here is never closed (a quote inside quotes is written twice)",
    );
    check(
        "d.csv",
        b"text\n\"",
        "d.csv:2: a quote in the row that begins here is never closed (a quote inside quotes is written twice)",
    );
    check(
        "d.csv",
        b"\"text",
        "d.csv:1: a quote in the row that begins here is never closed (a quote inside quotes is written twice)",
    );
    check(
        "d.csv",
        b"text\n\n\"a\nb\"\nc,d\n",
        "d.csv:5: the line has 2 cells, and the header 1",
    );
    check(
        "d.csv",
        b"prompt,completion\na,b\nc\n",
        "d.csv:3: the line has 1 cells, and the header 2",
    );
    let wide = format!("text\n{}", ",".repeat(100_000));
    check(
        "d.csv",
        wide.as_bytes(),
        "d.csv:2: the line has 1025 cells, and the header 1",
    );
    check(
        "d.csv",
        b"text,text\na,b\n",
        "d.csv:1: the field `text` is written twice",
    );
    check("d.csv", b"text\n\xff\n", "d.csv:2: `text` is not UTF-8");
    check("d.csv", b"\xff\na\n", "d.csv:1: `header` is not UTF-8");
    check(
        "d.csv",
        b"text,\na,b\n",
        "d.csv:2: unknown field `` in a row {\"text\"}",
    );
    check(
        "d.csv",
        b"input_ids,labels\nx,\"[1]\"\n",
        "d.csv:2: `input_ids` is a string, expected a list of integers",
    );
    check(
        "d.tsv",
        b"prompt\tcompletion\tchoices\na\tcat\t[\"cat\"\n",
        "d.tsv:2: `choices` is a string, expected a list of strings",
    );
    check(
        "d.csv",
        b"prompt,completion,choices,answer\na,cat,\"[\"\"cat\"\"]\",first\n",
        "d.csv:2: `answer` is a string, expected the index of a choice",
    );
    let error = open("d.csv", b"a;b\n1;2\n").unwrap_err();
    assert!(
        error.starts_with("d.csv:2: a row with `a;b` is of no known kind: expected "),
        "{error}"
    );
}

#[test]
fn a_quote_without_end_does_not_fill_the_memory() {
    let folder = Folder::new(&[]);
    let mut content = std::fs::File::create(folder.path("d.csv")).unwrap();
    std::io::Write::write_all(&mut content, b"text\n\"").unwrap();
    content.set_len(1 << 40).unwrap();
    let error = folder.open(&["d.csv"], Some(&tokenizer()), &options());
    assert_eq!(
        folder.message(&error.unwrap_err()),
        "d.csv:2: the line is longer than 67108864 bytes: each row is one JSON object on a line of its own"
    );
}

/// A file that pyarrow wrote (`tests/golden/parquet.py`).
fn golden(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/parquet");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

#[test]
fn columns_are_fields() {
    let texts = [
        json!({"text": "the cat"}),
        json!({"text": ""}),
        json!({"text": "a mat"}),
    ];
    let texts: Vec<Value> = texts.iter().cycle().take(1200).cloned().collect();
    same("d.parquet", &golden("texts.parquet"), &texts);
    let tokens = [
        json!({"input_ids": [3, 4], "labels": [-100, 4]}),
        json!({"input_ids": [5, 6, 7], "labels": [5, -100, 7]}),
        json!({"input_ids": [8], "labels": [8]}),
    ];
    same("d.parquet", &golden("tokens.parquet"), &tokens);
    let choices =
        [json!({"prompt": "a", "completion": "cat", "choices": ["cat", "mat"], "answer": 0})];
    same("d.parquet", &golden("choices.parquet"), &choices);
}

#[test]
fn columns_hold_chats() {
    let source = "{% for m in messages %}{{ '<s> ' + m.name | default('nobody') + ' ' + m.content + ' </s> ' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<s> nobody ' }}{% endif %}";
    let config = json!({"chat_template": source});
    let template = lowrank_data::ChatTemplate::from_config(config.as_object().unwrap(), "the test");
    let tokenizer = tokenizer().with_chat_template(template.map_err(|error| error.to_string()));
    let folder = Folder::new(&[("d.parquet", &golden("chats.parquet"))]);
    let data = folder
        .open(&["d.parquet"], Some(&tokenizer), &options())
        .unwrap();
    let examples = examples(&data);
    let [first, second, third] = examples.as_slice() else {
        panic!("{data:?}")
    };
    // A name that is null is not there.
    assert_eq!(first.ids, [1, 0, 7, 8, 2, 1, 0, 3, 4, 2]);
    assert_eq!(first.labels[..7], [-100; 7]);
    assert_eq!(first.labels[7..], [3, 4, 2]);
    assert_eq!(second.ids, [1, 0, 11, 2, 1, 7, 2, 1, 0, 5, 2]);
    assert_eq!(second.labels[9..], [5, 2]);
    assert_eq!(third.ids, [1, 0, 6, 2]);
    assert_eq!(third.labels, [-100, -100, 6, 2]);
}

#[test]
fn parquet_files_that_do_not_fit_are_refused() {
    let check = |name: &str, message: &str| {
        assert_eq!(open("d.parquet", &golden(name)).unwrap_err(), message);
    };
    check(
        "number.parquet",
        "d.parquet:1: `text` is 3, expected a string",
    );
    check(
        "null.parquet",
        "d.parquet:2: the field `text` is missing in a row {\"text\"}",
    );
    check("empty.parquet", "data file `d.parquet` has no rows");
    check(
        "time.parquet",
        "`d.parquet` cannot be read as a Parquet file: row 1: `when` holds dates, times or decimal fractions, which no row has",
    );
    let error = open("d.parquet", &golden("zstd.parquet")).unwrap_err();
    assert!(error.contains("zstd"), "{error}");
    assert!(
        error.ends_with("; write it with Snappy, with gzip or uncompressed"),
        "{error}"
    );
    let whole = golden("texts.parquet");
    assert_eq!(
        open("d.parquet", &whole[..whole.len() - 5]).unwrap_err(),
        "`d.parquet` cannot be read as a Parquet file: it does not end as one does: it was cut off, or is something else"
    );
    for content in [
        &b""[..],
        b"PAR1",
        b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n",
        b"PAR1\xff\xff\xff\xffPAR1",
    ] {
        let error = open("d.parquet", content).unwrap_err();
        assert!(
            error.starts_with("`d.parquet` cannot be read as a Parquet file: "),
            "{error}"
        );
    }
}

fn cell() -> impl Strategy<Value = String> {
    // What a CSV file must quote, and words.
    prop::collection::vec(
        prop::sample::select(vec![
            "the", "cat", " ", ",", "\"", "\n", "\r\n", "\t", "été", "'",
        ]),
        0..8,
    )
    .prop_map(|pieces| pieces.concat())
}

fn quoted(cell: &str, always: bool) -> String {
    if always || cell.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

proptest! {
    #[test]
    fn a_table_gives_the_rows_of_json(
        rows in prop::collection::vec((cell(), cell()), 1..6),
        always: bool,
        turned: bool,
        end in prop::sample::select(vec!["\n", "\r\n"]),
    ) {
        let mut csv = if turned { "completion,prompt" } else { "prompt,completion" }.to_owned();
        let mut lines = String::from("{\"prompt\": \"a\", \"completion\": \"mat\"}\n");
        csv.push_str(if turned { "\nmat,a\n" } else { "\na,mat\n" });
        for (prompt, completion) in &rows {
            let (first, second) = if turned { (completion, prompt) } else { (prompt, completion) };
            csv += &format!("{},{}{end}", quoted(first, always), quoted(second, always));
            lines += &format!("{}\n", json!({"prompt": prompt, "completion": completion}));
        }
        let (csv, lines) = (open("d.csv", csv.as_bytes()).unwrap(), open("d.jsonl", lines.as_bytes()).unwrap());
        prop_assert_eq!(examples(&csv), examples(&lines));
    }

    #[test]
    fn no_table_panics(content in "(text|prompt,completion|label)\r?\n[\",a\n\r\t \\[\\]0-9é]{0,60}") {
        let _: Result<Dataset, String> = open("d.csv", content.as_bytes());
        let _: Result<Dataset, String> = open("d.tsv", content.as_bytes());
    }

    #[test]
    fn no_parquet_file_panics(
        name in prop::sample::select(vec!["chats.parquet", "tokens.parquet", "texts.parquet", "choices.parquet", "zstd.parquet"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut content = golden(name);
        for (at, byte) in changes {
            let at = at.index(content.len());
            content[at] = byte;
        }
        if let Some(cut) = cut {
            content.truncate(cut.index(content.len()));
        }
        let data = open("d.parquet", &content);
        let longest = data.iter().flat_map(examples).map(|example| example.ids.len()).max();
        prop_assert!(longest.is_none_or(|longest| longest <= 64));
    }
}
