//! Multiplying every row by the same numbers.

use crate::float::{same_dtype, with_float};
use crate::rows::{expect_dims, for_rows, put, rows};
use crate::simd::{Level, vectorised};
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, leveled, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
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

/// How many rows a thread works on at once.
const CHUNK: usize = 32;

impl<T: Float> Backward<T> for ScaleColumns {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let (x, factors) = (inputs.data(0)?, inputs.data(1)?);
        let n = factors.len();
        let chunk = (CHUNK * n).max(1);
        if !inputs.wanted(1) {
            return inputs.accumulate(0, |into, begun| {
                scale(grad, &factors, into, begun);
                Ok(())
            });
        }
        let known = grad.par_chunks(chunk).zip(x.par_chunks(chunk));
        let slopes_of = |into: Option<&mut [T]>, (grad, x): (&[T], &[T]), begun| {
            let mut sums = vec![0f64; n];
            slopes(Level::used(), grad, x, &factors, begun, into, &mut sums);
            sums
        };
        let mut parts: Vec<Vec<f64>> = Vec::new();
        if inputs.wanted(0) {
            inputs.accumulate(0, |into, begun| {
                let chunks = into.par_chunks_mut(chunk).zip(known);
                parts = chunks
                    .map(|(into, known)| slopes_of(Some(into), known, begun))
                    .collect();
                Ok(())
            })?;
        } else {
            parts = known.map(|known| slopes_of(None, known, false)).collect();
        }
        // In order, so that the bits do not depend on the number of threads.
        let mut total = vec![0f64; n];
        for part in &parts {
            for (sum, part) in total.iter_mut().zip(part) {
                *sum += *part;
            }
        }
        inputs.add(1, Arc::new(total.into_iter().map(T::from_f64).collect()));
        Ok(())
    }
}

leveled! {
    /// The gradients of the factors, added up over some rows, and if wanted those of x, put into their place or added to it.
    fn slopes<T: Float>(
        grad: &[T],
        x: &[T],
        factors: &[T],
        begun: bool,
        into: Option<&mut [T]>,
        sums: &mut [f64],
    ) {
        let n = factors.len();
        let mut into = into.map(|into| into.chunks_exact_mut(n));
        for (grad, x) in grad.chunks_exact(n).zip(x.chunks_exact(n)) {
            for (sum, (grad, x)) in sums.iter_mut().zip(grad.iter().zip(x)) {
                *sum += grad.to_f64() * x.to_f64();
            }
            if let Some(into) = into.as_mut().and_then(Iterator::next) {
                for (into, (grad, factor)) in into.iter_mut().zip(grad.iter().zip(factors)) {
                    put(into, *grad * *factor, begun);
                }
            }
        }
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
