//! BERT and RoBERTa: what a pass may depend on, gradients, names in checkpoints, heads that are drawn, and what is
//! refused.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{Memory as Checkpoint, Zoo, evaluate, numbers, object};
use lowrank_adapter::{
    Ask, Batch, KvCache, Memory, Model, Param, Part, Pass, Selection, Share, Swept, Tokens, run,
    sweep, train_all,
};
use lowrank_models::{Head, ModelInfo, Precision, Reading, load};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

fn classes(count: usize, seed: u64) -> Head {
    Head::Classes {
        num_labels: NonZeroUsize::new(count).unwrap(),
        seed,
    }
}

/// The heads that the cases were saved with.
const CASES: [(&str, Option<usize>); 5] = [
    ("bert_mlm", None),
    ("bert_classes", Some(3)),
    ("bert_regression", Some(1)),
    ("roberta_mlm", None),
    ("roberta_classes", Some(4)),
];

fn saved_head(labels: Option<usize>) -> Head {
    labels.map_or(Head::Language, |count| classes(count, 7))
}

fn open(config: &Value, weights: &Checkpoint, head: Head) -> Box<dyn Model> {
    let precision = Precision::Cast(DType::F64);
    load(object(config), "config.json", weights, precision, head).unwrap()
}

fn refused(config: &Value, weights: &Checkpoint, head: Head) -> String {
    let precision = Precision::Cast(DType::F64);
    let result = load(object(config), "config.json", weights, precision, head);
    result.map(|_| ()).unwrap_err().to_string()
}

fn paths(model: &mut dyn Model) -> Vec<String> {
    let mut paths = Vec::new();
    model.parts(&mut |part| {
        paths.push(match part {
            Part::Linear(linear) | Part::Head(linear) => linear.path().to_owned(),
            Part::Embedding(embedding) => embedding.path().to_owned(),
            Part::Norm(norm) => norm.path().to_owned(),
        });
    });
    paths
}

/// One row of a batch, without its padding.
fn alone(batch: &Batch, row: usize) -> Batch {
    let tokens = batch.tokens();
    let all = row * tokens.length..(row + 1) * tokens.length;
    let length = tokens.segments[all.clone()]
        .iter()
        .filter(|segment| **segment != 0)
        .count();
    let own = all.start..all.start + length;
    let one = Tokens {
        rows: 1,
        length,
        ids: tokens.ids[own.clone()].to_vec(),
        segments: vec![1; length],
        positions: tokens.positions[own.clone()].to_vec(),
    };
    let types = batch.types().unwrap()[own].to_vec();
    let unsupervised = vec![lowrank_adapter::UNSUPERVISED; length];
    Batch::new(one, unsupervised)
        .unwrap()
        .with_types(types)
        .unwrap()
}

#[track_caller]
fn assert_near(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= tolerance,
            "{got} against {expected}"
        );
    }
}

#[test]
fn padding_changes_nothing() {
    for (case, labels) in CASES {
        let zoo = Zoo::open(case);
        let (model, batch) = (
            open(&zoo.config, &zoo.weights, saved_head(labels)),
            zoo.batch(),
        );
        let hidden = evaluate(&*model, &batch, &Ask::Hidden);
        let answers = labels.map(|_| evaluate(&*model, &batch, &Ask::Classes));
        for (row, length) in zoo.lengths().into_iter().enumerate() {
            let alone = alone(&batch, row);
            let expected = numbers(&evaluate(&*model, &alone, &Ask::Hidden));
            let own = hidden.get(row).unwrap().narrow(0, 0, length).unwrap();
            assert_near(&numbers(&own), &expected, 1e-12);
            if let Some(answers) = &answers {
                let expected = numbers(&evaluate(&*model, &alone, &Ask::Classes));
                assert_near(&numbers(&answers.get(row).unwrap()), &expected, 1e-12);
            }
        }
    }
}

