//! x W^T with a weight that may be trained.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul};
use crate::rows::{rows, tensor};
use crate::{Error, Float, Result, add_bias, argument, data};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::marker::PhantomData;

/// y = x W^T + bias: `x` `(.., n_in)`, `weight` `[n_out, n_in]`, `bias` `[n_out]` -> `(.., n_out)`.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, n_in) = rows("linear", "x", x)?;
    match weight.dims() {
        [_, columns] if *columns == n_in => {}
        dims => {
            return Err(Error::Shape {
                op: "linear",
                what: "the weight",
                got: dims.to_vec(),
                expected: format!("[n_out, {n_in}]"),
            });
        }
    }
    same_dtype("linear", x, &[("the weight", weight)])?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let y = with_float!("linear", x.dtype(), T => x.apply_op2(&weight, Linear::<T>(PhantomData)))?;
    match bias {
        Some(bias) => add_bias(&y, bias),
        None => Ok(y),
    }
}

struct Linear<T>(PhantomData<T>);

impl<T: Float> CustomOp2 for Linear<T> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n_out, n_in) = weight_layout.shape().dims2()?;
        let x = argument::<T>(x, x_layout)?;
        let weight = argument::<T>(weight, weight_layout)?;
        let rows = x.len() / n_in;
        let mut y = vec![T::ZERO; rows * n_out];
        let x = Matrix::new(x, rows, n_in)?;
        matmul(x, Matrix::new(weight, n_out, n_in)?.transposed(), &mut y)?;
        Ok((T::storage(y), with_last(x_layout.dims(), n_out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (n_out, n_in) = weight.dims2()?;
        let rows = x.elem_count() / n_in;
        let grad = grad.contiguous()?;
        let grad = data::<T>(&grad)?;
        let grad = Matrix::new(&grad, rows, n_out)?;
        let x_grad = if x.track_op() {
            let mut x_grad = vec![T::ZERO; rows * n_in];
            matmul(
                grad,
                Matrix::new(&data::<T>(weight)?, n_out, n_in)?,
                &mut x_grad,
            )?;
            Some(tensor(x_grad, x)?)
        } else {
            None
        };
        let weight_grad = if weight.track_op() {
            let mut weight_grad = vec![T::ZERO; n_out * n_in];
            matmul(
                grad.transposed(),
                Matrix::new(&data::<T>(x)?, rows, n_in)?,
                &mut weight_grad,
            )?;
            Some(tensor(weight_grad, weight)?)
        } else {
            None
        };
        Ok((x_grad, weight_grad))
    }
}

/// These dimensions with another last one.
pub(crate) fn with_last(dims: &[usize], last: usize) -> Shape {
    let mut dims = dims.to_vec();
    if let Some(n) = dims.last_mut() {
        *n = last;
    }
    Shape::from(dims)
}
