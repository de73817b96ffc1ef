//! The kernels at every level that the machine has, against plain loops in f64.

use super::{dots, outer};
use crate::rng::{Key, Purpose, Stream};
use crate::simd::Level;
use std::iter::repeat_with;

const RANKS: [usize; 7] = [1, 3, 5, 8, 12, 16, 33];
const WIDTHS: [usize; 9] = [1, 2, 15, 16, 17, 31, 33, 64, 131];
const ROWS: [usize; 5] = [1, 2, 3, 7, 130];

/// Levels that the machine lacks are left out.
fn levels() -> impl Iterator<Item = Level> {
    let levels = Level::WORDS.into_iter().map(|(_, level)| level);
    levels.filter(|level| *level <= Level::of_machine())
}

fn normal(stream: &mut Stream, count: usize) -> Vec<f32> {
    repeat_with(|| stream.normal() as f32).take(count).collect()
}

fn for_sizes(mut check: impl FnMut(&mut Stream, usize, usize, usize)) {
    let mut stream = Key::new(17, Purpose::Test).stream();
    for rank in RANKS {
        for n in WIDTHS {
            for rows in ROWS {
                check(&mut stream, rank, n, rows);
            }
        }
    }
}

/// A sum in f32 errs by a few roundings of the terms' sizes.
#[track_caller]
fn assert_sum(got: f32, terms: impl Iterator<Item = f64>, what: &str) {
    let (mut sum, mut size) = (0.0, 0.0);
    for term in terms {
        sum += term;
        size += term.abs();
    }
    let off = (f64::from(got) - sum).abs();
    assert!(off <= 2e-6 * size, "{what}: {got}, expected {sum}");
}

#[test]
fn dots_equal_plain_loops() {
    for_sizes(|stream, rank, n, rows| {
        let (x, a) = (normal(stream, rows * n), normal(stream, rank * n));
        for level in levels() {
            let mut h = vec![f32::NAN; rows * rank];
            dots(level, &x, &a, n, rank, -1.5, &mut h);
            for (at, got) in h.iter().enumerate() {
                let (x, a) = (&x[at / rank * n..][..n], &a[at % rank * n..][..n]);
                let terms = x.iter().zip(a);
                let terms = terms.map(|(x, a)| -1.5 * f64::from(*x) * f64::from(*a));
                let what = format!("{level:?}, rank {rank}, {rows} rows of {n}, at {at}");
                assert_sum(*got, terms, &what);
            }
        }
    });
}

#[test]
fn outer_products_equal_plain_loops() {
    for_sizes(|stream, rank, n, rows| {
        let (h, g) = (normal(stream, rows * rank), normal(stream, rows * n));
        for level in levels() {
            let mut sum = vec![f32::NAN; rank * n];
            outer(level, &h, &g, n, rank, &mut sum);
            for (at, got) in sum.iter().enumerate() {
                let (i, column) = (at / n, at % n);
                let terms = (0..rows)
                    .map(|row| f64::from(h[row * rank + i]) * f64::from(g[row * n + column]));
                let what = format!("{level:?}, rank {rank}, {rows} rows of {n}, at {at}");
                assert_sum(*got, terms, &what);
            }
        }
    });
}

/// What a row holds shows in its own results only, wherever it lies: not even a NaN elsewhere does.
#[test]
fn rows_and_ranks_do_not_mix() {
    let mut stream = Key::new(19, Purpose::Test).stream();
    let (rows, n, rank) = (5, 37, 11);
    let (mut x, mut a) = (normal(&mut stream, rows * n), normal(&mut stream, rank * n));
    for level in levels() {
        let mut clean = vec![f32::NAN; rows * rank];
        dots(level, &x, &a, n, rank, 0.5, &mut clean);
        let (of_x, of_a) = (x[3 * n + 36], a[9 * n + 2]);
        (x[3 * n + 36], a[9 * n + 2]) = (f32::NAN, f32::NAN);
        let mut h = vec![0.0; rows * rank];
        dots(level, &x, &a, n, rank, 0.5, &mut h);
        (x[3 * n + 36], a[9 * n + 2]) = (of_x, of_a);
        for (at, (got, clean)) in h.iter().zip(&clean).enumerate() {
            if at / rank == 3 || at % rank == 9 {
                assert!(got.is_nan(), "{level:?} {at}");
            } else {
                assert_eq!(got.to_bits(), clean.to_bits(), "{level:?} {at}");
            }
        }
    }
}
