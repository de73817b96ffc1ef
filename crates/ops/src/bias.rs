//! Adding a bias to every row.

use crate::float::{same_dtype, with_float};
use crate::rows::{column_sums, expect_dims, for_rows, rows, tensor};
use crate::{Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::marker::PhantomData;

/// `x` `(.., n)` + `bias` `[n]` on every row.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, n) = rows("add_bias", "x", x)?;
    expect_dims("add_bias", "the bias", bias, &[n])?;
    same_dtype("add_bias", x, &[("the bias", bias)])?;
    let (x, bias) = (x.contiguous()?, bias.contiguous()?);
    Ok(with_float!("add_bias", x.dtype(), T => x.apply_op2(&bias, AddBias::<T>(PhantomData)))?)
}

struct AddBias<T>(PhantomData<T>);

impl<T: Float> CustomOp2 for AddBias<T> {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let bias = argument::<T>(bias, bias_layout)?;
        let mut y = argument::<T>(x, x_layout)?.to_vec();
        for_rows(&mut y, bias.len(), |_, row| {
            for (y, bias) in row.iter_mut().zip(bias) {
                *y += *bias;
            }
        });
        Ok((T::storage(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let bias_grad = if bias.track_op() {
            let (n, grad) = (bias.elem_count(), grad.contiguous()?);
            let grad = data::<T>(&grad)?;
            let grad = &*grad;
            let sums = column_sums::<T>(grad.len() / n, n, |row, columns, sums| {
                for (sum, grad) in sums.iter_mut().zip(&grad[row * n..][columns]) {
                    *sum += grad.to_f64();
                }
            });
            Some(tensor(sums, bias)?)
        } else {
            None
        };
        Ok((x.track_op().then(|| grad.clone()), bias_grad))
    }
}
