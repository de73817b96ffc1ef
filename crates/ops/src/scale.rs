//! Multiplying every row by the same numbers.

use crate::float::{same_dtype, with_float};
use crate::rows::{column_sums, expect_dims, for_rows, rows, tensor};
use crate::{Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::marker::PhantomData;

/// `x` `(.., n)` * `factors` `[n]` on every row.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn scale_columns(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let (_, n) = rows("scale_columns", "x", x)?;
    expect_dims("scale_columns", "the vector of factors", factors, &[n])?;
    same_dtype("scale_columns", x, &[("the vector of factors", factors)])?;
    let (x, factors) = (x.contiguous()?, factors.contiguous()?);
    Ok(with_float!("scale_columns", x.dtype(), T => {
        x.apply_op2(&factors, ScaleColumns::<T>(PhantomData))
    })?)
}

struct ScaleColumns<T>(PhantomData<T>);

impl<T: Float> CustomOp2 for ScaleColumns<T> {
    fn name(&self) -> &'static str {
        "scale_columns"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let factors = argument::<T>(factors, factors_layout)?;
        let mut y = argument::<T>(x, x_layout)?.to_vec();
        scale(&mut y, factors);
        Ok((T::storage(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        factors: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad = data::<T>(&grad)?;
        let grad = &*grad;
        let x_grad = if x.track_op() {
            let mut x_grad = grad.to_vec();
            scale(&mut x_grad, &data::<T>(factors)?);
            Some(tensor(x_grad, x)?)
        } else {
            None
        };
        let factors_grad = if factors.track_op() {
            let (n, x) = (factors.elem_count(), data::<T>(x)?);
            let x = &*x;
            let sums = column_sums::<T>(grad.len() / n, n, |row, columns, sums| {
                let (x, grad) = (&x[row * n..][columns.clone()], &grad[row * n..][columns]);
                for (sum, (x, grad)) in sums.iter_mut().zip(x.iter().zip(grad)) {
                    *sum += x.to_f64() * grad.to_f64();
                }
            });
            Some(tensor(sums, factors)?)
        } else {
            None
        };
        Ok((x_grad, factors_grad))
    }
}

fn scale<T: Float>(rows: &mut [T], factors: &[T]) {
    for_rows(rows, factors.len(), |_, row| {
        for (x, factor) in row.iter_mut().zip(factors) {
            *x *= *factor;
        }
    });
}
