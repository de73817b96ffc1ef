//! Attention: who sees whom, grouped heads, cached keys.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod twins;

use candle_core::{DType, Tensor};
use lowrank_ops as ops;
use ops::{AttentionMask, Reach, composed};
use std::num::NonZeroUsize;
use support::{assert_close, check, normal, numbers, stream};

fn one_segment(batch: usize, tokens: usize, keys: usize) -> AttentionMask {
    AttentionMask {
        query_segments: vec![1; batch * tokens],
        key_segments: vec![1; batch * keys],
        batch,
        reach: Reach::Before,
    }
}

/// q, k and v of one batch.
fn inputs(
    site: &str,
    batch: usize,
    (heads, kv_heads): (usize, usize),
    tokens: usize,
    d: usize,
) -> [Tensor; 3] {
    let random = &mut stream(site);
    let mut draw = |heads| normal(random, &[batch, heads, tokens, d], DType::F64);
    [draw(heads), draw(kv_heads), draw(kv_heads)]
}

/// Every way to see, windows from one token to more than there are.
fn reaches() -> Vec<Reach> {
    let windows = [1, 2, 4, 40].map(|count| Reach::Window(NonZeroUsize::new(count).unwrap()));
    [&[Reach::Before, Reach::All], &windows[..]].concat()
}

fn check_mask(sizes: [usize; 6], mask: &AttentionMask) {
    for reach in reaches() {
        check_reach(sizes, &mask.clone().reaching(reach));
    }
}

fn check_reach(sizes: [usize; 6], mask: &AttentionMask) {
    let [batch, heads, kv_heads, tokens, keys, d] = sizes;
    let (q, k) = ([batch, heads, tokens, d], [batch, kv_heads, keys, d]);
    let fused = |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], mask, 0.7);
    let twin = |x: &[Tensor]| composed::attention(&x[0], &x[1], &x[2], mask, 0.7);
    check("attention", &[&q, &k, &k], &fused, &twin);
}

#[test]
fn equals_the_composed_twin() {
    check_mask([2, 2, 2, 5, 5, 3], &one_segment(2, 5, 5));
    check_mask([1, 6, 2, 3, 7, 4], &one_segment(1, 3, 7));
    check_mask([2, 3, 1, 1, 4, 5], &one_segment(2, 1, 4));
    let padded = AttentionMask {
        query_segments: vec![1, 1, 2, 2, 2, 0, 0, 3, 3, 3, 3, 0],
        key_segments: vec![1, 1, 2, 2, 2, 0, 0, 3, 3, 3, 3, 0],
        batch: 2,
        reach: Reach::Before,
    };
    check_mask([2, 4, 2, 6, 6, 3], &padded);
}

#[test]
fn equals_the_composed_twin_over_several_blocks() {
    // More than two blocks of queries, with a boundary inside of one; differences would take too long here.
    let (batch, tokens, d) = (2, 150, 8);
    let segments: Vec<u32> = (0..batch * tokens)
        .map(|at| if at % tokens < 71 { 1 } else { 2 })
        .collect();
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch,
        reach: Reach::Before,
    };
    let leaves = inputs("blocks", batch, (4, 2), tokens, d).map(|x| ops::leaf(&x).unwrap());
    let weights = normal(&mut stream("weights"), leaves[0].dims(), DType::F64);
    for reach in reaches() {
        let mask = mask.clone().reaching(reach);
        let [fused, twin] = [ops::attention, composed::attention].map(|attention| {
            let y = attention(&leaves[0], &leaves[1], &leaves[2], &mask, 0.35).unwrap();
            let loss = ops::sum_all(&(&y * &weights).unwrap()).unwrap();
            let leaves = [&leaves[0], &leaves[1], &leaves[2]];
            let (_, grads) = ops::backward(&loss, &[], &leaves).unwrap();
            let mut all = vec![y];
            all.extend(grads.into_iter().flatten());
            all
        });
        assert_eq!(fused.len(), 4);
        for (fused, twin) in fused.iter().zip(&twin) {
            assert_close(fused, twin, 1e-13, &format!("{reach:?}"));
        }
    }
}

#[test]
fn one_key_is_copied_and_two_are_weighed() {
    let q = Tensor::new(&[[[[1f64, 2.], [0.5, -1.]]]], &candle_core::Device::Cpu).unwrap();
    let v = Tensor::new(&[[[[3f64, -1.], [5., 7.]]]], &candle_core::Device::Cpu).unwrap();
    let y = ops::attention(&q, &q, &v, &one_segment(1, 2, 2), 2.0).unwrap();
    // Scores of the second query: 2 * (0.5 - 2) = -3 and 2 * (0.25 + 1) = 2.5.
    let share = 1.0 / (1.0 + 5.5f64.exp());
    let expected = [3.0, -1.0, 5.0 - 2.0 * share, 7.0 - 8.0 * share];
    for (got, expected) in numbers(&y).iter().zip(expected) {
        assert!((got - expected).abs() < 1e-15, "{got} {expected}");
    }
}

