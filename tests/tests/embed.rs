//! `lowrank embed`, and with it the tokens and hidden states of all-MiniLM-L6-v2, if `cargo xtask fetch` has brought it:
//! equal to transformers (`tests/parity/minilm.py` made the files).
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a file that should be there fails the test, and a test that is not run says so"
)]

use candle_core::{DType, Device, Tensor};
use lowrank::adapter::{Ask, Pass, Selection, run};
use lowrank::data::{Example, Options, read_texts};
use lowrank::models::{Head, Precision};
use lowrank::{Base, StrictBase, load_adapter, training};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

const ZOO: &str = "../../../crates/models/tests/golden/zoo";

fn size(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

/// A model with a tokenizer of words, and texts of several lengths, one of them a pair, one with a label.
fn place(model: &str, vocab: usize) -> Place {
    let place = Place::new();
    place.copy(model, "model");
    place.add_tokenizer("model", vocab);
    place.write(
        "texts.jsonl",
        "{\"text\":\"w5 w17 w3\"}\n{\"text\":\"w9\"}\n\
         {\"text\":\"w30 w31 w8 w7 w6 w11 w20\",\"label\":\"x\"}\n\n{\"id\":4,\"text\":\"w4 w21 w22 w30\"}\n",
    );
    place
}

fn rows(place: &Place, name: &str) -> Vec<Vec<f64>> {
    let mut tensors = place.tensors(name);
    let tensor = tensors.remove("embeddings").unwrap();
    assert!(tensors.is_empty());
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// In f64, so that nothing but the rounding to the file's f32 is left to differ.
fn embed(place: &Place, arguments: &[&str]) -> (Value, Vec<Vec<f64>>) {
    let first = [
        "embed",
        "--model",
        "model",
        "--dtype",
        "f64",
        "--json",
        "--force",
        "--out",
        "e.safetensors",
    ];
    let report = place.run(&[&first, arguments].concat()).json();
    (report, rows(place, "e.safetensors"))
}

/// The hidden states of one row, alone.
fn states(base: &Base, selection: &Selection, row: &Example) -> Vec<Vec<f64>> {
    let batch = training::batch([row]).unwrap();
    let mut pass = Pass::evaluation(selection.clone());
    let hidden = run(base.model.as_ref(), &batch, &Ask::Hidden, None, &mut pass).unwrap();
    let hidden = hidden.get(0).unwrap().to_dtype(DType::F64).unwrap();
    hidden.to_vec2().unwrap()
}

fn mean(states: &[Vec<f64>]) -> Vec<f64> {
    let width = states[0].len();
    let sum = |column: usize| states.iter().map(|state| state[column]).sum::<f64>();
    (0..width)
        .map(|column| sum(column) / states.len() as f64)
        .collect()
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

/// Each number is the expected one, rounded to f32 once.
#[track_caller]
fn assert_rounded(got: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(got.len(), expected.len());
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            let error = (got - expected).abs();
            let most = f64::from(f32::EPSILON) / 2.0 * expected.abs() + 1e-9;
            assert!(error <= most, "row {row}: {got} against {expected}");
        }
    }
}

fn texts(place: &Place, base: &Base) -> Vec<Example> {
    let file = place.path("texts.jsonl").to_string_lossy().into_owned();
    let options = Options {
        max_length: size(512),
        end_token: None,
        vocab: base.info.vocab_size,
        limit: None,
    };
    read_texts(&[file], &base.tokenizer().unwrap(), &options).unwrap()
}

#[test]
fn hidden_states_are_pooled_in_the_order_of_the_rows() {
    for (model, vocab, head) in [
        ("models/plain", 97, Head::Language),
        (&format!("{ZOO}/bert"), 37, Head::None),
    ] {
        let place = place(model, vocab);
        let path = place.path("model").to_string_lossy().into_owned();
        let base = Base::open_with(&path, Precision::Cast(DType::F64), head).unwrap();
        let examples = texts(&place, &base);
        let lengths: Vec<usize> = examples.iter().map(|row| row.ids.len()).collect();
        assert_eq!(lengths, [3, 1, 7, 4]);
        let all: Vec<_> = examples
            .iter()
            .map(|row| states(&base, &Selection::none(), row))
            .collect();
        let means: Vec<_> = all.iter().map(|states| mean(states)).collect();
        let firsts: Vec<_> = all.iter().map(|states| states[0].clone()).collect();
        let lasts: Vec<_> = all
            .iter()
            .map(|states| states.last().unwrap().clone())
            .collect();

        let data = ["--data", "texts.jsonl"];
        let (report, found) = embed(&place, &data);
        assert_rounded(&found, &means);
        assert_eq!(report["out"], "e.safetensors");
        assert_eq!(report["rows"], 4);
        assert_eq!(report["dimensions"], base.info.hidden_size);
        assert_eq!(report["tokens"], 15);
        assert_eq!(report["truncated"], 0);
        assert_eq!(
            (&report["pooling"], &report["normalized"]),
            (&json!("mean"), &json!(false))
        );
        for batch in ["1", "3"] {
            let (_, found) = embed(&place, &[&data[..], &["--batch-size", batch]].concat());
            assert_rounded(&found, &means);
        }
        let (report, found) = embed(&place, &[&data[..], &["--normalize"]].concat());
        assert_eq!(report["normalized"], true);
        let units: Vec<_> = means.iter().map(|vector| unit(vector)).collect();
        assert_rounded(&found, &units);
        let (_, found) = embed(&place, &[&data[..], &["--pooling", "cls"]].concat());
        assert_rounded(&found, &firsts);
        let (_, found) = embed(&place, &[&data[..], &["--pooling", "last"]].concat());
        assert_rounded(&found, &lasts);
        let (report, found) = embed(
            &place,
            &[&data[..], &["--limit", "2", "--max-length", "2"]].concat(),
        );
        assert_eq!(
            (&report["truncated"], &report["tokens"]),
            (&json!(1), &json!(3))
        );
        assert_rounded(&found[1..], &means[1..2]);
    }
}

/// The classifiers that PEFT trained (parity/classify.py) change what their bases make of texts.
#[test]
fn adapters_of_classifiers_take_part() {
    for (base, adapter) in [("bert", "bert"), ("bert", "bert_regression")] {
        let place = place(&format!("classify/models/{base}"), 37);
        place.copy(&format!("classify/{adapter}/adapter_final"), "adapter");
        let labels = if adapter == "bert" { 3 } else { 1 };
        let head = Head::Classes {
            num_labels: size(labels),
            seed: 9,
        };
        let path = place.path("model").to_string_lossy().into_owned();
        let mut base = Base::open_with(&path, Precision::Cast(DType::F64), head).unwrap();
        drop(load_adapter(&mut base, "style", &place.path("adapter"), StrictBase::No).unwrap());
        let examples = texts(&place, &base);
        let pooled = |selection: &Selection| -> Vec<_> {
            examples
                .iter()
                .map(|row| mean(&states(&base, selection, row)))
                .collect()
        };
        let expected = pooled(&Selection::one("style"));
        let data = ["--data", "texts.jsonl"];
        let (_, found) = embed(&place, &[&data[..], &["--adapter", "adapter"]].concat());
        assert_rounded(&found, &expected);
        let (_, found) = embed(&place, &data);
        assert_rounded(&found, &pooled(&Selection::none()));
        assert!((found[0][0] - expected[0][0]).abs() > 1e-4);
    }
}

#[test]
fn texts_are_cut_where_the_encoder_was_made_for() {
    let place = place(&format!("{ZOO}/bert"), 37);
    let embed = [
        "embed",
        "--model",
        "model",
        "--data",
        "texts.jsonl",
        "--json",
        "--force",
        "--out",
        "e",
    ];
    let whole = place.run(&embed).json();
    assert_eq!(whole["truncated"], 0);
    place.write("model/sentence_bert_config.json", "{\"max_seq_length\": 2}");
    let cut = place.run(&embed).json();
    let asked = place
        .run(&[&embed[..], &["--max-length", "2"]].concat())
        .json();
    assert_ne!(cut["truncated"], 0);
    assert_eq!(
        (&cut["truncated"], &cut["tokens"]),
        (&asked["truncated"], &asked["tokens"])
    );
    let asked = place
        .run(&[&embed[..], &["--max-length", "30"]].concat())
        .json();
    assert_eq!(asked["tokens"], whole["tokens"]);
    place.write("model/sentence_bert_config.json", "{\"max_seq_length\": 0}");
    place.refuses(
        &embed,
        2,
        &["`max_seq_length` is 0, expected a number of tokens above 0"],
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let place = place(&format!("{ZOO}/bert"), 37);
    let check = |more: &[&str], code: i32, fragments: &[&str]| {
        let first = ["embed", "--model", "model"];
        place.refuses(&[&first, more].concat(), code, fragments);
    };
    let texts = ["--data", "texts.jsonl"];
    let with = |more: &[&'static str]| [&texts[..], more].concat();
    place.write("there.safetensors", "mine");
    check(
        &with(&["--out", "there.safetensors"]),
        2,
        &["error: --out there.safetensors: the file exists; --force replaces it"],
    );
    assert_eq!(place.text("there.safetensors"), "mine");
    check(
        &with(&["--out", "texts.jsonl", "--force"]),
        2,
        &["error: --out texts.jsonl: this would overwrite what is read"],
    );
    check(
        &with(&["--out", "model/model.safetensors", "--force"]),
        2,
        &["error: --out model/model.safetensors: this would overwrite what is read"],
    );
    check(
        &with(&["--out", "no/e.safetensors"]),
        2,
        &["error: --out no/e.safetensors: expected a file in a folder that exists"],
    );
    check(
        &with(&["--out", "e.safetensors", "--max-length", "31"]),
        2,
        &["error: --max-length 31: the model reads at most 30 tokens (`max_position_embeddings`)"],
    );
    for (row, message) in [
        ("{\"txt\":\"w4\"}", "bad.jsonl:1: "),
        (
            "{\"text\":7}",
            "bad.jsonl:1: `text` is 7, expected a string",
        ),
        ("[1]", "bad.jsonl:1: "),
        ("{\"text\":\"\"}", "bad.jsonl:1: "),
        ("{\"text\":\"w4\",\"text_pair\":null}", "bad.jsonl:1: "),
        ("", "data file `bad.jsonl` has no rows"),
    ] {
        place.write("bad.jsonl", format!("{row}\n"));
        check(
            &["--data", "bad.jsonl", "--out", "e.safetensors"],
            1,
            &[message],
        );
    }
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    check(&with(&["--out", "e.safetensors"]), 1, &["tokenizer.json"]);
}

/// An encoder has nothing to say where a text goes on, and says that.
#[test]
fn encoders_do_not_continue_texts() {
    let place = place(&format!("{ZOO}/bert_mlm"), 37);
    place.refuses(
        &["generate", "--model", "model", "--prompt", "w5 w6"],
        1,
        &["a bert reads texts as a whole and cannot continue them"],
    );
    place.write("plain.jsonl", "{\"text\":\"w5 w6\"}\n");
    place.refuses(
        &["eval", "--model", "model", "--data", "plain.jsonl"],
        2,
        &["plain.jsonl: rows {\"text\"} are for models that continue texts, and a bert reads texts as a whole"],
    );
    place.copy(&format!("{ZOO}/bert"), "bare");
    place.refuses(
        &["eval", "--model", "bare", "--data", "plain.jsonl"],
        1,
        &["there is no `cls.predictions`, the head that predicts tokens"],
    );
}

fn minilm() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/all-MiniLM-L6-v2");
    if !folder.join("config.json").exists() {
        eprintln!("not run: all-MiniLM-L6-v2 is missing, `cargo xtask fetch` brings it");
        return None;
    }
    Some(folder)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("parity/minilm")
        .join(name)
}

#[test]
fn ten_texts_have_the_tokens_of_transformers() {
    let Some(folder) = minilm() else { return };
    let base = Base::open_with(&folder.to_string_lossy(), Precision::AsStored, Head::None).unwrap();
    let options = Options {
        max_length: size(256),
        end_token: None,
        vocab: base.info.vocab_size,
        limit: None,
    };
    let file = golden("texts.jsonl").to_string_lossy().into_owned();
    let rows = read_texts(&[file], &base.tokenizer().unwrap(), &options).unwrap();
    let expected = std::fs::read_to_string(golden("tokens.json")).unwrap();
    let expected: Vec<Value> = serde_json::from_str(&expected).unwrap();
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(json!(row.ids), expected["input_ids"]);
        let none = vec![0; row.ids.len()];
        let types = if row.types.is_empty() {
            &none
        } else {
            &row.types
        };
        assert_eq!(json!(types), expected["token_type_ids"]);
    }
    let cut: Vec<bool> = rows.iter().map(|row| row.truncated).collect();
    assert_eq!(cut.iter().filter(|cut| **cut).count(), 1);
    assert!(cut[7]);
}

#[test]
fn ten_texts_have_the_embeddings_of_transformers() {
    let Some(folder) = minilm() else { return };
    let place = Place::new();
    let expected =
        candle_core::safetensors::load(golden("expected.safetensors"), &Device::Cpu).unwrap();
    let wide = |tensor: &Tensor| -> Vec<Vec<f64>> {
        tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
    };
    let apart = |one: &[Vec<f64>], other: &[Vec<f64>]| {
        let pairs = one.iter().flatten().zip(other.iter().flatten());
        pairs
            .map(|(one, other)| (one - other).abs())
            .fold(0.0, f64::max)
    };
    let model = folder.to_string_lossy().into_owned();
    let texts = golden("texts.jsonl").to_string_lossy().into_owned();
    for pooling in ["mean", "cls"] {
        let exact = wide(&expected[&format!("{pooling}64")]);
        let theirs = apart(&wide(&expected[pooling]), &exact);
        for dtype in ["f32", "f64"] {
            let out = format!("{pooling}.{dtype}");
            let arguments = [
                "embed",
                "--model",
                &model,
                "--data",
                &texts,
                "--out",
                &out,
                "--pooling",
                pooling,
                "--dtype",
                dtype,
                "--max-length",
                "256",
                "--batch-size",
                "4",
            ];
            drop(place.run(&arguments).ok());
            let found = rows(&place, &out);
            assert_eq!((found.len(), found[0].len()), (10, 384));
            let ours = apart(&found, &exact);
            eprintln!("{pooling} in {dtype}: {ours:e}, transformers in f32: {theirs:e}");
            if dtype == "f64" {
                // What is written is f32 whatever was computed in.
                assert_rounded(&found, &exact);
            } else {
                let what = format!("{pooling} in f32: {ours:e}, {theirs:e} of transformers");
                assert!(ours <= 3.0 * theirs && ours < 2e-4, "{what}");
            }
        }
    }
}
