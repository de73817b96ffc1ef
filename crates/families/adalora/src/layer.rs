//! One adapted layer.

use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Merge, Param, Pass, Result};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Dropout};

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
    /// A, and B with the columns times E: B (E ∘ A) is their product too, and B is the smaller one to scale.
    fn factors(&self, pass: &Pass) -> Result<(Tensor, Tensor)> {
        scaled(&self.a.get(pass), &self.e.get(pass), &self.b.get(pass))
    }

    /// What keys the dropout on the adapter's input, if there is any.
    fn dropout_key(&self, pass: &Pass) -> Option<Key> {
        let drops = self.dropout > 0.0 && pass.training();
        drops.then(|| pass.rng().purpose(Purpose::Dropout).site(&self.path))
    }
}

fn scaled(a: &Tensor, e: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    // A module that has lost all its ranks has no columns.
    if b.elem_count() == 0 {
        return Ok((a.clone(), b.clone()));
    }
    Ok((a.clone(), ops::scale_columns(b, &e.flatten_all()?)?))
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (a, b) = self.factors(pass)?;
        Ok(match self.dropout_key(pass) {
            _ if b.elem_count() == 0 => base.forward(x)?,
            None => base.forward_low_rank(x, &a, &b, self.scale)?,
            Some(key) => {
                let dropout = Dropout::new(self.dropout, key)?;
                base.forward_low_rank_dropped(x, &a, &b, self.scale, dropout)?
            }
        })
    }

    fn delta(&self, _: &FrozenLinear, x: &Tensor, _: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (a, b) = self.factors(pass)?;
        let key = self.dropout_key(pass);
        let dropped = key.map(|key| ops::dropout(x, self.dropout, key));
        let dropped = dropped.transpose()?;
        let x = dropped.as_ref().unwrap_or(x);
        Ok(ops::low_rank(x, &a, &b, self.scale)?)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let (a, b) = self.factors(pass)?;
        if b.elem_count() == 0 {
            return Ok(Merge::Exact(weight.clone().into()));
        }
        Ok(Merge::Exact(
            ops::add_scaled(weight, &b.matmul(&a)?, self.scale)?.into(),
        ))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let (a, b) = scaled(&self.a.value(), &self.e.value(), &self.b.value())?;
        Ok(Some(LowRank {
            a,
            b,
            scale: self.scale,
            exact: true,
        }))
    }
}
