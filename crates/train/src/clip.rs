//! The size of a step's gradients, and its limit.

use crate::error::Result;
use lowrank_ops::{Grads, Param, all_finite, norm_squared};

/// The L2 norm over all gradients together, summed in f64.
///
/// # Errors
/// If a gradient is neither f32 nor f64.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    let mut sum = 0.0;
    for (_, grad) in grads.iter() {
        sum += norm_squared(grad)?;
    }
    Ok(sum.sqrt())
}

/// Scales all gradients by min(1, max / (norm + 1e-6)), as torch does, where `norm` is theirs; `max` = 0 leaves them.
///
/// # Errors
/// If a gradient cannot be allocated.
pub fn clip(grads: &mut Grads, norm: f64, max: f64) -> Result<()> {
    let factor = max / (norm + 1e-6);
    if max > 0.0 && factor < 1.0 {
        grads.scale(factor)?;
    }
    Ok(())
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

/// The name of the first parameter whose value is not finite.
///
/// # Errors
/// If a parameter is neither f32 nor f64.
pub(crate) fn find_non_finite_param<'a>(
    params: impl IntoIterator<Item = &'a Param>,
) -> Result<Option<&'a str>> {
    for param in params {
        if !all_finite(&param.value())? {
            return Ok(Some(param.name()));
        }
    }
    Ok(None)
}
