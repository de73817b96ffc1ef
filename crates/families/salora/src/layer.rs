//! One adapted layer.

use crate::HardConcrete;
use crate::gate::uniform;
use crate::phase::{Phase, PhaseParam};
use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Mask, Merge, Param, Pass, RankGate, Result, Selection};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Dropout};

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

/// The update as a pass applies it.
enum Update {
    /// No rank lives.
    Nothing,
    /// Q and P diag(g) of the ranks that live.
    Factors(Tensor, Tensor),
    /// The same of all ranks, with what a probe multiplies their activations by.
    Masked(Tensor, Tensor, Tensor),
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
        let Some(gates) = &self.gates else {
            return Ok(if q.elem_count() == 0 {
                Update::Nothing
            } else {
                Update::Factors(q, p)
            });
        };
        let p = match gates.values(&self.path, pass)? {
            Some(g) => ops::scale_columns(&p, &g)?,
            None => p,
        };
        Ok(match pass.mask(&gates.live)? {
            Mask::All => Update::Factors(q, p),
            Mask::Live(ranks) if ranks.is_empty() => Update::Nothing,
            Mask::Live(ranks) => {
                let ranks = Tensor::new(ranks, q.device())?;
                Update::Factors(q.index_select(&ranks, 0)?, p.index_select(&ranks, 1)?)
            }
            Mask::Given(mask) => Update::Masked(q, p, mask),
        })
    }

    /// What keys the dropout on the adapter's input, if there is any.
    fn dropout_key(&self, pass: &Pass) -> Option<Key> {
        let drops = self.dropout > 0.0 && pass.training();
        drops.then(|| pass.rng().purpose(Purpose::Dropout).site(&self.path))
    }

    /// The layer's input as the adapter sees it.
    fn dropped(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        Ok(match self.dropout_key(pass) {
            Some(key) => ops::dropout(x, self.dropout, key)?,
            None => x.clone(),
        })
    }

    /// s drop(x) Qᵀ times the mask: `x` (.., n_in) -> (.., r).
    fn masked(&self, x: &Tensor, q: &Tensor, mask: &Tensor, pass: &Pass) -> Result<Tensor> {
        let h = ops::linear(&self.dropped(x, pass)?, q, None)?;
        Ok((h.broadcast_mul(mask)? * self.scale)?)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        Ok(match self.update(pass)? {
            Update::Nothing => base.forward(x)?,
            Update::Masked(q, p, mask) => {
                base.forward_plus(x, &self.masked(x, &q, &mask, pass)?, &p)?
            }
            Update::Factors(q, p) => match self.dropout_key(pass) {
                None => base.forward_low_rank(x, &q, &p, self.scale)?,
                Some(key) => {
                    let dropout = Dropout::new(self.dropout, key)?;
                    base.forward_low_rank_dropped(x, &q, &p, self.scale, dropout)?
                }
            },
        })
    }

    fn delta(
        &self,
        _: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        Ok(match self.update(pass)? {
            Update::Nothing => y_base.zeros_like()?,
            Update::Masked(q, p, mask) => ops::linear(&self.masked(x, &q, &mask, pass)?, &p, None)?,
            Update::Factors(q, p) => ops::low_rank(&self.dropped(x, pass)?, &q, &p, self.scale)?,
        })
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let merged = match self.update(pass)? {
            Update::Nothing => weight.clone(),
            Update::Factors(q, p) => ops::add_scaled(weight, &p.matmul(&q)?, self.scale)?,
            Update::Masked(q, p, mask) => {
                let p = p.broadcast_mul(&mask)?;
                ops::add_scaled(weight, &p.matmul(&q)?, self.scale)?
            }
        };
        Ok(Merge::Exact(merged.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let (a, b) = match self.update(&mut Pass::evaluation(Selection::none()))? {
            Update::Factors(q, p) | Update::Masked(q, p, _) => (q, p),
            Update::Nothing => (
                self.q.value().narrow(0, 0, 0)?,
                self.p.value().narrow(1, 0, 0)?,
            ),
        };
        Ok(Some(LowRank {
            a,
            b,
            scale: self.scale,
            exact: true,
        }))
    }
}