/// Neither what padding holds nor how it is numbered shows.
#[test]
fn what_padding_holds_changes_no_bit() {
    let zoo = Zoo::open("roberta_classes");
    let (model, batch) = (open(&zoo.config, &zoo.weights, classes(4, 1)), zoo.batch());
    let mut tokens = Tokens::clone(batch.tokens());
    for at in 0..tokens.ids.len() {
        if tokens.segments[at] == 0 {
            tokens.ids[at] = 5;
            tokens.positions[at] = 1_000_000;
        }
    }
    let labels = vec![lowrank_adapter::UNSUPERVISED; tokens.ids.len()];
    let other = Batch::new(tokens, labels).unwrap();
    let answers = [&batch, &other].map(|batch| numbers(&evaluate(&*model, batch, &Ask::Classes)));
    assert_eq!(answers[0], answers[1]);
}

/// Texts behind each other in a row are, to an encoder, texts alone; a classifier reads one a row and says so.
#[test]
fn packed_texts_do_not_see_each_other() {
    let zoo = Zoo::open("bert_mlm");
    let (model, batch) = (open(&zoo.config, &zoo.weights, Head::Language), zoo.batch());
    let texts = [alone(&batch, 1), alone(&batch, 2)];
    let joined =
        |of: fn(&Tokens) -> &[u32]| texts.each_ref().map(|text| of(text.tokens())).concat();
    let tokens = Tokens {
        rows: 1,
        length: 16,
        ids: joined(|tokens| &tokens.ids),
        segments: [vec![1; 5], vec![2; 11]].concat(),
        positions: joined(|tokens| &tokens.positions),
    };
    let types = texts.each_ref().map(|text| text.types().unwrap()).concat();
    let packed = Batch::new(tokens, vec![lowrank_adapter::UNSUPERVISED; 16]).unwrap();
    let packed = packed.with_types(types).unwrap();
    let hidden = numbers(&evaluate(&*model, &packed, &Ask::Hidden));
    let separate = texts
        .each_ref()
        .map(|text| numbers(&evaluate(&*model, text, &Ask::Hidden)));
    assert_near(&hidden, &separate.concat(), 1e-12);

    let zoo = Zoo::open("bert_classes");
    let model = open(&zoo.config, &zoo.weights, classes(3, 1));
    let mut pass = Pass::evaluation(Selection::none());
    let error = run(&*model, &packed, &Ask::Classes, None, &mut pass).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 0 of the batch holds several texts: rows that are classified are not packed"
    );
}

/// With types everything else follows the first text: a pair is not two texts.
#[test]
fn types_and_positions_matter() {
    let zoo = Zoo::open("bert");
    let (model, batch) = (open(&zoo.config, &zoo.weights, Head::None), zoo.batch());
    let plain = Batch::new(Tokens::clone(batch.tokens()), vec![-100; 51]).unwrap();
    let mut moved = Tokens::clone(batch.tokens());
    moved
        .positions
        .iter_mut()
        .for_each(|position| *position += 3);
    let moved = Batch::new(moved, vec![-100; 51])
        .unwrap()
        .with_types(batch.types().unwrap().to_vec());
    let found = numbers(&evaluate(&*model, &batch, &Ask::Hidden));
    for other in [plain, moved.unwrap()] {
        let other = numbers(&evaluate(&*model, &other, &Ask::Hidden));
        let far = found
            .iter()
            .zip(other)
            .filter(|(one, other)| (*one - other).abs() > 1e-3);
        assert!(far.count() > 500);
    }
}

fn without_dropout(zoo: &Zoo) -> Value {
    let mut config = zoo.config.clone();
    config["hidden_dropout_prob"] = json!(0.0);
    config["attention_probs_dropout_prob"] = json!(0.0);
    config["classifier_dropout"] = json!(0.0);
    config
}

fn swept(
    model: &dyn Model,
    params: &[Param],
    batch: &Batch,
    losses: usize,
    memory: Memory,
) -> Swept {
    let mut pass = Pass::training_pass(Selection::one("whole"), Key::new(3, Purpose::Dropout));
    let share = Share {
        token: 1.0 / losses as f64,
        auxiliary: 0.0,
    };
    sweep(model, batch, &mut pass, params, share, memory).unwrap()
}

