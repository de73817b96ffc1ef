//! Attention among the tokens of a batch, against its parts: heads apart, rotation, attention.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod twins;

use candle_core::{DType, Tensor};
use lowrank_ops as ops;
use ops::rng::{Key, Purpose};
use ops::{AttentionMask, Dropout, Reach, RotaryScaling, RotaryTable, composed};
use support::{assert_close, check, normal, numbers, stream};

/// [batch, tokens, heads * d] -> [batch, heads, tokens, d].
fn heads(x: &Tensor, d: usize) -> ops::Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    Ok(x.reshape((batch, tokens, width / d, d))?.transpose(1, 2)?)
}

fn twin(
    x: &[Tensor],
    (table, positions): (&RotaryTable, &[u32]),
    mask: &AttentionMask,
    scale: f64,
) -> ops::Result<Tensor> {
    let d = table.frequencies().len() * 2;
    let q = composed::rotary(&heads(&x[0], d)?, table, positions)?;
    let k = composed::rotary(&heads(&x[1], d)?, table, positions)?;
    let y = composed::attention(&q, &k, &heads(&x[2], d)?.contiguous()?, mask, scale)?;
    Ok(y.transpose(1, 2)?.contiguous()?.reshape(x[0].shape())?)
}

/// The rows' segments, each row of as many tokens, and positions that begin anew with every text.
fn packed(rows: &[&[u32]]) -> (AttentionMask, Vec<u32>) {
    let segments = rows.concat();
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch: rows.len(),
        reach: Reach::Before,
    };
    let mut positions = Vec::new();
    for row in rows {
        for text in row.chunk_by(|one, other| one == other) {
            positions.extend(0..text.len() as u32);
        }
    }
    (mask, positions)
}

fn check_rows(rows: &[&[u32]], (q_heads, kv_heads): (usize, usize), d: usize) {
    let (mask, positions) = packed(rows);
    let table = RotaryTable::new(d, 50.0, &RotaryScaling::None).unwrap();
    let q = [rows.len(), rows[0].len(), q_heads * d];
    let k = [rows.len(), rows[0].len(), kv_heads * d];
    let turn = (&table, positions.as_slice());
    let window = Reach::Window(std::num::NonZeroUsize::new(2).unwrap());
    for reach in [Reach::Before, Reach::All, window] {
        let mask = mask.clone().reaching(reach);
        let fused = |x: &[Tensor]| ops::self_attention(&x[0], &x[1], &x[2], turn, &mask, 0.6);
        let twin = |x: &[Tensor]| twin(x, turn, &mask, 0.6);
        check("attention", &[&q, &k, &k], &fused, &twin);
        // Without positions to turn by, everything is as at position 0.
        let zero = vec![0; positions.len()];
        let fused =
            |x: &[Tensor]| ops::unrotated_attention(&x[0], &x[1], &x[2], d, &mask, 0.6, None);
        let twin = |x: &[Tensor]| self::twin(x, (&table, &zero), &mask, 0.6);
        check("attention", &[&q, &k, &k], &fused, &twin);
        for dropout in [
            None,
            Some(Dropout::new(0.3, Key::new(9, Purpose::Dropout)).unwrap()),
        ] {
            let fused = |x: &[Tensor]| {
                ops::unrotated_attention(&x[0], &x[1], &x[2], d, &mask, 0.6, dropout)
            };
            let twin = |x: &[Tensor]| {
                composed::unrotated_attention(&x[0], &x[1], &x[2], d, &mask, 0.6, dropout)
            };
            check("attention", &[&q, &k, &k], &fused, &twin);
        }
    }
}

#[test]
fn equals_its_parts() {
    check_rows(&[&[1; 5], &[1; 5]], (2, 2), 4);
    check_rows(&[&[1; 3]], (3, 1), 6);
}

#[test]
fn heads_in_groups_over_packed_texts_equal_their_parts() {
    check_rows(&[&[1, 1, 1, 2, 2, 0], &[3, 4, 4, 4, 4, 4]], (6, 2), 4);
    check_rows(&[&[0, 2, 2, 5]], (4, 2), 2);
}

