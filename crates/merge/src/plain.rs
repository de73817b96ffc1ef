//! Adapters as plain low-rank updates.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Linear, LowRank, Merge, Model, Part, Pass, Selection};

/// The update of one module as `scale * b a`.
#[derive(Debug)]
pub struct PlainSite {
    /// The module's path.
    pub path: String,
    /// The update.
    pub update: LowRank,
    /// How far it is from what merging adds, by Frobenius norms and relative to it; none if it is an approximation, which
    /// merging is then too.
    pub residual: Option<f64>,
}

/// The updates of the adapter that is attached under `name`, in site order.
///
/// # Errors
/// If the update of some module is not of that form.
pub fn plain(model: &mut dyn Model, name: &str) -> Result<Vec<PlainSite>> {
    let mut pass = Pass::evaluation(Selection::one(name));
    let mut sites = Vec::new();
    let mut failed = None;
    model.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part
            && failed.is_none()
        {
            match site(linear, name, &mut pass) {
                Ok(site) => sites.extend(site),
                Err(error) => failed = Some(error),
            }
        }
    });
    failed.map_or(Ok(sites), Err)
}

fn site(linear: &Linear, name: &str, pass: &mut Pass) -> Result<Option<PlainSite>> {
    let Some(adapter) = linear.adapter(name) else {
        return Ok(None);
    };
    let path = linear.path().to_owned();
    let at = |error: lowrank_adapter::Error| error.at(&path);
    let Some(update) = adapter.low_rank().map_err(at)? else {
        return Err(Error::NotLowRank { site: path });
    };
    let mut residual = None;
    if update.exact {
        let (dims, dtype) = (linear.base().dims(), update.a.dtype());
        let nothing = Tensor::zeros(dims, dtype, update.a.device())?;
        let Merge::Exact(merged) = adapter.merge(&nothing, None, pass).map_err(at)? else {
            return Err(Error::NotLowRank { site: path });
        };
        residual = Some(distance(&merged.weight, &update)?);
    }
    Ok(Some(PlainSite {
        path,
        update,
        residual,
    }))
}

/// |s b a - update| / |update|, 0 if there is no update.
fn distance(update: &Tensor, plain: &LowRank) -> Result<f64> {
    let norm = |tensor: &Tensor| -> Result<f64> {
        let sum = tensor.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(sum.sqrt())
    };
    let double = |tensor: &Tensor| tensor.to_dtype(DType::F64);
    let update = double(update)?;
    let size = norm(&update)?;
    if plain.a.dim(0)? == 0 || size == 0.0 {
        return Ok(if size == 0.0 { 0.0 } else { 1.0 });
    }
    let product = (double(&plain.b)?.matmul(&double(&plain.a)?)? * plain.scale)?;
    Ok(norm(&(product - update)?)? / size)
}