/// The value with one number moved.
fn moved(value: &Tensor, at: usize, by: f64) -> Tensor {
    let mut numbers = numbers(value);
    numbers[at] += by;
    Tensor::from_vec(numbers, value.shape(), value.device()).unwrap()
}

#[test]
fn every_weight_has_the_gradient_of_finite_differences() {
    for (case, labels) in CASES {
        let zoo = Zoo::open(case);
        let batch = zoo.batch();
        let mut model = open(&without_dropout(&zoo), &zoo.weights, saved_head(labels));
        let params = train_all(&mut *model, "whole").unwrap();
        let loss = || {
            let mut pass = Pass::evaluation(Selection::one("whole"));
            let losses = run(&*model, &batch, &Ask::Losses, None, &mut pass).unwrap();
            losses.mean_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let count = labels.map_or(batch.targets_in_place().len(), |_| 3);
        let swept = swept(&*model, &params, &batch, count, Memory::Keep);
        let mean: f64 = swept.losses.mean_all().unwrap().to_scalar().unwrap();
        assert!((mean - loss()).abs() < 1e-12);
        for param in &params {
            let grad = swept.grads.get(param);
            let grad = numbers(grad.unwrap_or_else(|| panic!("{case}: {param:?} has no gradient")));
            let value = param.snapshot().unwrap();
            let mut stream = Key::new(9, Purpose::Test).site(param.name()).stream();
            let largest = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs()));
            let other = stream.below(grad.len() as u64) as usize;
            for at in [largest.unwrap(), other] {
                let step = 1e-5;
                let [above, below] = [step, -step].map(|by| {
                    param.set(&moved(&value, at, by)).unwrap();
                    loss()
                });
                param.set(&value).unwrap();
                let expected = (above - below) / (2.0 * step);
                let error = (grad[at] - expected).abs();
                assert!(
                    error < 1e-8 + 2e-6 * expected.abs(),
                    "{case}, {param:?} at {at}: {} against {expected}",
                    grad[at]
                );
            }
        }
    }
}

#[test]
fn recomputation_and_dropout_draw_the_same_numbers() {
    let zoo = Zoo::open("bert_classes");
    let batch = zoo.batch();
    let run_twice = |config: &Value, memory| {
        let mut model = open(config, &zoo.weights, classes(3, 1));
        let params = train_all(&mut *model, "whole").unwrap();
        let swept = swept(&*model, &params, &batch, 3, memory);
        let grads = params
            .iter()
            .map(|param| numbers(swept.grads.get(param).unwrap()));
        let grads: Vec<_> = grads.collect();
        (numbers(&swept.losses), grads)
    };
    let kept = run_twice(&zoo.config, Memory::Keep);
    assert_eq!(kept, run_twice(&zoo.config, Memory::Recompute));
    // The saved configuration drops a tenth; evaluation drops nothing.
    assert_ne!(kept.0, run_twice(&without_dropout(&zoo), Memory::Keep).0);
    let model = open(&zoo.config, &zoo.weights, classes(3, 1));
    let still = numbers(&evaluate(&*model, &batch, &Ask::Losses));
    assert_eq!(still, run_twice(&without_dropout(&zoo), Memory::Keep).0);
}

