//! The gradient of the whole model: every weight trained, against finite differences.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::Tensor;
use common::{evaluate, model, plain, qwen2, rectangle, rich, text, windowed, with};
use lowrank_adapter::{
    Ask, Batch, Memory, Model, Param, Pass, Selection, Share, Swept, sweep, train_all,
};
use lowrank_models::Llama;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};

fn whole(json: &Value) -> (Llama, Vec<Param>, Batch) {
    let (mut model, _) = model(json, 61);
    let vocab = model.config().vocab_size as u64;
    let params = train_all(&mut model, "whole").unwrap();
    let texts = [text(7, vocab, 1), text(12, vocab, 2), text(3, vocab, 3)];
    (model, params, rectangle(&texts, 12))
}

fn swept(model: &dyn Model, params: &[Param], batch: &Batch, memory: Memory) -> Swept {
    let mut pass = Pass::training_pass(Selection::one("whole"), Key::new(3, Purpose::Dropout));
    let share = Share {
        token: 1.0 / batch.supervised() as f64,
        auxiliary: 0.0,
    };
    sweep(model, batch, &mut pass, params, share, memory).unwrap()
}

fn loss(model: &dyn Model, batch: &Batch) -> f64 {
    let losses = evaluate(model, batch, &Ask::Losses);
    losses.mean_all().unwrap().to_scalar().unwrap()
}

/// The value with one number moved.
fn moved(value: &Tensor, at: usize, by: f64) -> Tensor {
    let mut numbers: Vec<f64> = value.flatten_all().unwrap().to_vec1().unwrap();
    numbers[at] += by;
    Tensor::from_vec(numbers, value.shape(), value.device()).unwrap()
}

#[test]
fn every_weight_has_the_gradient_of_finite_differences() {
    for json in [
        rich(),
        plain(),
        with(plain(), json!({"tie_word_embeddings": true})),
        windowed(),
        qwen2(),
    ] {
        let (model, params, batch) = whole(&json);
        let swept = swept(&model, &params, &batch, Memory::Keep);
        let mean: f64 = swept.losses.mean_all().unwrap().to_scalar().unwrap();
        assert!((mean - loss(&model, &batch)).abs() < 1e-12);
        for param in &params {
            let grad = swept
                .grads
                .get(param)
                .unwrap_or_else(|| panic!("{param:?} has no gradient"));
            let grad: Vec<f64> = grad.flatten_all().unwrap().to_vec1().unwrap();
            let value = param.snapshot().unwrap();
            let mut stream = Key::new(9, Purpose::Test).site(param.name()).stream();
            // The largest gradient, and others wherever they are.
            let largest = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs()));
            let others = [0; 2].map(|_| stream.below(grad.len() as u64) as usize);
            for at in largest.into_iter().chain(others) {
                let step = 1e-5;
                let [above, below] = [step, -step].map(|by| {
                    param.set(&moved(&value, at, by)).unwrap();
                    loss(&model, &batch)
                });
                param.set(&value).unwrap();
                let expected = (above - below) / (2.0 * step);
                let error = (grad[at] - expected).abs();
                assert!(
                    error < 1e-8 + 1e-6 * expected.abs(),
                    "{param:?} at {at}: {} against {expected}",
                    grad[at]
                );
            }
        }
    }
}

#[test]
fn recomputation_gives_the_same_bits() {
    for json in [rich(), plain()] {
        let (model, params, batch) = whole(&json);
        let kept = swept(&model, &params, &batch, Memory::Keep);
        let again = swept(&model, &params, &batch, Memory::Recompute);
        assert_eq!(bits(&kept.losses), bits(&again.losses));
        assert_eq!(kept.grads.len(), params.len());
        assert_eq!(again.grads.len(), params.len());
        for param in &params {
            let [kept, again] = [&kept, &again].map(|swept| bits(swept.grads.get(param).unwrap()));
            assert_eq!(kept, again, "{param:?}");
        }
    }
}

#[test]
fn a_tied_head_is_one_parameter() {
    let (_, params, _) = whole(&rich());
    let names: Vec<&str> = params.iter().map(Param::name).collect();
    assert_eq!(names[0], "model.embed_tokens.weight");
    assert!(!names.contains(&"lm_head.weight"));
    let (_, params, _) = whole(&plain());
    assert!(params.iter().any(|param| param.name() == "lm_head.weight"));
}

#[test]
fn nothing_supervised_has_no_gradient_and_no_panic() {
    let (model, params, _) = whole(&rich());
    let batch = Batch::sequence(&[4, 8, 1, 19], 0).unwrap();
    let mut pass = Pass::training_pass(Selection::one("whole"), Key::new(3, Purpose::Dropout));
    let share = Share {
        token: 1.0,
        auxiliary: 0.0,
    };
    let swept = sweep(&model, &batch, &mut pass, &params, share, Memory::Keep).unwrap();
    assert_eq!(swept.losses.dims(), [0]);
    assert!(swept.grads.is_empty());
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let numbers: Vec<f64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    numbers.into_iter().map(f64::to_bits).collect()
}
