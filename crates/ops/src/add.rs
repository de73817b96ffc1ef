//! Adding two tensors, with nothing to compute on the way back.

use crate::float::{same_dtype, with_float};
use crate::rows::{expect_dims, zip};
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data};
use candle_core::Tensor;
use std::sync::Arc;

/// x + y, both of the same shape.
///
/// # Errors
/// If the shapes differ, or a dtype is neither f32 nor f64, or they differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    expect_dims("add", "y", y, x.dims())?;
    same_dtype("add", x, &[("y", y)])?;
    if composed::replaces("add", x)? {
        return composed::add(x, y);
    }
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    with_float!("add", x.dtype(), T => {
        let sum = zip(&data::<T>(&x)?, &data::<T>(&y)?, |x, y| x + y);
        let [sum] = tape::record_unread("add", &[&x, &y], [(sum, x.shape().clone())], Add)?;
        Ok(sum)
    })
}

struct Add;

impl<T: Float> Backward<T> for Add {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        pass_on(grads, 0, inputs, &[0, 1]);
        Ok(())
    }
}

/// Gives the gradient of an output to inputs of the same size as it is.
pub(crate) fn pass_on<T: Float>(
    grads: &[Option<Arc<Vec<T>>>],
    output: usize,
    inputs: &mut Inputs<'_, T>,
    to: &[usize],
) {
    for &i in to {
        if let Some(grad) = &grads[output]
            && inputs.wanted(i)
        {
            inputs.add(i, Arc::clone(grad));
        }
    }
}
