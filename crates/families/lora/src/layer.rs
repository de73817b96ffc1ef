//! One adapted layer.

use crate::dora::{Magnitude, dense_norms};
use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Merge, Param, Pass, Result};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Dropout};

/// W + s (B A - B₀ A₀), its rows at the lengths m if there are any.
#[derive(Debug)]
pub(crate) struct Layer {
    pub a: Param,
    pub b: Param,
    /// A₀ and B₀ of a residual start.
    pub subtracted: Option<(Param, Param)>,
    pub magnitude: Option<Magnitude>,
    pub scale: f64,
    pub dropout: f64,
    /// Keys the dropout mask.
    pub path: String,
}

impl Layer {
    /// A and B of the whole update, [A; A₀] and [B, -B₀] after a residual start, without a graph.
    pub fn values(&self) -> Result<(Tensor, Tensor)> {
        self.whole(self.a.value(), self.b.value())
    }

    /// The same as a pass may use them.
    fn factors(&self, pass: &Pass) -> Result<(Tensor, Tensor)> {
        self.whole(self.a.get(pass), self.b.get(pass))
    }

    fn whole(&self, a: Tensor, b: Tensor) -> Result<(Tensor, Tensor)> {
        match &self.subtracted {
            None => Ok((a, b)),
            Some((a0, b0)) => joined(&a, &b, &a0.value(), &b0.value()),
        }
    }

    /// What keys the dropout on the adapter's input, if there is any.
    fn dropout_key(&self, pass: &Pass) -> Option<Key> {
        let drops = self.dropout > 0.0 && pass.training();
        drops.then(|| pass.rng().purpose(Purpose::Dropout).site(&self.path))
    }

    /// The layer's input as the adapter sees it, if dropout applies.
    fn dropped(&self, x: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        let key = self.dropout_key(pass);
        Ok(key
            .map(|key| ops::dropout(x, self.dropout, key))
            .transpose()?)
    }

    /// y = (m / n) (x Wᵀ + s x Aᵀ Bᵀ) + bias. With dropout the base's own product sees the whole input:
    /// y = x Wᵀ + bias + (m / n - 1) (d Wᵀ) + (m / n) s d Aᵀ Bᵀ for the dropped input d.
    fn forward_dora(
        &self,
        magnitude: &Magnitude,
        base: &FrozenLinear,
        x: &Tensor,
        pass: &Pass,
    ) -> Result<Tensor> {
        let (a, b) = self.factors(pass)?;
        let norms = magnitude.norms.of(base, &a, &b, self.scale)?;
        let factors = magnitude.factors(pass, norms)?;
        let dropped = self.dropped(x, pass)?;
        let d = dropped.as_ref().unwrap_or(x);
        let y = base
            .with_bias(None)
            .forward_low_rank(d, &a, &b, self.scale)?;
        let y = ops::scale_columns(&y, &factors)?;
        match (&dropped, base.bias()) {
            // x Wᵀ - d Wᵀ is one product.
            (Some(d), _) => Ok((y + base.forward(&(x - d)?)?)?),
            (None, Some(bias)) => Ok(ops::add_bias(&y, bias)?),
            (None, None) => Ok(y),
        }
    }
}

/// [a; a0] and [b, -b0], whose product is b a - b0 a0.
pub(crate) fn joined(a: &Tensor, b: &Tensor, a0: &Tensor, b0: &Tensor) -> Result<(Tensor, Tensor)> {
    let b = Tensor::cat(&[b, &b0.neg()?], 1)?;
    Ok((Tensor::cat(&[a, a0], 0)?, b))
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if let Some(magnitude) = &self.magnitude {
            return self.forward_dora(magnitude, base, x, pass);
        }
        let (a, b) = self.factors(pass)?;
        Ok(match self.dropout_key(pass) {
            None => base.forward_low_rank(x, &a, &b, self.scale)?,
            Some(key) => {
                let dropout = Dropout::new(self.dropout, key)?;
                base.forward_low_rank_dropped(x, &a, &b, self.scale, dropout)?
            }
        })
    }

    fn delta(
        &self,
        base: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        if self.magnitude.is_some() {
            return Ok((self.forward(base, x, pass)? - y_base)?);
        }
        let dropped = self.dropped(x, pass)?;
        let (a, b) = self.factors(pass)?;
        let x = dropped.as_ref().unwrap_or(x);
        Ok(ops::low_rank(x, &a, &b, self.scale)?)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let (a, b) = self.factors(pass)?;
        let mut merged = ops::add_scaled(weight, &b.matmul(&a)?, self.scale)?;
        if let Some(magnitude) = &self.magnitude {
            let factors = magnitude.factors(pass, dense_norms(&merged)?)?;
            merged = merged.broadcast_mul(&factors.unsqueeze(1)?)?;
        }
        Ok(Merge::Exact(merged.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        if self.magnitude.is_some() {
            return Ok(None);
        }
        let (a, b) = self.values()?;
        Ok(Some(LowRank {
            a,
            b,
            scale: self.scale,
            exact: true,
        }))
    }
}
