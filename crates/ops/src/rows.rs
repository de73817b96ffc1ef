//! Work over the rows of a matrix: split over threads so that the bits do not depend on the split.

use crate::simd::vectorised;
use crate::{Error, Float, Result, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// How many numbers a thread should at least get.
pub(crate) const GRAIN: usize = 4096;

/// (number of rows, length of a row), where rows lie along the last axis.
pub(crate) fn rows(op: &'static str, what: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match x.dims() {
        [outer @ .., n] if *n > 0 => Ok((outer.iter().product(), *n)),
        dims => Err(Error::Shape {
            op,
            what,
            got: dims.to_vec(),
            expected: "(.., n) with n > 0".into(),
        }),
    }
}

/// Refuses a tensor that does not have these dimensions.
pub(crate) fn expect_dims(
    op: &'static str,
    what: &'static str,
    x: &Tensor,
    dims: &[usize],
) -> Result<()> {
    if x.dims() == dims {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what,
        got: x.dims().to_vec(),
        expected: format!("{dims:?}"),
    })
}

/// Calls `write(row, numbers)` for every row of `out`, each of length `n`; what is in it is for it to vectorise.
pub(crate) fn for_rows<T: Float>(out: &mut [T], n: usize, write: impl Fn(usize, &mut [T]) + Sync) {
    out.par_chunks_mut(n)
        .with_min_len(GRAIN.div_ceil(n))
        .enumerate()
        .for_each(|(row, numbers)| write(row, numbers));
}

/// `value(row)` of every row, where a row costs about `n` operations.
pub(crate) fn map_rows<R: Send>(
    rows: usize,
    n: usize,
    value: impl Fn(usize) -> R + Sync,
) -> Vec<R> {
    (0..rows)
        .into_par_iter()
        .with_min_len(GRAIN.div_ceil(n))
        .map(&value)
        .collect()
}

/// Puts a value in a sum's place, or adds it where the sum has begun.
#[inline(always)]
pub(crate) fn put<T: Float>(sum: &mut T, value: T, begun: bool) {
    *sum = if begun { *sum + value } else { value };
}

/// `value(x, y)` of every pair.
pub(crate) fn zip<T: Float>(x: &[T], y: &[T], value: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    let mut out = unwritten(x.len());
    out.par_chunks_mut(GRAIN)
        .zip(x.par_chunks(GRAIN).zip(y.par_chunks(GRAIN)))
        .for_each(|(out, (x, y))| {
            vectorised!({
                for (out, (x, y)) in out.iter_mut().zip(x.iter().zip(y)) {
                    *out = value(*x, *y);
                }
            });
        });
    out
}

/// A copy, which takes more than one thread where it is large.
pub(crate) fn copied<T: Float>(x: &[T]) -> Vec<T> {
    let mut copy = unwritten(x.len());
    copy.par_chunks_mut(16 * GRAIN)
        .zip(x.par_chunks(16 * GRAIN))
        .for_each(|(copy, x)| copy.copy_from_slice(x));
    copy
}

/// into += x, number by number.
pub(crate) fn add_assign<T: Float>(into: &mut [T], x: &[T]) {
    into.par_chunks_mut(GRAIN)
        .zip(x.par_chunks(GRAIN))
        .for_each(|(into, x)| {
            vectorised!({
                for (into, x) in into.iter_mut().zip(x) {
                    *into += *x;
                }
            });
        });
}

/// The sum of all rows for every one of `n` columns, where `add(row, columns, sums)` adds a row's part.
pub(crate) fn column_sums<T: Float>(
    rows: usize,
    n: usize,
    add: impl Fn(usize, Range<usize>, &mut [f64]) + Sync,
) -> Vec<T> {
    const WIDTH: usize = 64;
    let mut out = vec![T::ZERO; n];
    out.par_chunks_mut(WIDTH)
        .enumerate()
        .for_each(|(block, out)| {
            let mut sums = [0f64; WIDTH];
            let columns = block * WIDTH..block * WIDTH + out.len();
            for row in 0..rows {
                add(row, columns.clone(), &mut sums);
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = T::from_f64(sum);
            }
        });
    out
}

/// The sum of `term(x)`, over eight lanes because a single sum waits for every addition.
#[inline(always)]
pub(crate) fn sum<T: Float>(x: &[T], term: impl Fn(T) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| term(*x)).sum::<f64>()
}

/// The sum of x * y, over eight lanes.
#[inline(always)]
pub(crate) fn dot<T: Float>(x: &[T], y: &[T]) -> f64 {
    let mut lanes = [0f64; 8];
    let ((x_chunks, x_rest), (y_chunks, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += x.to_f64() * y.to_f64();
        }
    }
    let rest = x_rest.iter().zip(y_rest);
    lanes.iter().sum::<f64>() + rest.map(|(x, y)| x.to_f64() * y.to_f64()).sum::<f64>()
}

/// The largest number of a row that is not empty.
#[inline(always)]
pub(crate) fn max<T: Float>(x: &[T]) -> T {
    let larger = |max: T, x: &T| if *x > max { *x } else { max };
    let mut lanes = [x[0]; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    lanes.iter().chain(rest).fold(x[0], larger)
}

/// Puts e to the power of x - max in place of every x, and returns their sum: a few numbers at a time in their own
/// precision, those sums in f64.
#[inline(always)]
pub(crate) fn exp_and_sum<T: Float>(x: &mut [T], max: T) -> f64 {
    const LANES: usize = 16;
    const TURNS: usize = 8;
    let mut total = 0f64;
    for x in x.chunks_mut(LANES * TURNS) {
        let mut lanes = [T::ZERO; LANES];
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = Float::exp(*x - max);
                *lane += *x;
            }
        }
        for x in rest {
            *x = Float::exp(*x - max);
            total += x.to_f64();
        }
        let mut sums = [0f64; LANES];
        for (sum, lane) in sums.iter_mut().zip(lanes) {
            *sum = lane.to_f64();
        }
        total += sums.iter().sum::<f64>();
    }
    total
}
