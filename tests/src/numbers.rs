//! Distances between tensors, as the parity tests state them.

use anyhow::Result;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// The numbers of a tensor.
///
/// # Errors
/// If it cannot be read.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// The largest absolute difference; NaN if any is, which `f64::max` would forget.
///
/// # Errors
/// If the shapes differ.
pub fn max_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    anyhow::ensure!(
        a.shape() == b.shape(),
        "shapes {:?} and {:?}",
        a.dims(),
        b.dims()
    );
    let differences = values(a)?
        .into_iter()
        .zip(values(b)?)
        .map(|(a, b)| (a - b).abs());
    let larger = |worst: f64, next: f64| {
        if next > worst || next.is_nan() {
            next
        } else {
            worst
        }
    };
    Ok(differences.fold(0.0, larger))
}

/// The L2 norm of the difference over the L2 norm of `b`.
///
/// # Errors
/// If the shapes differ.
pub fn relative_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    relative_over([(a, b)])
}

/// The same over several tensors together.
///
/// # Errors
/// If shapes differ.
pub fn relative_over<'a>(pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<f64> {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in pairs {
        anyhow::ensure!(
            a.shape() == b.shape(),
            "shapes {:?} and {:?}",
            a.dims(),
            b.dims()
        );
        for (a, b) in values(a)?.into_iter().zip(values(b)?) {
            difference += (a - b).powi(2);
            norm += b.powi(2);
        }
    }
    Ok((difference / norm.max(f64::MIN_POSITIVE)).sqrt())
}

/// Pairs the tensors of two maps.
///
/// # Errors
/// If their names differ; the message lists what only one of them has.
pub fn pair<'a>(
    a: &'a BTreeMap<String, Tensor>,
    b: &'a BTreeMap<String, Tensor>,
) -> Result<Vec<(&'a str, &'a Tensor, &'a Tensor)>> {
    let only = |x: &BTreeMap<String, Tensor>, y: &BTreeMap<String, Tensor>| -> Vec<String> {
        x.keys()
            .filter(|name| !y.contains_key(*name))
            .cloned()
            .collect()
    };
    let (first, second) = (only(a, b), only(b, a));
    anyhow::ensure!(
        first.is_empty() && second.is_empty(),
        "only ours: {first:?}, only theirs: {second:?}"
    );
    Ok(a.iter()
        .map(|(name, tensor)| (name.as_str(), tensor, &b[name]))
        .collect())
}
