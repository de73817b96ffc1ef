//! The low-rank update, and adding it to a weight.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul, matmul_add};
use crate::linear::with_last;
use crate::rows::{expect_dims, rows};
use crate::skinny::{self, Update, update_grads};
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, unwritten};
use candle_core::{Tensor, WithDType as _};
use std::sync::Arc;

/// scale * (x A^T) B^T: `x` (.., n_in), `a` [rank, n_in], `b` [n_out, rank] -> (.., n_out). The rank may be 0.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn low_rank(x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (rows, n_in) = rows("low_rank", "x", x)?;
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
    let n_out = match b.dims() {
        [n_out, columns] if *columns == rank => *n_out,
        dims => {
            return Err(Error::Shape {
                op: "low_rank",
                what: "B",
                got: dims.to_vec(),
                expected: format!("[n_out, {rank}]"),
            });
        }
    };
    same_dtype("low_rank", x, &[("A", a), ("B", b)])?;
    if composed::replaces("low_rank", x)? {
        return composed::low_rank(x, a, b, scale);
    }
    let (x, a, b) = (x.contiguous()?, a.contiguous()?, b.contiguous()?);
    with_float!("low_rank", x.dtype(), T => {
        let (numbers, a_data, b_data) = (data::<T>(&x)?, data::<T>(&a)?, data::<T>(&b)?);
        let h = skinny::dots(&numbers, &a_data, n_in, rank, T::from_f64(scale));
        let mut y = unwritten(rows * n_out);
        let b_data = Matrix::new(&b_data, n_out, rank)?;
        matmul(Matrix::new(&h, rows, rank)?, b_data.transposed(), &mut y)?;
        drop((numbers, a_data));
        let y = (y, with_last(x.dims(), n_out));
        let op = LowRank { scale, rank, h };
        let [y] = tape::record("low_rank", &[&x, &a, &b], [y], op)?;
        Ok(y)
    })
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
    rank: usize,
    /// scale * x A^T [rows, rank], which the gradient of B needs.
    h: Vec<T>,
}

impl<T: Float> Backward<T> for LowRank<T> {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let (x, a, b) = (inputs.data(0)?, inputs.data(1)?, inputs.data(2)?);
        let &Self { scale, rank, ref h } = self;
        let (rows, n_in) = dims2(inputs.tensor(0));
        let update = Update {
            x: &x,
            n_in,
            h,
            b: &b,
            scale: T::from_f64(scale),
            rank,
        };
        let wanted = [0, 1, 2].map(|i| inputs.wanted(i));
        let found = update_grads(&update, grad, wanted);
        if wanted[0] {
            let (h, a) = (
                Matrix::new(&found.h, rows, rank)?,
                Matrix::new(&a, rank, n_in)?,
            );
            inputs.accumulate(0, |into, begun| {
                if begun {
                    matmul_add(T::ONE, h, a, into)
                } else {
                    matmul(h, a, into)
                }
            })?;
        }
        for (i, grad) in [(1, found.a), (2, found.b)] {
            if let Some(grad) = grad {
                inputs.add(i, Arc::new(grad));
            }
        }
        Ok(())
    }
}

/// The product of all dimensions but the last, and the last.
fn dims2(x: &Tensor) -> (usize, usize) {
    let last = x.dims().last().copied().unwrap_or(1);
    (x.elem_count().checked_div(last).unwrap_or(0), last)
}