#[test]
fn paths_are_those_of_the_class_in_use() {
    for (case, head, some) in [
        (
            "bert_mlm",
            Head::Language,
            vec![
                "bert.embeddings.word_embeddings",
                "bert.encoder.layer.1.attention.self.query",
                "bert.encoder.layer.0.attention.output.LayerNorm",
                "cls.predictions.transform.dense",
                "cls.predictions.decoder",
            ],
        ),
        (
            "bert_classes",
            classes(3, 1),
            vec![
                "bert.encoder.layer.0.intermediate.dense",
                "bert.pooler.dense",
                "classifier",
            ],
        ),
        (
            "bert",
            Head::None,
            vec![
                "embeddings.LayerNorm",
                "encoder.layer.1.output.dense",
                "pooler.dense",
            ],
        ),
        (
            "roberta_classes",
            classes(4, 1),
            vec![
                "roberta.embeddings.position_embeddings",
                "roberta.encoder.layer.0.output.dense",
                "classifier.dense",
                "classifier.out_proj",
            ],
        ),
        (
            "roberta_mlm",
            Head::Language,
            vec!["lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"],
        ),
    ] {
        let zoo = Zoo::open(case);
        let mut model = open(&zoo.config, &zoo.weights, head);
        assert_eq!(model.blocks(), 2);
        let paths = paths(&mut *model);
        for path in some {
            assert!(paths.iter().any(|other| other == path), "{path}: {paths:?}");
        }
        let mut heads = Vec::new();
        model.parts(&mut |part| {
            if let Part::Head(linear) = part {
                heads.push(linear.path().to_owned());
            }
        });
        assert_eq!(heads.len(), usize::from(head != Head::None), "{heads:?}");
    }
}

/// A checkpoint of one class opened as another, with old names, with and without the prefix.
#[test]
fn checkpoints_of_every_class_are_read() {
    let zoo = Zoo::open("bert_classes");
    let batch = zoo.batch();
    let expected = numbers(&evaluate(
        &*open(&zoo.config, &zoo.weights, classes(3, 1)),
        &batch,
        &Ask::Classes,
    ));
    let renamed = |rename: &dyn Fn(&str) -> String| {
        let tensors = zoo
            .weights
            .0
            .iter()
            .map(|(name, tensor)| (rename(name), tensor.clone()));
        Checkpoint(tensors.collect())
    };
    let old = renamed(&|name| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        name.replace("LayerNorm.bias", "LayerNorm.beta")
    });
    let mut bare = renamed(&|name| name.strip_prefix("bert.").unwrap_or(name).to_owned());
    let ids = Tensor::arange(0i64, 30, &Device::Cpu).unwrap();
    bare.0.insert("embeddings.position_ids".into(), ids);
    let vocab = Tensor::zeros(37, DType::F32, &Device::Cpu).unwrap();
    bare.0.insert("cls.predictions.bias".into(), vocab);
    for weights in [&old, &bare] {
        let model = open(&zoo.config, weights, classes(3, 1));
        assert_eq!(numbers(&evaluate(&*model, &batch, &Ask::Classes)), expected);
        let mut model = open(&zoo.config, weights, Head::None);
        assert!(paths(&mut *model).contains(&"encoder.layer.0.output.dense".to_owned()));
    }
    // A tied decoder may be stored again, and its bias under either name or both.
    let zoo = Zoo::open("bert_mlm");
    let batch = zoo.batch();
    let expected = numbers(&evaluate(
        &*open(&zoo.config, &zoo.weights, Head::Language),
        &batch,
        &Ask::Losses,
    ));
    let mut both = zoo.weights.clone();
    let bias = both.0["cls.predictions.bias"].clone();
    both.0.insert("cls.predictions.decoder.bias".into(), bias);
    let words = both.0["bert.embeddings.word_embeddings.weight"].clone();
    both.0
        .insert("cls.predictions.decoder.weight".into(), words);
    let mut only = both.clone();
    only.0.remove("cls.predictions.bias");
    for weights in [&both, &only] {
        let model = open(&zoo.config, weights, Head::Language);
        assert_eq!(numbers(&evaluate(&*model, &batch, &Ask::Losses)), expected);
    }
    // Untied it is read.
    let mut untied = zoo.config.clone();
    untied["tie_word_embeddings"] = json!(false);
    let model = open(&untied, &both, Head::Language);
    assert_eq!(numbers(&evaluate(&*model, &batch, &Ask::Losses)), expected);
    let missing = "memory: tensor `cls.predictions.decoder.weight` is missing";
    assert_eq!(refused(&untied, &zoo.weights, Head::Language), missing);
}

