//! Multiplying every row by the same numbers.

use crate::float::{same_dtype, with_float};
use crate::rows::{column_sums, expect_dims, for_rows, put, rows};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use std::sync::Arc;

/// `x` `(.., n)` * `factors` `[n]` on every row.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn scale_columns(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let (_, n) = rows("scale_columns", "x", x)?;
    expect_dims("scale_columns", "the vector of factors", factors, &[n])?;
    same_dtype("scale_columns", x, &[("the vector of factors", factors)])?;
    if composed::replaces("scale_columns", x)? {
        return composed::scale_columns(x, factors);
    }
    let (x, factors) = (x.contiguous()?, factors.contiguous()?);
    with_float!("scale_columns", x.dtype(), T => {
        let (numbers, by) = (data::<T>(&x)?, data::<T>(&factors)?);
        let mut y = unwritten(numbers.len());
        scale(&numbers, &by, &mut y, false);
        drop((numbers, by));
        let y = [(y, x.shape().clone())];
        let [y] = tape::record("scale_columns", &[&x, &factors], y, ScaleColumns)?;
        Ok(y)
    })
}

struct ScaleColumns;

impl<T: Float> Backward<T> for ScaleColumns {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let (x, factors) = (inputs.data(0)?, inputs.data(1)?);
        if inputs.wanted(0) {
            inputs.accumulate(0, |into, begun| {
                scale(grad, &factors, into, begun);
                Ok(())
            })?;
        }
        if inputs.wanted(1) {
            let n = factors.len();
            let sums = column_sums::<T>(grad.len() / n, n, |row, columns, sums| {
                let (x, grad) = (&x[row * n..][columns.clone()], &grad[row * n..][columns]);
                for (sum, (x, grad)) in sums.iter_mut().zip(x.iter().zip(grad)) {
                    *sum += x.to_f64() * grad.to_f64();
                }
            });
            inputs.add(1, Arc::new(sums));
        }
        Ok(())
    }
}

fn scale<T: Float>(x: &[T], factors: &[T], into: &mut [T], begun: bool) {
    let n = factors.len();
    for_rows(into, n, |row, into| {
        let x = &x[row * n..][..n];
        vectorised!({
            for (into, (x, factor)) in into.iter_mut().zip(x.iter().zip(factors)) {
                put(into, *x * *factor, begun);
            }
        });
    });
}