#[test]
fn segments_in_a_row_equal_separate_rows() {
    let [q, k, v] = inputs("segments", 1, (4, 2), 9, 5);
    let segments = vec![7, 7, 7, 7, 2, 2, 2, 0, 0];
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch: 1,
        reach: Reach::Before,
    };
    let y = ops::attention(&q, &k, &v, &mask, 0.4).unwrap();
    for (start, len) in [(0, 4), (4, 3), (7, 1), (8, 1)] {
        let [q, k, v, y] = [&q, &k, &v, &y].map(|x| x.narrow(2, start, len).unwrap());
        let alone = ops::attention(&q, &k, &v, &one_segment(1, len, len), 0.4).unwrap();
        assert_close(&y, &alone, 1e-14, "segment");
    }
}

/// What a neighbour holds is never touched, neither forward nor backward: not even a NaN of it shows.
#[test]
fn other_segments_of_a_row_are_skipped() {
    // The second segment spans two blocks of queries.
    let lengths = [5, 90, 1, 7];
    let tokens = lengths.iter().sum();
    let texts = (1..).zip(lengths);
    let segments: Vec<u32> = texts.flat_map(|(text, len)| vec![text; len]).collect();
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch: 1,
        reach: Reach::Before,
    };
    let inputs = inputs("skipped", 1, (4, 2), tokens, 3);
    let upstream = normal(&mut stream("upstream"), &[1, 4, tokens, 3], DType::F64);
    let run = |inputs: &[Tensor; 3], upstream: &Tensor, mask: &AttentionMask| {
        let leaves = inputs.each_ref().map(|x| ops::leaf(x).unwrap());
        let y = ops::attention(&leaves[0], &leaves[1], &leaves[2], mask, 0.6).unwrap();
        let root = ops::Seed::apply(&y, upstream).unwrap();
        let leaves = [&leaves[0], &leaves[1], &leaves[2]];
        let (_, grads) = ops::backward(&root, &[], &leaves).unwrap();
        let mut all = vec![y];
        all.extend(grads.into_iter().flatten());
        all
    };
    for reach in reaches() {
        let mask = mask.clone().reaching(reach);
        let mut start = 0;
        for (text, len) in lengths.into_iter().enumerate() {
            let poison: Vec<f64> = (0..tokens)
                .map(|at| f64::from(u8::from(mask.query_segments[at] as usize == text + 1)))
                .map(|own| if own == 1.0 { 0.0 } else { f64::NAN })
                .collect();
            let poison = Tensor::from_vec(poison, (1, 1, tokens, 1), upstream.device()).unwrap();
            let poisoned = inputs.each_ref().map(|x| x.broadcast_add(&poison).unwrap());
            let packed = run(&poisoned, &upstream, &mask);
            let own = |x: &Tensor| x.narrow(2, start, len).unwrap().contiguous().unwrap();
            let one = one_segment(1, len, len).reaching(reach);
            let alone = run(&inputs.each_ref().map(own), &own(&upstream), &one);
            assert_eq!(packed.len(), 4);
            for (packed, alone) in packed.iter().zip(&alone) {
                assert_eq!(
                    numbers(&own(packed)),
                    numbers(alone),
                    "text {text}, {reach:?}"
                );
            }
            start += len;
        }
    }
}

/// Segments may continue after others, as they do behind a cache of several texts.
#[test]
fn a_segment_goes_on_behind_another() {
    let scattered = AttentionMask {
        query_segments: vec![2, 1, 1, 0, 2],
        key_segments: vec![1, 1, 2, 0, 2, 1, 1, 0, 2],
        batch: 1,
        reach: Reach::Before,
    };
    check_mask([1, 4, 2, 5, 9, 3], &scattered);
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let [q, k, v] = inputs("padding", 2, (2, 1), 6, 3);
    let segments = vec![0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0];
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch: 2,
        reach: Reach::Before,
    };
    let y = ops::attention(&q, &k, &v, &mask, 0.9).unwrap();
    assert!(ops::all_finite(&y).unwrap());
    for (row, start) in [(0, 2), (1, 0)] {
        let [q, k, v, y] =
            [&q, &k, &v, &y].map(|x| x.narrow(0, row, 1).unwrap().narrow(2, start, 4).unwrap());
        let alone = ops::attention(&q, &k, &v, &one_segment(1, 4, 4), 0.9).unwrap();
        assert_close(&y, &alone, 1e-14, "padded row");
    }
    // Padding sees itself alone.
    let own = v.narrow(2, 1, 1).unwrap().narrow(0, 0, 1).unwrap();
    let padding = y
        .narrow(2, 1, 1)
        .unwrap()
        .narrow(0, 0, 1)
        .unwrap()
        .narrow(1, 1, 1)
        .unwrap();
    assert_eq!(numbers(&padding), numbers(&own));
}

