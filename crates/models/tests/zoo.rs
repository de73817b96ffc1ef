//! Every kind of model and of head gives what transformers gives, in f32 and f64 (golden/zoo.py).

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::{DType, Tensor};
use common::{Zoo, evaluate, numbers, object};
use lowrank_adapter::{Ask, Batch, Model};
use lowrank_models::{Head, Precision, load};
use std::num::NonZeroUsize;

/// The head of a case, drawn from a seed where the checkpoint had none.
fn head(case: &str) -> Head {
    let classes = |count| Head::Classes {
        num_labels: NonZeroUsize::new(count).unwrap(),
        seed: 1,
    };
    match case {
        "bert" => Head::None,
        "bert_classes" => classes(3),
        "bert_regression" => classes(1),
        "roberta_classes" => classes(4),
        _ => Head::Language,
    }
}

fn open(zoo: &Zoo, case: &str, dtype: DType) -> Box<dyn Model> {
    let precision = Precision::Cast(dtype);
    load(
        object(&zoo.config),
        "config.json",
        &zoo.weights,
        precision,
        head(case),
    )
    .unwrap()
}

/// The positions that are not padding.
fn real(batch: &Batch) -> Vec<u32> {
    let tokens = batch.tokens();
    let all = (0..).zip(&tokens.segments);
    all.filter(|(_, segment)| **segment != 0)
        .map(|(at, _)| at)
        .collect()
}

/// Rows of `[rows, length, width]` at some positions.
fn at(tensor: &Tensor, positions: &[u32]) -> Tensor {
    let (rows, length, width) = tensor.dims3().unwrap();
    let flat = tensor.reshape((rows * length, width)).unwrap();
    let positions = Tensor::new(positions, tensor.device()).unwrap();
    flat.contiguous()
        .unwrap()
        .index_select(&positions, 0)
        .unwrap()
}

fn apart(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!(one.dims(), other.dims());
    let pairs = numbers(one).into_iter().zip(numbers(other));
    let worst = pairs.map(|(one, other)| (one - other).abs());
    worst.fold(0.0, |worst, next| {
        if next > worst || next.is_nan() {
            next
        } else {
            worst
        }
    })
}

/// What we compute, and what transformers computed in f32 and in f64.
fn compare(case: &str, what: &str, single: &Tensor, double: &Tensor, found: [&Tensor; 2]) {
    let double_error = apart(found[1], double);
    assert!(
        double_error < 1e-9,
        "{case}, {what} in f64: {double_error:e}"
    );
    let (ours, theirs) = (apart(found[0], double), apart(single, double));
    assert!(
        ours < 2e-4 && ours <= 3.0 * theirs.max(1e-6),
        "{case}, {what} in f32: {ours:e}, and {theirs:e} of transformers"
    );
}

fn check(case: &str) {
    let zoo = Zoo::open(case);
    let batch = zoo.batch();
    let models = [DType::F32, DType::F64].map(|dtype| open(&zoo, case, dtype));
    let positions = real(&batch);
    let golden = |what: &str| [what.to_owned(), format!("{what}64")].map(|key| &zoo.expected[&key]);

    let found = models
        .each_ref()
        .map(|model| at(&evaluate(&**model, &batch, &Ask::Hidden), &positions));
    let [single, double] = golden("hidden").map(|hidden| at(hidden, &positions));
    compare(case, "hidden", &single, &double, [&found[0], &found[1]]);
    if !zoo.expected.contains_key("logits") {
        return;
    }
    let classes = batch.row_labels().is_some();
    let ask = if classes {
        Ask::Classes
    } else {
        Ask::Logits(positions.clone())
    };
    let found = models
        .each_ref()
        .map(|model| evaluate(&**model, &batch, &ask));
    let [single, double] = golden("logits").map(|logits| {
        if classes {
            logits.clone()
        } else {
            at(logits, &positions)
        }
    });
    compare(case, "logits", &single, &double, [&found[0], &found[1]]);

    // transformers rounds the logits of decoders to f32 before the loss, whatever the model is in.
    let golden = numbers(&zoo.expected["loss64"])[0];
    for model in &models {
        let losses = numbers(&evaluate(&**model, &batch, &Ask::Losses));
        assert!(losses.len() > 1);
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        let error = (loss - golden).abs() / golden;
        assert!(error < 1e-6, "{case}, loss: {loss} against {golden}");
    }
}

#[test]
fn encoders_equal_transformers() {
    for case in [
        "bert",
        "bert_mlm",
        "bert_classes",
        "bert_regression",
        "roberta_mlm",
        "roberta_classes",
    ] {
        check(case);
    }
}

#[test]
fn decoders_equal_transformers() {
    check("mistral");
    check("qwen2");
}

/// The goldens of windows would say nothing if no text were longer.
#[test]
fn windows_matter() {
    for (case, field) in [
        ("mistral", "sliding_window"),
        ("qwen2", "use_sliding_window"),
    ] {
        let mut zoo = Zoo::open(case);
        let batch = zoo.batch();
        let with = evaluate(&*open(&zoo, case, DType::F64), &batch, &Ask::Hidden);
        zoo.config[field] = serde_json::Value::Null;
        zoo.config["layer_types"] = serde_json::Value::Null;
        let without = evaluate(&*open(&zoo, case, DType::F64), &batch, &Ask::Hidden);
        assert!(apart(&with, &without) > 0.1, "{case}");
    }
}

#[test]
fn roberta_in_many_languages_is_roberta() {
    let mut zoo = Zoo::open("roberta_mlm");
    let batch = zoo.batch();
    let one = evaluate(
        &*open(&zoo, "roberta_mlm", DType::F64),
        &batch,
        &Ask::Losses,
    );
    zoo.config["model_type"] = "xlm-roberta".into();
    let model = open(&zoo, "roberta_mlm", DType::F64);
    assert_eq!(model.model_type(), "xlm-roberta");
    assert_eq!(
        numbers(&evaluate(&*model, &batch, &Ask::Losses)),
        numbers(&one)
    );
}
