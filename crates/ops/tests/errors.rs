//! What the functions refuse, and what they say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use lowrank_ops as ops;
use ops::rng::{Key, Purpose};
use ops::{AttentionMask, Reach, RotaryScaling, RotaryTable};

fn random(dims: &[usize]) -> Tensor {
    let mut stream = Key::new(11, Purpose::Test).stream();
    let numbers: Vec<f64> = (0..dims.iter().product())
        .map(|_| stream.normal())
        .collect();
    let tensor = Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F32).unwrap()
}

#[track_caller]
fn refuses<T: std::fmt::Debug>(result: ops::Result<T>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}

#[test]
fn linear_and_low_rank() {
    let (x, scalar) = (random(&[2, 3]), random(&[]));
    refuses(
        ops::linear(&x, &random(&[5, 4]), None),
        "linear: the weight has shape [5, 4], expected [n_out, 3]",
    );
    refuses(
        ops::linear(&x, &random(&[5, 3]), Some(&random(&[4]))),
        "add_bias: the bias has shape [4], expected [5]",
    );
    refuses(
        ops::linear(&scalar, &random(&[5, 3]), None),
        "linear: x has shape [], expected (.., n) with n > 0",
    );
    refuses(
        ops::low_rank(&x, &random(&[2, 4]), &random(&[5, 2]), 2.0),
        "low_rank: A has shape [2, 4], expected [rank, 3]",
    );
    refuses(
        ops::low_rank(&x, &random(&[2, 3]), &random(&[5, 3]), 2.0),
        "low_rank: B has shape [5, 3], expected [n_out, 2]",
    );
    refuses(
        ops::add_scaled(&x, &random(&[3, 2]), 2.0),
        "add_scaled: the update has shape [3, 2], expected [2, 3]",
    );
}

#[test]
fn rows() {
    let x = random(&[2, 3]);
    refuses(
        ops::add_bias(&x, &random(&[2])),
        "add_bias: the bias has shape [2], expected [3]",
    );
    refuses(
        ops::gather_columns(&x, &[1, 3]),
        "gather_columns: column 3 is out of range, x has 3",
    );
    refuses(
        ops::scale_columns(&x, &random(&[2])),
        "scale_columns: the vector of factors has shape [2], expected [3]",
    );
    refuses(
        ops::rms_norm(&x, &random(&[3, 1]), 1e-5),
        "rms_norm: the weight has shape [3, 1], expected [3]",
    );
    refuses(
        ops::rms_norm(&random(&[4, 0]), &random(&[0]), 1e-5),
        "rms_norm: x has shape [4, 0], expected (.., n) with n > 0",
    );
    refuses(
        ops::rms_norm(&x, &random(&[3]), f64::NAN),
        "rms_norm: eps is NaN, expected a number of at least 0",
    );
    refuses(
        ops::swiglu(&x, &random(&[3, 2])),
        "swiglu: up has shape [3, 2], expected [2, 3]",
    );
    for p in [-0.5, 1.5, f64::NAN] {
        let message = format!("dropout: p is {p}, expected a number from 0 to 1");
        refuses(ops::dropout(&x, p, Key::new(1, Purpose::Dropout)), &message);
    }
}

#[test]
fn indices() {
    let x = random(&[4, 3]);
    refuses(
        ops::embedding(&x, &[1, 4], (1, 2)),
        "embedding: index 4 is out of range, the table has 4 rows",
    );
    refuses(
        ops::embedding(&x, &[1, 3, 2], (2, 2)),
        "embedding: ids has shape [3], expected 2 * 2 ids",
    );
    refuses(
        ops::embedding(&random(&[4]), &[1], (1, 1)),
        "embedding: the table has shape [4], expected [rows, n] with n > 0",
    );
    refuses(
        ops::gather_rows(&x, &[0, u32::MAX]),
        "gather_rows: index 4294967295 is out of range, the table has 4 rows",
    );
    refuses(
        ops::cross_entropy(&x, &[0, 1, 3, 2]),
        "cross_entropy: index 3 is out of range, the table has 3 rows",
    );
    refuses(
        ops::cross_entropy(&x, &[0, 1]),
        "cross_entropy: logits has shape [4, 3], expected [2, vocab] with vocab > 0",
    );
    for (smoothing, shown) in [(1.0, "1"), (-0.5, "-0.5"), (f64::NAN, "NaN")] {
        refuses(
            ops::smoothed_cross_entropy(&x, &[0, 1, 2, 2], smoothing),
            &format!(
                "cross_entropy: the label smoothing is {shown}, expected a number from 0 to below 1"
            ),
        );
    }
}

