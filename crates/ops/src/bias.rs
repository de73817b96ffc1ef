//! Adding a bias to every row.

use crate::add::pass_on;
use crate::float::{same_dtype, with_float};
use crate::rows::{column_sums, expect_dims, for_rows, rows};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use std::sync::Arc;

/// `x` `(.., n)` + `bias` `[n]` on every row.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, n) = rows("add_bias", "x", x)?;
    expect_dims("add_bias", "the bias", bias, &[n])?;
    same_dtype("add_bias", x, &[("the bias", bias)])?;
    if composed::replaces("add_bias", x)? {
        return composed::add_bias(x, bias);
    }
    let (x, bias) = (x.contiguous()?, bias.contiguous()?);
    with_float!("add_bias", x.dtype(), T => {
        let (numbers, shift) = (data::<T>(&x)?, data::<T>(&bias)?);
        let mut y = unwritten(numbers.len());
        for_rows(&mut y, n, |row, y| {
            let x = &numbers[row * n..][..n];
            vectorised!({
                for (y, (x, shift)) in y.iter_mut().zip(x.iter().zip(&*shift)) {
                    *y = *x + *shift;
                }
            });
        });
        drop((numbers, shift));
        let [y] = tape::record("add_bias", &[&x, &bias], [(y, x.shape().clone())], AddBias)?;
        Ok(y)
    })
}

struct AddBias;

impl<T: Float> Backward<T> for AddBias {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        pass_on(grads, 0, inputs, &[0]);
        let Some(grad) = &grads[0] else { return Ok(()) };
        if inputs.wanted(1) {
            let n = inputs.tensor(1).elem_count();
            let sums = column_sums::<T>(grad.len() / n, n, |row, columns, sums| {
                for (sum, grad) in sums.iter_mut().zip(&grad[row * n..][columns]) {
                    *sum += grad.to_f64();
                }
            });
            inputs.add(1, Arc::new(sums));
        }
        Ok(())
    }
}
