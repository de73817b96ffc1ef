//! Texts that are packed into a row: outputs, losses and gradients are those of the same texts in rows of their own.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use candle_core::{DType, Tensor};
use common::{
    Memory as Checkpoint, config, evaluate, plain, qwen2, rectangle, rich, rows, text, windowed,
};
use lowrank_adapter::{
    Ask, Batch, KvCache, Memory, Model, Param, Pass, Selection, Share, Swept, Tokens, UNSUPERVISED,
    run, sweep, train_all,
};
use lowrank_models::{Llama, Precision};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::Value;

/// The lengths of the texts in each row: the first row is full, one text is a single token.
const LENGTHS: [&[usize]; 3] = [&[7, 1, 4], &[5, 3], &[11]];

fn texts(vocab: u64) -> Vec<Vec<Vec<u32>>> {
    let mut seed = 0;
    let mut draw = |&length: &usize| {
        seed += 1;
        text(length, vocab, seed)
    };
    LENGTHS
        .iter()
        .map(|lengths| lengths.iter().map(&mut draw).collect())
        .collect()
}

/// A row for each list of texts, one text behind the other, each supervised from its first token on: that one has no
/// place that could predict it.
fn packed(rows: &[Vec<Vec<u32>>], length: usize) -> Batch {
    let mut tokens = Tokens {
        rows: rows.len(),
        length,
        ids: Vec::new(),
        segments: Vec::new(),
        positions: Vec::new(),
    };
    let mut labels = Vec::new();
    for (row, texts) in rows.iter().enumerate() {
        for (segment, text) in (1..).zip(texts) {
            tokens.ids.extend(text);
            tokens.segments.extend(vec![segment; text.len()]);
            tokens.positions.extend(0..text.len() as u32);
            labels.extend(text.iter().map(|&id| id as i32));
        }
        let end = (row + 1) * length;
        for list in [&mut tokens.ids, &mut tokens.segments, &mut tokens.positions] {
            list.resize(end, 0);
        }
        labels.resize(end, UNSUPERVISED);
    }
    Batch::new(tokens, labels).unwrap()
}

fn model(json: &Value, dtype: DType) -> Llama {
    let config = config(json);
    let weights = Checkpoint::random(&config, 71).cast(dtype);
    Llama::new(config, &weights, Precision::AsStored).unwrap()
}

fn swept(model: &dyn Model, params: &[Param], batch: &Batch, memory: Memory) -> Swept {
    let mut pass = Pass::training_pass(Selection::one("whole"), Key::new(3, Purpose::Dropout));
    let share = Share {
        token: 1.0 / batch.supervised() as f64,
        auxiliary: 0.0,
    };
    sweep(model, batch, &mut pass, params, share, memory).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1().unwrap()
}

/// The largest difference over the largest number.
fn distance(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (numbers(got), numbers(expected));
    let size = expected.iter().fold(0.0, |size: f64, x| size.max(x.abs()));
    assert!(size > 0.0);
    let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // `f64::max` would forget a NaN.
    let larger = |worst: f64, next: f64| {
        if next > worst || next.is_nan() {
            next
        } else {
            worst
        }
    };
    apart.fold(0.0, larger) / size
}

#[test]
fn losses_and_gradients_are_those_of_padded_texts() {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
        for json in [rich(), plain(), windowed()] {
            let mut model = model(&json, dtype);
            let params = train_all(&mut model, "whole").unwrap();
            let texts = texts(model.config().vocab_size as u64);
            let padded = rectangle(&texts.concat(), 11);
            let expected = swept(&model, &params, &padded, Memory::Keep);
            assert_eq!(expected.losses.dims(), [6 + 3 + 4 + 2 + 10]);
            // With no padding at the longest row, and with some.
            for (length, memory) in [
                (12, Memory::Keep),
                (12, Memory::Recompute),
                (15, Memory::Keep),
            ] {
                let packed = packed(&texts, length);
                let got = swept(&model, &params, &packed, memory);
                assert!(distance(&got.losses, &expected.losses) < tolerance);
                let mean = |swept: &Swept| swept.losses.mean_all().unwrap();
                assert!(distance(&mean(&got), &mean(&expected)) < tolerance);
                assert_eq!(got.grads.len(), params.len());
                for param in &params {
                    let [got, expected] =
                        [&got, &expected].map(|swept| swept.grads.get(param).unwrap());
                    let apart = distance(got, expected);
                    assert!(apart < tolerance, "{dtype:?}, {param:?}: {apart:e}");
                }
            }
        }
    }
}