#[test]
fn rotary() {
    let none = RotaryScaling::None;
    refuses(
        RotaryTable::new(7, 1e4, &none),
        "RotaryTable: head_dim is 7, expected an even number above 0",
    );
    refuses(
        RotaryTable::new(8, -1.0, &none),
        "RotaryTable: theta is -1, expected a number above 0",
    );
    refuses(
        RotaryTable::new(8, 1e4, &RotaryScaling::Linear { factor: 0.0 }),
        "RotaryTable: factor is 0, expected a number above 0",
    );
    let equal = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 4.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    refuses(
        RotaryTable::new(8, 1e4, &equal),
        "RotaryTable: llama3 scaling has factor 8, low_freq_factor 4 and high_freq_factor 4, \
         expected numbers above 0, the low one below the high one",
    );
    let table = RotaryTable::new(8, 1e4, &none).unwrap();
    refuses(
        ops::rotary(&random(&[2, 3, 4, 6]), &table, &[0; 8]),
        "rotary: x has shape [2, 3, 4, 6], expected [batch, heads, tokens, 8]",
    );
    refuses(
        ops::rotary(&random(&[2, 3, 4, 8]), &table, &[0; 7]),
        "rotary: positions has shape [7], expected 2 * 4 positions",
    );
}

#[test]
fn attention() {
    let mask = AttentionMask {
        query_segments: vec![1; 6],
        key_segments: vec![1; 10],
        batch: 2,
        reach: Reach::Before,
    };
    let attend = |q: &[usize], k: &[usize], v: &[usize], mask: &AttentionMask| {
        ops::attention(&random(q), &random(k), &random(v), mask, 0.5)
    };
    let (q, k) = ([2, 4, 3, 6], [2, 2, 5, 6]);
    assert_eq!(attend(&q, &k, &k, &mask).unwrap().dims(), q);
    for bad in [
        [2, 3, 5, 6],
        [2, 2, 2, 6],
        [1, 2, 5, 6],
        [2, 2, 5, 4],
        [2, 0, 5, 6],
    ] {
        let message =
            format!("attention: k has shape {bad:?}, expected [2, a divisor of 4, at least 3, 6]");
        refuses(attend(&q, &bad, &bad, &mask), &message);
    }
    refuses(
        attend(&[4, 3, 6], &k, &k, &mask),
        "attention: q has shape [4, 3, 6], expected [batch, heads, tokens, d]",
    );
    refuses(
        attend(&[2, 4, 0, 6], &k, &k, &mask),
        "attention: q has shape [2, 4, 0, 6], expected [batch, heads, tokens, d], all above 0",
    );
    refuses(
        attend(&q, &k, &[2, 2, 5, 4], &mask),
        "attention: v has shape [2, 2, 5, 4], expected [2, 2, 5, 6]",
    );
    let short = AttentionMask {
        key_segments: vec![1; 9],
        ..mask.clone()
    };
    refuses(
        attend(&q, &k, &k, &short),
        "attention: key_segments has shape [9], expected 10",
    );
    let short = AttentionMask {
        query_segments: vec![1; 7],
        ..mask.clone()
    };
    refuses(
        attend(&q, &k, &k, &short),
        "attention: query_segments has shape [7], expected 6",
    );
    let other = AttentionMask {
        batch: 1,
        ..mask.clone()
    };
    refuses(
        attend(&q, &k, &k, &other),
        "attention: the mask's batch has shape [1], expected 2",
    );
    let flat = random(&[2, 5, 6]);
    let mask = AttentionMask {
        query_segments: vec![1; 10],
        ..mask.clone()
    };
    let side_by_side =
        |d: usize| ops::unrotated_attention(&flat, &flat, &flat, d, &mask, 0.5, None);
    assert_eq!(side_by_side(3).unwrap().dims(), [2, 5, 6]);
    for d in [0, 4] {
        let message = format!(
            "attention: q has shape [2, 5, 6], expected [batch, tokens, a multiple of {d}], all above 0"
        );
        refuses(side_by_side(d), &message);
    }
}