#[test]
fn a_missing_classifier_is_drawn_from_its_seed() {
    let zoo = Zoo::open("bert");
    let mut config = zoo.config.clone();
    config["initializer_range"] = json!(0.5);
    let weight = |seed: u64| {
        let mut model = open(&config, &zoo.weights, classes(400, seed));
        let mut found = Vec::new();
        model.parts(&mut |part| {
            if let Part::Head(linear) = part {
                found = numbers(&linear.base().weight().unwrap());
                assert_eq!(linear.base().dims(), (400, 24));
                assert_eq!(numbers(linear.base().bias().unwrap()), vec![0.0; 400]);
            }
        });
        found
    };
    let one = weight(5);
    let square: f64 = one.iter().map(|x| x * x).sum::<f64>() / one.len() as f64;
    let mean: f64 = one.iter().sum::<f64>() / one.len() as f64;
    assert!(
        (square.sqrt() - 0.5).abs() < 0.02 && mean.abs() < 0.02,
        "{square} {mean}"
    );
    assert_eq!(one, weight(5));
    assert_ne!(one, weight(6));
    // Every precision draws the same.
    let precision = Precision::Nf4 { double: true };
    load(
        object(&config),
        "config.json",
        &zoo.weights,
        precision,
        classes(2, 5),
    )
    .unwrap();

    // RoBERTa's classifier has two layers.
    let zoo = Zoo::open("roberta_mlm");
    let model = open(&zoo.config, &zoo.weights, classes(5, 2));
    assert_eq!(
        evaluate(&*model, &zoo.batch(), &Ask::Classes).dims(),
        [3, 5]
    );
    // The pooler of MLM checkpoints is missing too.
    let zoo = Zoo::open("bert_mlm");
    let model = open(&zoo.config, &zoo.weights, classes(2, 2));
    assert_eq!(
        evaluate(&*model, &zoo.batch(), &Ask::Classes).dims(),
        [3, 2]
    );
}

fn losses(model: &dyn Model, batch: Batch, labels: [Option<f64>; 3]) -> Result<Vec<f64>, String> {
    let batch = batch.with_row_labels(labels.to_vec()).unwrap();
    let mut pass = Pass::evaluation(Selection::none());
    let losses = run(model, &batch, &Ask::Losses, None, &mut pass);
    losses
        .map(|losses| numbers(&losses))
        .map_err(|error| error.to_string())
}

#[test]
fn labels_of_rows_are_checked() {
    let zoo = Zoo::open("bert_classes");
    let model = open(&zoo.config, &zoo.weights, classes(3, 1));
    let all = losses(&*model, zoo.batch(), [Some(2.0), Some(0.0), Some(1.0)]).unwrap();
    let some = losses(&*model, zoo.batch(), [None, Some(0.0), Some(1.0)]).unwrap();
    assert_near(&some, &all[1..], 1e-12);
    assert_eq!(losses(&*model, zoo.batch(), [None; 3]), Ok(Vec::new()));
    for bad in [3.0, -1.0, 0.5, f64::NAN, f64::INFINITY, 1e300] {
        let error = losses(&*model, zoo.batch(), [Some(1.0), Some(bad), None]).unwrap_err();
        assert_eq!(
            error,
            format!("row 1 of a batch has the label {bad}, expected one of 3 classes, 0 to 2")
        );
    }
    let zoo = Zoo::open("bert_regression");
    let model = open(&zoo.config, &zoo.weights, classes(1, 1));
    let values = numbers(&evaluate(&*model, &zoo.batch(), &Ask::Classes));
    let found = losses(&*model, zoo.batch(), [Some(0.5), None, Some(-4.0)]).unwrap();
    assert_near(
        &found,
        &[(values[0] - 0.5).powi(2), (values[2] + 4.0).powi(2)],
        1e-12,
    );
    let error = losses(&*model, zoo.batch(), [None, None, Some(f64::NAN)]).unwrap_err();
    assert_eq!(
        error,
        "row 2 of a batch has the label NaN, expected a number"
    );
}

