//! The size of a step's gradients, and its limit.

use crate::error::Result;
use candle_core::Tensor;
use lowrank_ops::{Grads, Param, all_finite, norm_squared};
use rayon::prelude::*;

/// The L2 norm over all gradients together, summed in f64. It is finite if all gradients are, unless squares of f64
/// overflow, and not finite if one is not.
///
/// # Errors
/// If a gradient is neither f32 nor f64.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    let grads: Vec<&Tensor> = grads.iter().map(|(_, grad)| grad).collect();
    // In the order of declaration, whichever thread was first.
    let sums: Vec<f64> = grads
        .into_par_iter()
        .map(norm_squared)
        .collect::<Result<_, _>>()?;
    Ok(sums.iter().fold(0.0, |total, sum| total + sum).sqrt())
}

/// What torch multiplies all gradients by: min(1, max / (norm + 1e-6)), where `norm` is theirs; 1 if `max` is 0.
#[must_use]
pub fn clip_factor(norm: f64, max: f64) -> f64 {
    let factor = max / (norm + 1e-6);
    if max > 0.0 && factor < 1.0 {
        factor
    } else {
        1.0
    }
}

/// The name of the last parameter, in order of declaration, whose gradient is not finite. Declarations follow the
/// forward pass and gradients run against it, so that is where it began.
///
/// # Errors
/// If a gradient is neither f32 nor f64.
pub fn find_non_finite(grads: &Grads) -> Result<Option<&str>> {
    let mut last = None;
    for (param, grad) in grads.iter() {
        if !all_finite(grad)? {
            last = Some(param.name());
        }
    }
    Ok(last)
}

/// The name of the first parameter whose value is not finite. Integers are.
///
/// # Errors
/// If a parameter of numbers is neither f32 nor f64.
pub(crate) fn find_non_finite_param<'a>(
    params: impl IntoIterator<Item = &'a Param>,
) -> Result<Option<&'a str>> {
    for param in params {
        if param.dtype().is_float() && !all_finite(&param.value())? {
            return Ok(Some(param.name()));
        }
    }
    Ok(None)
}
