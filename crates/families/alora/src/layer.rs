//! One adapted layer.

use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Mask, Merge, Param, Pass, RankGate, Result, Update};
use lowrank_frozen::FrozenLinear;

/// x Wᵀ + s ((x Aᵀ) g) Bᵀ.
#[derive(Debug)]
pub(crate) struct Layer {
    /// `[capacity, n_in]`.
    pub a: Param,
    /// `[n_out, capacity]`.
    pub b: Param,
    /// Which slots live; all of them, if there is none.
    pub gate: Option<RankGate>,
    pub scale: f64,
    pub dropout: f64,
    /// Keys the dropout mask.
    pub path: String,
}

impl Layer {
    fn update(&self, pass: &mut Pass) -> Result<Update> {
        let mask = match &self.gate {
            Some(gate) => pass.mask(gate)?,
            None => Mask::All,
        };
        let update = Update::new(self.a.get(pass), self.b.get(pass), self.scale);
        Ok(update
            .gated(mask)?
            .dropped(pass.dropout(self.dropout, &self.path)?))
    }
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
        let merged = self.update(pass)?.merged(weight)?;
        Ok(Merge::Exact(merged.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let update = Update::new(self.a.value(), self.b.value(), self.scale);
        let live = match &self.gate {
            Some(gate) => gate.mask()?,
            None => Mask::All,
        };
        Ok(Some(update.gated(live)?.into()))
    }
}
