//! Work over the rows of a matrix: split over threads so that the bits do not depend on the split.

use crate::{Error, Float, Result};
use candle_core::Tensor;
use rayon::prelude::*;

/// How many numbers a thread should at least get.
const GRAIN: usize = 4096;

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

/// The gradient of `like`, or any tensor of its shape.
pub(crate) fn tensor<T: Float>(data: Vec<T>, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, like.shape(), like.device())?)
}

/// Calls `write(row, numbers)` for every row of `out`, each of length `n`.
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

/// `value(x, y)` of every pair.
pub(crate) fn zip<T: Float>(x: &[T], y: &[T], value: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    x.par_iter()
        .zip(y)
        .with_min_len(GRAIN)
        .map(|(x, y)| value(*x, *y))
        .collect()
}

/// The sum of `term(row, column)` over all rows, for every one of `n` columns.
pub(crate) fn column_sums<T: Float>(
    rows: usize,
    n: usize,
    term: impl Fn(usize, usize) -> f64 + Sync,
) -> Vec<T> {
    const WIDTH: usize = 64;
    let mut out = vec![T::ZERO; n];
    out.par_chunks_mut(WIDTH)
        .enumerate()
        .for_each(|(block, out)| {
            let mut sums = [0f64; WIDTH];
            for row in 0..rows {
                for (column, sum) in sums[..out.len()].iter_mut().enumerate() {
                    *sum += term(row, block * WIDTH + column);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = T::from_f64(sum);
            }
        });
    out
}

/// The sum of `term(i)` for i in 0..n, over eight lanes because a single sum waits for every addition.
pub(crate) fn sum(n: usize, term: impl Fn(usize) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0f64; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    lanes.iter().sum::<f64>() + (whole..n).map(term).sum::<f64>()
}