#[test]
fn what_a_head_has_nothing_for_is_refused() {
    let mlm = Zoo::open("bert_mlm");
    let batch = mlm.batch();
    let error = |model: &dyn Model, ask: &Ask, kv: Option<&mut KvCache>| {
        let mut pass = Pass::evaluation(Selection::none());
        run(model, &batch, ask, kv, &mut pass)
            .unwrap_err()
            .to_string()
    };
    let model = open(&mlm.config, &mlm.weights, Head::Language);
    let classifier = open(&mlm.config, &mlm.weights, classes(2, 1));
    let none = open(&mlm.config, &mlm.weights, Head::None);
    assert_eq!(
        error(&*model, &Ask::Classes, None),
        "a bert without a classification head was asked for classes"
    );
    let tokens = Ask::Logits(vec![0]);
    let without = "a bert without a head that predicts tokens was asked for logits of tokens";
    assert_eq!(error(&*classifier, &tokens, None), without);
    assert_eq!(error(&*none, &tokens, None), without);
    assert_eq!(
        error(&*none, &Ask::Losses, None),
        "a bert without a head was asked for losses"
    );
    assert_eq!(
        error(&*model, &tokens, Some(&mut KvCache::new())),
        "a bert reads texts as a whole and cannot continue them"
    );
    let empty = evaluate(&*model, &batch, &Ask::Logits(Vec::new()));
    assert_eq!(empty.dims(), [0, 37]);
}

