//! Sums over whole tensors, in f64 and always in the same order.

use crate::float::with_float;
use crate::rows::{dot, map_rows, rows, sum};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data};
use candle_core::{Shape, Tensor, WithDType as _};
use rayon::prelude::*;
use std::sync::Arc;

/// The sum of all numbers, a scalar.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn sum_all(x: &Tensor) -> Result<Tensor> {
    if composed::replaces("sum_all", x)? {
        return composed::sum_all(x);
    }
    let x = x.contiguous()?;
    with_float!("sum_all", x.dtype(), T => {
        let total = T::from_f64(total(&data::<T>(&x)?, |x| x.to_f64()));
        let [total] = tape::record("sum_all", &[&x], [(vec![total], Shape::from(()))], SumAll)?;
        Ok(total)
    })
}

/// True if there is neither a NaN nor an infinity. Takes no part in a graph.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    if composed::replaces("all_finite", x)? {
        return composed::all_finite(x);
    }
    let x = x.detach().contiguous()?;
    with_float!("all_finite", x.dtype(), T => {
        Ok(data::<T>(&x)?.par_chunks(BLOCK).all(finite))
    })
}

/// The sum of squares. Takes no part in a graph.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn norm_squared(x: &Tensor) -> Result<f64> {
    if composed::replaces("norm_squared", x)? {
        return composed::norm_squared(x);
    }
    let x = x.detach().contiguous()?;
    with_float!("norm_squared", x.dtype(), T => {
        Ok(total(&data::<T>(&x)?, square))
    })
}

/// The sum of squares of every row of `x` `(.., n)`. Takes no part in a graph.
///
/// # Errors
/// If the rows are empty, or the dtype is neither f32 nor f64.
pub fn row_norms_squared(x: &Tensor) -> Result<Vec<f64>> {
    let (count, n) = rows("row_norms_squared", "x", x)?;
    if composed::replaces("row_norms_squared", x)? {
        return composed::row_norms_squared(x);
    }
    let x = x.detach().contiguous()?;
    with_float!("row_norms_squared", x.dtype(), T => {
        let x = data::<T>(&x)?;
        let x = &*x;
        Ok(map_rows(count, n, |row| {
            let x = &x[row * n..][..n];
            vectorised!(dot(x, x))
        }))
    })
}

fn finite<T: Float>(block: &[T]) -> bool {
    block.iter().all(|x| x.to_f64().is_finite())
}

fn square<T: Float>(x: T) -> f64 {
    x.to_f64() * x.to_f64()
}

const BLOCK: usize = 4096;

/// Blocks of a fixed size are summed apart, their sums one after the other.
fn total<T: Float>(numbers: &[T], term: impl Fn(T) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> = numbers
        .par_chunks(BLOCK)
        .map(|block| vectorised!(sum(block, &term)))
        .collect();
    sums.iter().sum()
}

struct SumAll;

impl<T: Float> Backward<T> for SumAll {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        if let Some(grad) = &grads[0] {
            let count = inputs.tensor(0).elem_count();
            inputs.add(0, Arc::new(vec![grad[0]; count]));
        }
        Ok(())
    }
}
