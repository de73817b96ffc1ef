//! x W^T with a weight that may be trained.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul, matmul_add};
use crate::rows::rows;
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, add_bias, composed, data, skinny, unwritten};
use candle_core::{Shape, Tensor};
use std::sync::Arc;

/// y = x W^T + bias: `x` `(.., n_in)`, `weight` `[n_out, n_in]`, `bias` `[n_out]` -> `(.., n_out)`.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, n_in) = rows("linear", "x", x)?;
    let n_out = match weight.dims() {
        [n_out, columns] if *columns == n_in => *n_out,
        dims => {
            return Err(Error::Shape {
                op: "linear",
                what: "the weight",
                got: dims.to_vec(),
                expected: format!("[n_out, {n_in}]"),
            });
        }
    };
    same_dtype("linear", x, &[("the weight", weight)])?;
    if composed::replaces("linear", x)? {
        let y = composed::linear(x, weight, None)?;
        return match bias {
            Some(bias) => add_bias(&y, bias),
            None => Ok(y),
        };
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let y = with_float!("linear", x.dtype(), T => {
        let (numbers, w) = (data::<T>(&x)?, data::<T>(&weight)?);
        let y = if is_pass::<T>(n_out) {
            skinny::dots(&numbers, &w, n_in, n_out, T::ONE)
        } else {
            let mut y = unwritten(rows * n_out);
            let w = Matrix::new(&w, n_out, n_in)?;
            matmul(Matrix::new(&numbers, rows, n_in)?, w.transposed(), &mut y)?;
            y
        };
        drop((numbers, w));
        let y = (y, with_last(x.dims(), n_out));
        let [y] = tape::record("linear", &[&x, &weight], [y], Linear { rows, n_in, n_out })?;
        y
    });
    match bias {
        Some(bias) => add_bias(&y, bias),
        None => Ok(y),
    }
}

/// True if a product with so many columns is a pass over the other matrix. In f64, which is there to be compared with,
/// all products sum in one order.
fn is_pass<T: Float>(columns: usize) -> bool {
    columns <= 32 && T::singles(&[]).is_some()
}

struct Linear {
    rows: usize,
    n_in: usize,
    n_out: usize,
}

impl<T: Float> Backward<T> for Linear {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let &Self { rows, n_in, n_out } = self;
        let (x, w) = (inputs.data(0)?, inputs.data(1)?);
        let g = Matrix::new(grad, rows, n_out)?;
        if inputs.wanted(0) {
            let w = Matrix::new(&w, n_out, n_in)?;
            inputs.accumulate(0, |into, begun| {
                if begun {
                    matmul_add(T::ONE, g, w, into)
                } else {
                    matmul(g, w, into)
                }
            })?;
        }
        if inputs.wanted(1) {
            inputs.accumulate(1, |into, begun| {
                if !begun && is_pass::<T>(n_out) {
                    into.copy_from_slice(&skinny::outer(grad, &x, n_in, n_out));
                    return Ok(());
                }
                let x = Matrix::new(&x, rows, n_in)?;
                if begun {
                    matmul_add(T::ONE, g.transposed(), x, into)
                } else {
                    matmul(g.transposed(), x, into)
                }
            })?;
        }
        Ok(())
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
