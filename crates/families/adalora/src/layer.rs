//! One adapted layer.

use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Merge, Param, Pass, Result, Update};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;

/// x Wᵀ + s drop(x) (E ∘ A)ᵀ Bᵀ.
#[derive(Debug)]
pub(crate) struct Layer {
    pub a: Param,
    pub e: Param,
    pub b: Param,
    pub scale: f64,
    pub dropout: f64,
    /// Keys the dropout mask.
    pub path: String,
}

impl Layer {
    fn update(&self, pass: &Pass) -> Result<Update> {
        let factors = (self.a.get(pass), self.e.get(pass), self.b.get(pass));
        let update = scaled(factors, self.scale)?;
        Ok(update.dropped(pass.dropout(self.dropout, &self.path)?))
    }
}

/// A, and B with the columns times E: B (E ∘ A) is their product too, and B is the smaller one to scale.
fn scaled((a, e, b): (Tensor, Tensor, Tensor), scale: f64) -> Result<Update> {
    // A module that has lost all its ranks has no columns.
    let b = match b.elem_count() {
        0 => b,
        _ => ops::scale_columns(&b, &e.flatten_all()?)?,
    };
    Ok(Update::new(a, b, scale))
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.update(pass)?.onto(base, x)
    }

    fn delta(
        &self,
        _: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        self.update(pass)?.alone(x, y_base)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        Ok(Merge::Exact(self.update(pass)?.merged(weight)?.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let factors = (self.a.value(), self.e.value(), self.b.value());
        Ok(Some(scaled(factors, self.scale)?.into()))
    }
}
