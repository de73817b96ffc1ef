//! Attention over a cache is attention over copies of what it holds.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use candle_core::{DType, Device, Tensor, Var};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{AttentionMask, Reach, attention, attention_cached, composed};
use std::num::NonZeroUsize;

fn random(seed: u64, dims: (usize, usize, usize, usize)) -> Tensor {
    let count = dims.0 * dims.1 * dims.2 * dims.3;
    let mut stream = Key::new(seed, Purpose::Init).stream();
    let numbers: Vec<f64> = (0..count).map(|_| stream.uniform() * 3.0 - 1.5).collect();
    Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn assert_near(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims());
    for (got, expected) in numbers(got).iter().zip(numbers(expected)) {
        assert!(
            (got - expected).abs() <= tolerance,
            "{got}, expected {expected}"
        );
    }
}

/// Rows of several lengths, padded on the right or in front, with a second text in the last row.
fn mask(batch: usize, tokens: usize, keys: usize) -> AttentionMask {
    let mut key_segments = Vec::new();
    for row in 0..batch {
        for key in 0..keys {
            let padding = (row == 1 && key < keys / 3) || (row == 2 && key + 1 == keys);
            let second = row + 1 == batch && key > keys / 2;
            key_segments.push(match (padding, second) {
                (true, _) => 0,
                (false, true) => 2,
                (false, false) => 1,
            });
        }
    }
    let query_segments = key_segments
        .chunks(keys)
        .flat_map(|row| row[keys - tokens..].to_vec())
        .collect();
    AttentionMask {
        query_segments,
        key_segments,
        batch,
        reach: Reach::Before,
    }
}

#[test]
fn it_reads_parts_of_a_cache_as_if_they_were_copied() {
    for (batch, heads, kv_heads, tokens, keys, d) in [
        (1, 3, 1, 1, 1, 5),
        (1, 6, 2, 1, 19, 8),
        (3, 4, 4, 2, 31, 17),
        (4, 9, 3, 1, 300, 64),
        (2, 6, 3, 8, 45, 33),
        (3, 4, 2, 9, 21, 6),
    ] {
        let mask = mask(batch, tokens, keys);
        let reach = [
            Reach::Before,
            Reach::Window(NonZeroUsize::new(1 + keys / 3).unwrap()),
            Reach::All,
        ];
        for mask in reach.map(|reach| mask.clone().reaching(reach)) {
            let q = random(1, (batch, tokens, heads, d))
                .transpose(1, 2)
                .unwrap();
            let rooms = [2, 3].map(|seed| random(seed, (batch, kv_heads, keys + 7, d)));
            let copies = rooms
                .each_ref()
                .map(|room| room.narrow(2, 4, keys).unwrap().force_contiguous().unwrap());
            let expected = composed::attention(&q, &copies[0], &copies[1], &mask, 0.37).unwrap();
            for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 4e-6)] {
                let q = q.to_dtype(dtype).unwrap();
                let [k, v] = rooms
                    .each_ref()
                    .map(|room| room.to_dtype(dtype).unwrap().narrow(2, 4, keys).unwrap());
                let got = attention_cached(&q, &k, &v, &mask, 0.37).unwrap();
                assert_near(&got, &expected, tolerance);
                let other = attention(&q, &k, &v, &mask, 0.37).unwrap();
                assert_near(&got, &other, tolerance);
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mask = mask(4, 1, 700);
    let [q, k, v] = [(1, 9, 1), (2, 3, 700), (3, 3, 700)].map(|(seed, heads, length)| {
        let t = random(seed, (4, heads, length, 64));
        t.to_dtype(DType::F32).unwrap()
    });
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        pool.install(|| numbers(&attention_cached(&q, &k, &v, &mask, 0.125).unwrap()))
    };
    assert_eq!(on(1), on(2));
    assert_eq!(on(2), on(5));
}

#[test]
fn a_graph_goes_the_other_way() {
    let mask = mask(1, 1, 6);
    let q = Var::from_tensor(&random(1, (1, 2, 1, 4))).unwrap();
    let (k, v) = (random(2, (1, 1, 6, 4)), random(3, (1, 1, 6, 4)));
    let y = attention_cached(q.as_tensor(), &k, &v, &mask, 0.5).unwrap();
    assert!(y.track_op());
}

#[test]
fn what_does_not_fit_is_refused() {
    let mask = mask(1, 1, 6);
    let q = random(1, (1, 2, 1, 4));
    let good = random(2, (1, 1, 6, 4));
    for (k, v) in [
        (random(3, (1, 1, 5, 4)), good.clone()),
        (good.clone(), random(3, (1, 1, 5, 4))),
        (random(3, (1, 1, 6, 3)), good.clone()),
        (random(3, (2, 1, 6, 4)), good.clone()),
        (good.clone(), good.to_dtype(DType::F32).unwrap()),
    ] {
        assert!(attention_cached(&q, &k, &v, &mask, 0.5).is_err());
    }
}