#[test]
fn what_is_out_of_range_is_refused_by_name() {
    let mlm = Zoo::open("bert_mlm");
    let roberta = Zoo::open("roberta_mlm");
    let error = |zoo: &Zoo, ids: Vec<u32>, position: u32, types: Vec<u32>| {
        let model = open(&zoo.config, &zoo.weights, Head::Language);
        let batch = Batch::sequence(&ids, position)
            .unwrap()
            .with_types(types)
            .unwrap();
        let mut pass = Pass::evaluation(Selection::none());
        let result = run(&*model, &batch, &Ask::Hidden, None, &mut pass);
        result.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(
        error(&mlm, vec![3, 37], 0, vec![0, 0]).unwrap_err(),
        "token 37 is not in the model's vocabulary of 37 tokens"
    );
    assert_eq!(
        error(&mlm, vec![3, 4], 0, vec![0, 2]).unwrap_err(),
        "type 2 of a token is not among the model's 2 (`type_vocab_size`)"
    );
    assert_eq!(
        error(&mlm, vec![3, 4], 29, vec![0, 0]).unwrap_err(),
        "position 30 is beyond the model's limit of 30 tokens (`max_position_embeddings`)"
    );
    // Of RoBERTa's 34 positions the first two belong to padding.
    assert_eq!(error(&roberta, vec![3, 4], 30, vec![0, 0]), Ok(()));
    assert_eq!(
        error(&roberta, vec![3, 4], 31, vec![0, 0]).unwrap_err(),
        "position 32 is beyond the model's limit of 32 tokens (`max_position_embeddings`)"
    );
    let info = ModelInfo::from_json(object(&roberta.config), "config.json").unwrap();
    assert_eq!(
        (info.max_position_embeddings, info.reading),
        (32, Reading::BothWays)
    );
    assert_eq!(
        (info.model_type.as_str(), info.hidden_size),
        ("roberta", 24)
    );
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let zoo = Zoo::open("bert_classes");
    let changed = |name: &str, tensor: Option<Tensor>| {
        let mut weights = zoo.weights.clone();
        match tensor {
            Some(tensor) => weights.0.insert(name.to_owned(), tensor),
            None => weights.0.remove(name),
        };
        weights
    };
    let zeros = |dims: &[usize]| Some(Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap());
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    let nan = Tensor::full(f32::NAN, (24, 24), &Device::Cpu).unwrap();
    for (weights, head, message) in [
        (changed(query, None), classes(3, 1), format!("memory: tensor `{query}` is missing")),
        (
            changed("classifier.bias", None),
            classes(3, 1),
            "memory: tensor `classifier.bias` is missing".into(),
        ),
        (
            zoo.weights.clone(),
            classes(2, 1),
            "memory: tensor `classifier.weight` has shape [3, 24], expected [2, 24]".into(),
        ),
        (
            changed("bert.encoder.layer.2.output.dense.bias", zeros(&[24])),
            classes(3, 1),
            "memory: tensor `bert.encoder.layer.2.output.dense.bias` is used by no part of the model that config.json \
             describes"
                .into(),
        ),
        (
            changed("classifier.out_proj.weight", zeros(&[3, 24])),
            classes(3, 1),
            "memory: tensor `classifier.out_proj.weight` is used by no part of the model that config.json describes"
                .into(),
        ),
        (
            changed("encoder.layer.0.output.dense.bias", zeros(&[24])),
            classes(3, 1),
            "memory: tensor `encoder.layer.0.output.dense.bias` is used by no part of the model that config.json \
             describes"
                .into(),
        ),
        (
            changed(query, Some(nan)),
            classes(3, 1),
            format!("memory: tensor `{query}` holds a value that is not finite in f64"),
        ),
        (
            zoo.weights.clone(),
            Head::Language,
            "memory: there is no `cls.predictions`, the head that predicts tokens: this checkpoint was saved without one, \
             for embeddings or to train a classifier"
                .into(),
        ),
        (
            changed("classifier.weight", None).without("classifier.bias"),
            classes(usize::MAX, 1),
            format!("{} labels are too many", usize::MAX),
        ),
    ] {
        assert_eq!(refused(&zoo.config, &weights, head), message);
    }
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let (bert, roberta) = (Zoo::open("bert"), Zoo::open("roberta_mlm"));
    for (zoo, field, value, message) in [
        (&bert, "vocab_size", json!(null), "`vocab_size` is missing"),
        (
            &bert,
            "num_attention_heads",
            json!(5),
            "`num_attention_heads` is 5, expected a divisor of `hidden_size` = 24",
        ),
        (
            &bert,
            "position_embedding_type",
            json!("relative_key"),
            "`position_embedding_type` = \"relative_key\" is not yet supported; supported: \"absolute\"",
        ),
        (
            &bert,
            "hidden_act",
            json!("silu"),
            "`hidden_act` = \"silu\" is not yet supported; supported: \"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\"",
        ),
        (
            &bert,
            "is_decoder",
            json!(true),
            "`is_decoder` = true is not yet supported; supported: false",
        ),
        (
            &bert,
            "hidden_dropout_prob",
            json!(1.0),
            "`hidden_dropout_prob` is 1.0, expected a number from 0 to below 1",
        ),
        (
            &bert,
            "hidden_sise",
            json!(3),
            "unknown field `hidden_sise` with the value 3, did you mean `hidden_size`?",
        ),
        (
            &bert,
            "vocab_size",
            json!(u64::MAX / 4),
            "`vocab_size` is 4611686018427387903, expected a size that fits into memory",
        ),
        (
            &roberta,
            "pad_token_id",
            json!(33),
            "`pad_token_id` is 33, expected an id that leaves room for positions below 34 (`max_position_embeddings`)",
        ),
        (
            &roberta,
            "max_position_embeddings",
            json!(1),
            "`pad_token_id` is 1, expected an id that leaves room for positions below 1 (`max_position_embeddings`)",
        ),
    ] {
        let mut config = zoo.config.clone();
        config[field] = value;
        let found = refused(&config, &zoo.weights, Head::None);
        assert_eq!(found, format!("config.json: {message}"));
    }
    let zoo = Zoo::open("bert_classes");
    let mut config = zoo.config.clone();
    config["problem_type"] = json!("multi_label_classification");
    assert_eq!(
        refused(&config, &zoo.weights, classes(3, 1)),
        "config.json: `problem_type` = \"multi_label_classification\" is not yet supported; supported: \
         \"single_label_classification\", \"regression\""
    );
}
