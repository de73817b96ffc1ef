//! Scores that need nothing but the present values.

use crate::score::{Components, Score};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Param, Probe};

/// The size of a component: the product, over the site's tensors, of the lengths of the slot's part. For B A that is the
/// Frobenius norm of the slot's b aᵀ.
#[derive(Debug, Clone, Copy, Default)]
pub struct Magnitude;

impl Score for Magnitude {
    fn scores(&mut self, sites: &[Components], _: &mut dyn Probe) -> Result<Vec<Vec<f64>>> {
        sites.iter().map(|site| lengths(&site.params)).collect()
    }
}

fn lengths(params: &[Param]) -> Result<Vec<f64>> {
    let mut product: Option<Vec<f64>> = None;
    for param in params {
        let squares = by_slot(param, &param.value().to_dtype(DType::F64)?.sqr()?)?;
        let lengths = squares.sum(1)?.sqrt()?.to_vec1::<f64>()?;
        product = Some(match product {
            None => lengths,
            Some(product) if product.len() == lengths.len() => {
                product.iter().zip(lengths).map(|(a, b)| a * b).collect()
            }
            Some(product) => {
                return Err(Error::Length {
                    what: "slots of a site's tensors",
                    got: lengths.len(),
                    expected: product.len(),
                });
            }
        });
    }
    Ok(product.unwrap_or_default())
}

/// `[slots, others]`.
pub(crate) fn by_slot(param: &Param, value: &Tensor) -> Result<Tensor> {
    let axis = param.info().rank_axis.unwrap_or_default();
    let value = value.transpose(0, axis)?.contiguous()?;
    Ok(value.flatten_from(1)?.reshape((value.dim(0)?, ()))?)
}

/// |gate|: the absolute values of one tensor a site, `[slots]`, given at construction in site order.
#[derive(Debug, Clone)]
pub struct GateValue {
    gates: Vec<Param>,
}

impl GateValue {
    /// The tensors whose values count, one a site.
    #[must_use]
    pub const fn new(gates: Vec<Param>) -> Self {
        Self { gates }
    }
}

impl Score for GateValue {
    fn scores(&mut self, _: &[Components], _: &mut dyn Probe) -> Result<Vec<Vec<f64>>> {
        let read = |gate: &Param| -> Result<Vec<f64>> {
            let values = gate.value().to_dtype(DType::F64)?.abs()?;
            Ok(values.flatten_all()?.to_vec1()?)
        };
        self.gates.iter().map(read).collect()
    }
}
