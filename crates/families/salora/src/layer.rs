//! One adapted layer.

use crate::HardConcrete;
use crate::gate::uniform;
use crate::phase::{Phase, PhaseParam};
use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Merge, Param, Pass, RankGate, Result, Selection, Update};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use lowrank_ops::rng::Purpose;

/// W + s P diag(g) Q over the ranks that live.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Q `[r, n_in]`.
    pub q: Param,
    /// P `[n_out, r]`.
    pub p: Param,
    /// None where every rank stays as it is: after extraction, and where there is no rank.
    pub gates: Option<Gates>,
    pub scale: f64,
    pub dropout: f64,
    /// Keys what is drawn.
    pub path: String,
}

/// What decides over the ranks of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Gates {
    /// `[r]`.
    pub phi: Param,
    pub phase: PhaseParam,
    /// Which ranks were extracted.
    pub live: RankGate,
    pub law: HardConcrete,
}

impl Gates {
    /// g `[r]`, or `None` where all gates are 1. `path` keys the draw.
    fn values(&self, path: &str, pass: &Pass) -> Result<Option<Tensor>> {
        match (self.phase.get()?, pass.training()) {
            (Phase::Extracted, _) => Ok(None),
            (Phase::Open, true) => {
                // A step is refused if a trained tensor is in no gradient; that of phi is 0. candle ends a graph at a factor
                // that is the number 0, but not at one that is a tensor.
                let phi = self.phi.get(pass);
                Ok(Some(((&phi * phi.zeros_like()?)? + 1.0)?))
            }
            (Phase::Learning, true) => {
                let phi = self.phi.get(pass);
                let key = pass.rng().purpose(Purpose::Gate).site(path);
                let numbers = uniform(key, phi.elem_count());
                Ok(Some(self.law.sample(&phi, &numbers)?))
            }
            (Phase::Open | Phase::Learning, false) => {
                let settled = self.settled()?;
                if settled.iter().all(|&gate| gate == 1.0) {
                    return Ok(None);
                }
                let settled = Tensor::new(settled, self.phi.device())?;
                Ok(Some(settled.to_dtype(self.phi.dtype())?))
            }
        }
    }

    /// phi of each rank.
    pub fn numbers(&self) -> Result<Vec<f64>> {
        let phi = self.phi.value().to_dtype(candle_core::DType::F64)?;
        Ok(phi.to_vec1()?)
    }

    /// The test-time gate of each rank.
    pub fn settled(&self) -> Result<Vec<f64>> {
        let phi = self.numbers()?.into_iter();
        Ok(phi.map(|phi| self.law.settled(phi)).collect())
    }
}

impl Layer {
    fn update(&self, pass: &mut Pass) -> Result<Update> {
        let (q, p) = (self.q.get(pass), self.p.get(pass));
        let dropout = pass.dropout(self.dropout, &self.path)?;
        let Some(gates) = &self.gates else {
            return Ok(Update::new(q, p, self.scale).dropped(dropout));
        };
        let p = match gates.values(&self.path, pass)? {
            Some(g) => ops::scale_columns(&p, &g)?,
            None => p,
        };
        let mask = pass.mask(&gates.live)?;
        Ok(Update::new(q, p, self.scale).gated(mask)?.dropped(dropout))
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
        Ok(Merge::Exact(self.update(pass)?.merged(weight)?.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let update = self.update(&mut Pass::evaluation(Selection::none()))?;
        Ok(Some(update.into()))
    }
}
