//! The low-rank update, and adding it to a weight.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul, matmul_add};
use crate::linear::with_last;
use crate::rows::{expect_dims, rows, tensor};
use crate::{Error, Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// scale * (x A^T) B^T: `x` (.., n_in), `a` [rank, n_in], `b` [n_out, rank] -> (.., n_out). The rank may be 0.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn low_rank(x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (_, n_in) = rows("low_rank", "x", x)?;
    let rank = match a.dims() {
        [rank, columns] if *columns == n_in => *rank,
        dims => {
            return Err(Error::Shape {
                op: "low_rank",
                what: "A",
                got: dims.to_vec(),
                expected: format!("[rank, {n_in}]"),
            });
        }
    };
    if !matches!(b.dims(), [_, columns] if *columns == rank) {
        return Err(Error::Shape {
            op: "low_rank",
            what: "B",
            got: b.dims().to_vec(),
            expected: format!("[n_out, {rank}]"),
        });
    }
    same_dtype("low_rank", x, &[("A", a), ("B", b)])?;
    let (x, a, b) = (x.contiguous()?, a.contiguous()?, b.contiguous()?);
    Ok(with_float!("low_rank", x.dtype(), T => {
        x.apply_op3(&a, &b, LowRank::<T> { scale, down: OnceLock::new() })
    })?)
}

/// weight + scale * update, both of the same shape; for merging, where the sum is the result.
///
/// # Errors
/// If the shapes or the dtypes differ.
pub fn add_scaled(weight: &Tensor, update: &Tensor, scale: f64) -> Result<Tensor> {
    expect_dims("add_scaled", "the update", update, weight.dims())?;
    same_dtype("add_scaled", weight, &[("the update", update)])?;
    Ok((weight + (update * scale)?)?)
}

struct LowRank<T> {
    scale: f64,
    /// x A^T [rows, rank], which the gradient of B needs.
    down: OnceLock<Vec<T>>,
}

impl<T: Float> CustomOp3 for LowRank<T> {
    fn name(&self) -> &'static str {
        "low_rank"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rank, n_in) = a_layout.shape().dims2()?;
        let (n_out, _) = b_layout.shape().dims2()?;
        let x = argument::<T>(x, x_layout)?;
        let a = Matrix::new(argument::<T>(a, a_layout)?, rank, n_in)?;
        let b = Matrix::new(argument::<T>(b, b_layout)?, n_out, rank)?;
        let rows = x.len() / n_in;
        let mut down = vec![T::ZERO; rows * rank];
        matmul(Matrix::new(x, rows, n_in)?, a.transposed(), &mut down)?;
        let mut y = vec![T::ZERO; rows * n_out];
        let scale = T::from_f64(self.scale);
        matmul_add(
            scale,
            Matrix::new(&down, rows, rank)?,
            b.transposed(),
            &mut y,
        )?;
        // An op instance runs forward once, so the cell is empty.
        self.down.get_or_init(|| down);
        Ok((T::storage(y), with_last(x_layout.dims(), n_out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rank, n_in), (n_out, _)) = (a.dims2()?, b.dims2()?);
        let rows = x.elem_count() / n_in;
        let scale = T::from_f64(self.scale);
        let grad = grad.contiguous()?;
        let grad = data::<T>(&grad)?;
        let grad = Matrix::new(&grad, rows, n_out)?;

        let mut down_grad = Vec::new();
        if x.track_op() || a.track_op() {
            down_grad = vec![T::ZERO; rows * rank];
            let b = data::<T>(b)?;
            matmul_add(scale, grad, Matrix::new(&b, n_out, rank)?, &mut down_grad)?;
        }
        let x_grad = if x.track_op() {
            let mut x_grad = vec![T::ZERO; rows * n_in];
            let a = data::<T>(a)?;
            matmul(
                Matrix::new(&down_grad, rows, rank)?,
                Matrix::new(&a, rank, n_in)?,
                &mut x_grad,
            )?;
            Some(tensor(x_grad, x)?)
        } else {
            None
        };
        let a_grad = if a.track_op() {
            let mut a_grad = vec![T::ZERO; rank * n_in];
            let x = data::<T>(x)?;
            let down_grad = Matrix::new(&down_grad, rows, rank)?;
            matmul(
                down_grad.transposed(),
                Matrix::new(&x, rows, n_in)?,
                &mut a_grad,
            )?;
            Some(tensor(a_grad, a)?)
        } else {
            None
        };
        let b_grad = if b.track_op() {
            let mut b_grad = vec![T::ZERO; n_out * rank];
            let down = self.down.get().expect("set by the forward pass");
            matmul_add(
                scale,
                grad.transposed(),
                Matrix::new(down, rows, rank)?,
                &mut b_grad,
            )?;
            Some(tensor(b_grad, b)?)
        } else {
            None
        };
        Ok((x_grad, a_grad, b_grad))
    }
}