/// What the tests above would see if segments were not kept apart.
#[test]
fn a_leak_shows() {
    let model = model(&plain(), DType::F64);
    let texts = texts(23);
    let batch = packed(&texts, 12);
    let mut joined = batch.tokens().as_ref().clone();
    joined.segments.fill(1);
    let ask = Ask::Logits((8..12).collect());
    let apart = evaluate(&model, &batch, &ask);
    let joined = Batch::new(joined, vec![UNSUPERVISED; 36]).unwrap();
    assert!(distance(&evaluate(&model, &joined, &ask), &apart) > 1e-2);
}

#[test]
fn a_cache_decodes_each_packed_text() {
    for json in [rich(), plain(), qwen2()] {
        let model = model(&json, DType::F64);
        let texts = texts(model.config().vocab_size as u64);
        let batch = packed(&texts, 12);
        let logits = rows(&evaluate(&model, &batch, &Ask::Logits((0..36).collect())));
        let starts = (0..3).map(|row| 12 * row);
        for (texts, mut at) in texts.iter().zip(starts) {
            for text in texts {
                let mut kv = KvCache::new();
                let (prompt, rest) = text.split_at(text.len().div_ceil(3));
                let pieces = std::iter::once(prompt).chain(rest.chunks(1));
                let mut decoded = Vec::new();
                for piece in pieces {
                    let batch = Batch::sequence(piece, kv.len() as u32).unwrap();
                    let ask = Ask::Logits((0..piece.len() as u32).collect());
                    let mut pass = Pass::evaluation(Selection::none());
                    let logits = run(&model, &batch, &ask, Some(&mut kv), &mut pass).unwrap();
                    decoded.extend(rows(&logits));
                }
                common::assert_near(&decoded, &logits[at..][..text.len()], 1e-12);
                at += text.len();
            }
        }
    }
}

/// A cache of packed texts goes on with any of them: here the first text of a row, behind the others.
#[test]
fn a_cache_of_packed_texts_goes_on_with_one_of_them() {
    let model = model(&rich(), DType::F64);
    let texts = texts(29);
    let batch = packed(&texts[..1], 12);
    let mut kv = KvCache::new();
    let nothing = Ask::Logits(Vec::new());
    let mut pass = Pass::evaluation(Selection::none());
    drop(run(&model, &batch, &nothing, Some(&mut kv), &mut pass).unwrap());
    let end = text(3, 29, 50);
    let more = Tokens {
        rows: 1,
        length: 3,
        ids: end.clone(),
        segments: vec![1; 3],
        positions: vec![7, 8, 9],
    };
    let more = Batch::new(more, vec![UNSUPERVISED; 3]).unwrap();
    let ask = Ask::Logits((0..3).collect());
    let got = rows(&run(&model, &more, &ask, Some(&mut kv), &mut pass).unwrap());
    let whole = common::logits(&model, &[&texts[0][0][..], &end].concat());
    common::assert_near(&got, &whole[7..], 1e-12);

    // Another number of rows than the cache has is refused.
    let two = packed(&[texts[0].clone(), texts[0].clone()], 12);
    let error = run(&model, &two, &nothing, Some(&mut kv), &mut pass);
    assert!(error.is_err());
}