/// Where others may be seen: of four tokens the outer two belong together, and a window of two reaches over the gap.
#[test]
fn each_reach_sees_what_it_says() {
    let same = Tensor::ones((1, 1, 4, 2), DType::F64, &candle_core::Device::Cpu).unwrap();
    let v = Tensor::new(&[[[[3f64], [50.], [700.], [9.]]]], same.device()).unwrap();
    let v = v.broadcast_mul(&Tensor::new(&[1f64, -1.], same.device()).unwrap());
    let v = v.unwrap();
    let segments = vec![5, 5, 0, 5];
    for (reach, expected) in [
        (Reach::Before, [3.0, 53.0 / 2.0, 700.0, 62.0 / 3.0]),
        (Reach::All, [62.0 / 3.0, 62.0 / 3.0, 700.0, 62.0 / 3.0]),
        (
            Reach::Window(NonZeroUsize::new(2).unwrap()),
            [3.0, 53.0 / 2.0, 700.0, 59.0 / 2.0],
        ),
        (Reach::Window(NonZeroUsize::MIN), [3.0, 50.0, 700.0, 9.0]),
    ] {
        let mask = AttentionMask {
            query_segments: segments.clone(),
            key_segments: segments.clone(),
            batch: 1,
            reach,
        };
        for attention in [ops::attention, composed::attention, ops::attention_cached] {
            let y = numbers(&attention(&same, &same, &v, &mask, 0.5).unwrap());
            for (at, expected) in expected.into_iter().enumerate() {
                let off = (y[2 * at] - expected).abs() + (y[2 * at + 1] + expected).abs();
                assert!(off < 1e-12, "{reach:?}, query {at}: {y:?}");
            }
        }
    }
}

#[test]
fn grouped_heads_equal_repeated_heads() {
    let [q, k, v] = inputs("groups", 2, (6, 2), 5, 4);
    let mask = one_segment(2, 5, 5);
    let grouped = ops::attention(&q, &k, &v, &mask, 0.5).unwrap();
    let rows = Tensor::new(&[0u32, 0, 0, 1, 1, 1], q.device()).unwrap();
    let [k, v] = [&k, &v].map(|x| x.index_select(&rows, 1).unwrap());
    let repeated = ops::attention(&q, &k, &v, &mask, 0.5).unwrap();
    assert_eq!(numbers(&grouped), numbers(&repeated));
}

#[test]
fn cached_keys_equal_the_last_rows() {
    let [q, k, v] = inputs("cache", 2, (4, 2), 70, 4);
    let segments: Vec<u32> = (0..140).map(|at| u32::from(at != 0)).collect();
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch: 2,
        reach: Reach::Before,
    };
    let full = ops::attention(&q, &k, &v, &mask, 0.5).unwrap();
    for tokens in [1, 3, 66] {
        let start = 70 - tokens;
        let of_row = |row: usize| mask.query_segments[row * 70 + start..][..tokens].to_vec();
        let query_segments = [of_row(0), of_row(1)].concat();
        let mask = AttentionMask {
            query_segments,
            ..mask.clone()
        };
        let last =
            ops::attention(&q.narrow(2, start, tokens).unwrap(), &k, &v, &mask, 0.5).unwrap();
        assert_close(
            &last,
            &full.narrow(2, start, tokens).unwrap(),
            1e-14,
            "cached",
        );
    }
}

#[test]
fn large_scores_stay_finite() {
    let [q, k, v] = inputs("large", 1, (2, 1), 6, 4).map(|x| x.to_dtype(DType::F32).unwrap());
    let q = ops::leaf(&(q * 1e4).unwrap()).unwrap();
    let y = ops::attention(&q, &(k * 1e4).unwrap(), &v, &one_segment(1, 6, 6), 3.0).unwrap();
    assert!(ops::all_finite(&y).unwrap());
    let loss = ops::sum_all(&y).unwrap();
    let (_, grads) = ops::backward(&loss, &[], &[&q]).unwrap();
    assert!(ops::all_finite(grads[0].as_ref().unwrap()).unwrap());
}

#[test]
fn all_of_it_holds_of_the_twins() {
    // A twin multiplies hidden values by 0, so what is in them must be finite.
    twins::run_composed(&["other_segments_of_a_row_are_skipped"]);
}
