//! One adapted layer.

use crate::dora::{Magnitude, dense_norms};
use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Merge, Param, Pass, Result, Update};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;

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

    /// The update, if its rows keep the lengths that they come to.
    fn update(&self, pass: &Pass) -> Result<Update> {
        let (a, b) = self.factors(pass)?;
        Ok(Update::new(a, b, self.scale).dropped(pass.dropout(self.dropout, &self.path)?))
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
        let dropout = pass.dropout(self.dropout, &self.path)?;
        let dropped = dropout.map(|dropout| dropout.of(x)).transpose()?;
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
        self.update(pass)?.onto(base, x)
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
        self.update(pass)?.alone(x, y_base)
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
        Ok(Some(Update::new(a, b, self.scale).into()))
    }
}
