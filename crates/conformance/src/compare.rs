//! Comparing tensors, and what a broken law has to say.

use candle_core::{DType, Tensor};
use std::fmt;

/// How far two ways of computing the same may lie apart, relative to the largest number (or to 1, if that is larger).
#[must_use]
pub const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-11,
        DType::F32 => 1e-5,
        _ => 1e-2,
    }
}

/// Nothing, or what is wrong.
pub(crate) type Verdict<T = ()> = Result<T, Broken>;

/// Why a law does not hold.
#[derive(Debug)]
pub(crate) struct Broken(String);

impl Broken {
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<lowrank_adapter::Error> for Broken {
    fn from(error: lowrank_adapter::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<lowrank_frozen::Error> for Broken {
    fn from(error: lowrank_frozen::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<lowrank_ops::Error> for Broken {
    fn from(error: lowrank_ops::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<candle_core::Error> for Broken {
    fn from(error: candle_core::Error) -> Self {
        Self(error.to_string())
    }
}

/// Breaks the law unless `holds`.
pub(crate) fn require(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Broken(what())) }
}

/// All numbers, row-major; exact for f32 too.
pub(crate) fn numbers(tensor: &Tensor) -> Verdict<Vec<f64>> {
    Ok(tensor
        .detach()
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1()?)
}

/// The largest difference and the largest number.
pub(crate) fn difference(got: &Tensor, expected: &Tensor) -> Verdict<(f64, f64)> {
    require(got.dims() == expected.dims(), || {
        format!("shape {:?}, expected {:?}", got.dims(), expected.dims())
    })?;
    let pairs = numbers(got)?.into_iter().zip(numbers(expected)?);
    Ok(
        pairs.fold((0.0, 0.0), |(gap, size): (f64, f64), (got, expected)| {
            let apart = (got - expected).abs();
            // `max` would forget a NaN.
            let gap = if apart.is_nan() {
                f64::INFINITY
            } else {
                gap.max(apart)
            };
            (gap, size.max(expected.abs()))
        }),
    )
}

/// Equal up to the tolerance of `dtype`.
pub(crate) fn close_in(dtype: DType, what: &str, got: &Tensor, expected: &Tensor) -> Verdict {
    let (gap, size) =
        difference(got, expected).map_err(|broken| Broken(format!("{what}: {broken}")))?;
    let allowed = tolerance(dtype) * size.max(1.0);
    require(gap <= allowed, || {
        format!("{what}: differs by {gap:e}, allowed is {allowed:e}")
    })
}

/// Equal up to the tolerance of the expected tensor's dtype.
pub(crate) fn close(what: &str, got: &Tensor, expected: &Tensor) -> Verdict {
    close_in(expected.dtype(), what, got, expected)
}

/// Equal in shape, dtype and every bit.
pub(crate) fn same_bits(what: &str, got: &Tensor, expected: &Tensor) -> Verdict {
    require(got.dtype() == expected.dtype(), || {
        format!("{what}: {:?}, expected {:?}", got.dtype(), expected.dtype())
    })?;
    let (gap, _) =
        difference(got, expected).map_err(|broken| Broken(format!("{what}: {broken}")))?;
    let (got, expected) = (numbers(got)?, numbers(expected)?);
    let differing = got
        .iter()
        .zip(&expected)
        .filter(|(got, expected)| got.to_bits() != expected.to_bits())
        .count();
    require(differing == 0, || {
        format!(
            "{what}: {differing} of {} numbers differ, by up to {gap:e}",
            got.len()
        )
    })
}

/// Breaks the law if the two are equal up to ten times the tolerance: a change that should show does not.
pub(crate) fn differs(what: &str, got: &Tensor, other: &Tensor) -> Verdict {
    let (gap, size) = difference(got, other)?;
    require(
        gap > 10.0 * tolerance(other.dtype()) * size.max(1.0),
        || format!("{what}: differs by {gap:e} only"),
    )
}
