//! One adapted layer.

use candle_core::{Device, Tensor};
use lowrank_adapter::{Adapter, LowRank, Mask, Merge, Param, Pass, RankGate, Result};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Dropout};

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

/// The factors that a pass uses.
enum Factors {
    /// No rank lives.
    Nothing,
    /// Those of the live ranks.
    Live(Tensor, Tensor),
    /// All, and what the activations between them are multiplied by.
    Masked(Tensor, Tensor, Tensor),
}

impl Layer {
    fn factors(&self, pass: &mut Pass) -> Result<Factors> {
        let mask = match &self.gate {
            Some(gate) => pass.mask(gate)?,
            None => Mask::All,
        };
        let (a, b) = (self.a.get(pass), self.b.get(pass));
        match mask {
            _ if a.dim(0)? == 0 => Ok(Factors::Nothing),
            Mask::All => Ok(Factors::Live(a, b)),
            Mask::Given(mask) => Ok(Factors::Masked(a, b, mask)),
            Mask::Live(slots) => selected(&a, &b, slots),
        }
    }

    /// Those of the live ranks, without a graph.
    fn values(&self) -> Result<Option<(Tensor, Tensor)>> {
        let (a, b) = (self.a.value(), self.b.value());
        let live = match &self.gate {
            Some(gate) => gate.live()?,
            None => vec![true; a.dim(0)?],
        };
        let slots = (0u32..).zip(live).filter(|(_, live)| *live);
        match selected(&a, &b, slots.map(|(slot, _)| slot).collect())? {
            Factors::Live(a, b) => Ok(Some((a, b))),
            _ => Ok(None),
        }
    }

    fn dropout_key(&self, pass: &Pass) -> Option<Key> {
        let drops = self.dropout > 0.0 && pass.training();
        drops.then(|| pass.rng().purpose(Purpose::Dropout).site(&self.path))
    }

    /// The input as the adapter sees it.
    fn dropped(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self.dropout_key(pass) {
            Some(key) => Ok(ops::dropout(x, self.dropout, key)?),
            None => Ok(x.clone()),
        }
    }

    /// s ((drop(x) Aᵀ) mask): `x` (.., n_in) -> (.., capacity).
    fn masked(&self, x: &Tensor, a: &Tensor, mask: &Tensor, pass: &Pass) -> Result<Tensor> {
        let h = ops::linear(&self.dropped(x, pass)?, a, None)?;
        let mask = mask.to_dtype(h.dtype())?.to_device(h.device())?;
        Ok((h.broadcast_mul(&mask)? * self.scale)?)
    }
}

fn selected(a: &Tensor, b: &Tensor, slots: Vec<u32>) -> Result<Factors> {
    if slots.is_empty() {
        return Ok(Factors::Nothing);
    }
    let slots = Tensor::new(slots, &Device::Cpu)?.to_device(a.device())?;
    let (a, b) = (a.index_select(&slots, 0)?, b.index_select(&slots, 1)?);
    Ok(Factors::Live(a, b))
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        Ok(match self.factors(pass)? {
            Factors::Nothing => base.forward(x)?,
            Factors::Masked(a, b, mask) => {
                base.forward_plus(x, &self.masked(x, &a, &mask, pass)?, &b)?
            }
            Factors::Live(a, b) => match self.dropout_key(pass) {
                None => base.forward_low_rank(x, &a, &b, self.scale)?,
                Some(key) => {
                    let dropout = Dropout::new(self.dropout, key)?;
                    base.forward_low_rank_dropped(x, &a, &b, self.scale, dropout)?
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
        Ok(match self.factors(pass)? {
            Factors::Nothing => y_base.zeros_like()?,
            Factors::Masked(a, b, mask) => {
                ops::linear(&self.masked(x, &a, &mask, pass)?, &b, None)?
            }
            Factors::Live(a, b) => ops::low_rank(&self.dropped(x, pass)?, &a, &b, self.scale)?,
        })
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, _: &mut Pass) -> Result<Merge> {
        let merged = match self.values()? {
            Some((a, b)) => ops::add_scaled(weight, &b.matmul(&a)?, self.scale)?,
            None => weight.clone(),
        };
        Ok(Merge::Exact(merged.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let (a, b) = match self.values()? {
            Some(pair) => pair,
            None => (
                self.a.value().narrow(0, 0, 0)?,
                self.b.value().narrow(1, 0, 0)?,
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