#[test]
fn equals_its_parts_over_several_blocks() {
    // Blocks are of 64 queries: the texts end inside, at an edge, and one spans three. Differences would take too long.
    let rows: [Vec<u32>; 2] = [
        [vec![1; 64], vec![2; 3], vec![3; 70]].concat(),
        [vec![1; 134], vec![0; 3]].concat(),
    ];
    let (mask, positions) = packed(&[&rows[0], &rows[1]]);
    let table = RotaryTable::new(10, 200.0, &RotaryScaling::None).unwrap();
    let turn = (&table, positions.as_slice());
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F64, 1e-13)] {
        let random = &mut stream("blocks");
        let leaves =
            [60, 20, 20].map(|width| ops::leaf(&normal(random, &[2, 137, width], dtype)).unwrap());
        let upstream = normal(random, &[2, 137, 60], dtype);
        let inputs = leaves.each_ref().map(|leaf| leaf.as_tensor().clone());
        let results = [
            ops::self_attention(&inputs[0], &inputs[1], &inputs[2], turn, &mask, 0.4),
            twin(&inputs, turn, &mask, 0.4),
        ];
        let [fused, composed] = results.map(|y| {
            let y = y.unwrap();
            let root = ops::Seed::apply(&y, &upstream).unwrap();
            let leaves = leaves.each_ref();
            let (_, grads) = ops::backward(&root, &[], &leaves).unwrap();
            let grads = grads.into_iter().map(Option::unwrap);
            [y].into_iter().chain(grads).collect::<Vec<_>>()
        });
        assert_eq!(fused.len(), 4);
        for (at, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
            assert_close(fused, composed, tolerance, &format!("{dtype:?}, {at}"));
        }
    }
}

/// Texts that are packed into a row are, to the bit, what they are in rows of their own.
#[test]
fn packed_texts_equal_texts_alone() {
    let row = [vec![1u32; 7], vec![2; 1], vec![3; 4]].concat();
    let (mask, positions) = packed(&[&row]);
    let d = 6;
    let table = RotaryTable::new(d, 300.0, &RotaryScaling::None).unwrap();
    let random = &mut stream("alone");
    for dtype in [DType::F32, DType::F64] {
        let inputs = [4 * d, 2 * d, 2 * d].map(|width| normal(random, &[1, 12, width], dtype));
        let [q, k, v] = &inputs;
        let whole = ops::self_attention(q, k, v, (&table, &positions), &mask, 0.5).unwrap();
        for (first, count) in [(0, 7), (7, 1), (8, 4)] {
            let part = |x: &Tensor| x.narrow(1, first, count).unwrap();
            let (mask, positions) = packed(&[&row[first..first + count]]);
            let turn = (&table, positions.as_slice());
            let alone = ops::self_attention(&part(q), &part(k), &part(v), turn, &mask, 0.5);
            assert_eq!(numbers(&alone.unwrap()), numbers(&part(&whole)), "{first}");
        }
    }
}

#[test]
fn positions_count_by_their_distance() {
    let (mask, positions) = packed(&[&[1; 6]]);
    let later: Vec<u32> = positions.iter().map(|position| position + 91).collect();
    let table = RotaryTable::new(4, 100.0, &RotaryScaling::None).unwrap();
    let random = &mut stream("distance");
    let [q, k, v] = [8, 4, 4].map(|width| normal(random, &[1, 6, width], DType::F64));
    let run = |positions: &[u32]| {
        ops::self_attention(&q, &k, &v, (&table, positions), &mask, 0.8).unwrap()
    };
    assert_close(&run(&later), &run(&positions), 1e-6, "all later");
    let mut other = positions.clone();
    other[5] = 9;
    let (changed, plain) = (numbers(&run(&other)), numbers(&run(&positions)));
    assert_eq!(changed[..40], plain[..40]);
    assert!((changed[40] - plain[40]).abs() > 1e-4);
}

#[test]
fn what_is_refused() {
    let (mask, positions) = packed(&[&[1; 3], &[1; 3]]);
    let table = RotaryTable::new(4, 100.0, &RotaryScaling::None).unwrap();
    let refusal = |q: &[usize], k: &[usize], v: &[usize], positions: &[u32]| {
        let random = &mut stream("refused");
        let mut draw = |dims: &[usize]| normal(random, dims, DType::F32);
        let (q, k, v) = (draw(q), draw(k), draw(v));
        let result = ops::self_attention(&q, &k, &v, (&table, positions), &mask, 0.5);
        result.unwrap_err().to_string()
    };
    let (q, k) = ([2, 3, 16], [2, 3, 8]);
    assert_eq!(
        refusal(&[2, 3, 14], &k, &k, &positions),
        "attention: q has shape [2, 3, 14], expected [batch, tokens, a multiple of 4], all above 0"
    );
    for bad in [[2, 3, 12], [2, 3, 6], [2, 4, 8], [1, 3, 8], [2, 3, 0]] {
        assert_eq!(
            refusal(&q, &bad, &bad, &positions),
            format!("attention: k has shape {bad:?}, expected [2, 3, 4 * a divisor of 4]")
        );
    }
    assert_eq!(
        refusal(&q, &k, &[2, 3, 4], &positions),
        "attention: v has shape [2, 3, 4], expected [2, 3, 8]"
    );
    assert_eq!(
        refusal(&q, &k, &k, &positions[1..]),
        "self_attention: positions has shape [5], expected 2 * 3 positions"
    );
}

#[test]
fn all_of_it_holds_of_the_twins() {
    twins::run_composed(&[]);
}
