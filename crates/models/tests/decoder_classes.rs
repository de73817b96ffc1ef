//! The classes that transformers has for decoders: checkpoints of each, read as each.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::Tensor;
use common::{
    Memory, assert_near, config, evaluate, logits, object, plain, rectangle, rich, rows, text,
    windowed, with,
};
use lowrank_adapter::{Ask, Model, Part};
use lowrank_models::{Head, Precision, load};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

fn open(json: &Value, weights: &Memory, head: Head) -> Box<dyn Model> {
    load(
        object(json),
        "config.json",
        weights,
        Precision::AsStored,
        head,
    )
    .unwrap()
}

fn refused(json: &Value, weights: &Memory, head: Head) -> String {
    let opened = load(
        object(json),
        "config.json",
        weights,
        Precision::AsStored,
        head,
    );
    opened.map(drop).unwrap_err().to_string()
}

fn classes(num_labels: usize) -> Head {
    Head::Classes {
        num_labels: NonZeroUsize::new(num_labels).unwrap(),
        seed: 5,
    }
}

/// As the class without a head is saved.
fn bare(weights: &Memory) -> Memory {
    let tensors = weights
        .0
        .iter()
        .filter(|(name, _)| !name.starts_with("lm_head"));
    let inner = |name: &str| name.strip_prefix("model.").unwrap().to_owned();
    Memory(
        tensors
            .map(|(name, tensor)| (inner(name), tensor.clone()))
            .collect(),
    )
}

fn hidden(model: &dyn Model, texts: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let batch = rectangle(texts, 7);
    rows(&evaluate(model, &batch, &Ask::Hidden).flatten(0, 1).unwrap())
}

#[test]
fn checkpoints_with_and_without_a_head_are_read_with_and_without_one() {
    for json in [plain(), windowed()] {
        let weights = Memory::random(&config(&json), 31);
        let texts = [text(7, 23, 1), text(4, 23, 2)];
        let whole = open(&json, &weights, Head::Language);
        let expected = hidden(&*whole, &texts);
        for (weights, heads) in [
            (&weights, &[Head::None, classes(3)][..]),
            (&bare(&weights), &[Head::None, classes(3)]),
        ] {
            for head in heads {
                assert_near(
                    &hidden(&*open(&json, weights, *head), &texts),
                    &expected,
                    0.0,
                );
            }
        }
        let without = refused(&json, &bare(&weights), Head::Language);
        assert_eq!(without, "memory: tensor `lm_head.weight` is missing");
    }
}

#[test]
fn paths_are_those_of_the_class() {
    let json = plain();
    let weights = Memory::random(&config(&json), 32);
    for (head, first, others) in [
        (
            Head::Language,
            "model.layers.0.self_attn.q_proj",
            Some("lm_head"),
        ),
        (classes(2), "model.layers.0.self_attn.q_proj", Some("score")),
        (Head::None, "layers.0.self_attn.q_proj", None),
    ] {
        let (mut linears, mut heads) = (Vec::new(), Vec::new());
        open(&json, &weights, head).parts(&mut |part| match part {
            Part::Linear(linear) => linears.push(linear.path().to_owned()),
            Part::Head(linear) => heads.push(linear.path().to_owned()),
            Part::Embedding(_) | Part::Norm(_) => {}
        });
        assert_eq!(linears[0], first);
        assert_eq!(heads.first().map(String::as_str), others);
    }
    let none = open(&json, &weights, Head::None);
    let batch = rectangle(&[text(5, 23, 3)], 5);
    let mut pass = lowrank_adapter::Pass::evaluation(lowrank_adapter::Selection::none());
    let asked = lowrank_adapter::run(&*none, &batch, &Ask::Losses, None, &mut pass);
    assert!(asked.is_err());
}

/// A head beside a table that it is said to be tied to is a head of its own if its numbers are others.
#[test]
fn a_head_that_differs_from_its_table_is_not_tied() {
    let json = rich();
    let mut weights = Memory::random(&config(&json), 33);
    let (tied, text) = (open(&json, &weights, Head::Language), text(6, 29, 4));
    let expected = logits(&*tied, &text);
    let table = weights.0["model.embed_tokens.weight"].clone();
    weights.0.insert("lm_head.weight".into(), table.clone());
    assert_near(
        &logits(&*open(&json, &weights, Head::Language), &text),
        &expected,
        0.0,
    );

    let moved: Tensor = (table * 1.5).unwrap();
    weights.0.insert("lm_head.weight".into(), moved);
    let apart = logits(&*open(&json, &weights, Head::Language), &text);
    let untied = with(json.clone(), json!({"tie_word_embeddings": false}));
    assert_near(
        &apart,
        &logits(&*open(&untied, &weights, Head::Language), &text),
        0.0,
    );
    let more: Vec<Vec<f64>> = expected
        .iter()
        .map(|row| row.iter().map(|logit| 1.5 * logit).collect())
        .collect();
    assert_near(&apart, &more, 1e-12);
}

/// transformers takes the last token whose id is not the padding's, wherever the row ends.
#[test]
fn a_classifier_looks_past_padding_by_its_id() {
    let json = rich();
    let weights = Memory::random(&config(&json), 34);
    let model = open(&json, &weights, classes(3));
    let given = |text: &[u32]| {
        rows(&evaluate(
            &*model,
            &rectangle(&[text.to_vec()], 6),
            &Ask::Classes,
        ))
    };
    let expected = given(&[9, 1, 8]);
    assert_near(&given(&[9, 1, 8, 1, 1]), &expected, 1e-12);
    assert!((given(&[9, 1, 8, 3])[0][0] - expected[0][0]).abs() > 1e-3);
    // Nothing but padding: the first token.
    assert_near(&given(&[1, 1]), &given(&[1]), 1e-12);
}

#[test]
fn the_problem_must_be_the_one_that_is_computed() {
    let weights = Memory::random(&config(&plain()), 35);
    let json = |problem: &str| with(plain(), json!({"problem_type": problem}));
    for (problem, labels) in [("regression", 1), ("single_label_classification", 4)] {
        drop(open(&json(problem), &weights, classes(labels)));
        drop(open(&json(problem), &weights, Head::Language));
    }
    for (problem, labels, message) in [
        (
            "regression",
            3,
            "`problem_type` is \"regression\", expected `\"single_label_classification\"`, for there are 3 labels; leave the \
             field out or change it",
        ),
        (
            "single_label_classification",
            1,
            "`problem_type` is \"single_label_classification\", expected `\"regression\"`, for one label is its value; leave \
             the field out or change it",
        ),
        (
            "multi_label_classification",
            3,
            "`problem_type` = \"multi_label_classification\" is not yet supported; supported: \
             \"single_label_classification\", \"regression\"",
        ),
    ] {
        let found = refused(&json(problem), &weights, classes(labels));
        assert_eq!(found, format!("config.json: {message}"));
    }
}
