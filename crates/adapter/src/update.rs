//! The low-rank update that most families add to a layer's product.

use crate::Result;
use crate::adapter::LowRank;
use crate::gate::Mask;
use candle_core::Tensor;
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, Dropout};

/// s (drop(x) Aᵀ m) Bᵀ, of any rank, 0 among them.
#[derive(Debug, Clone)]
pub struct Update {
    a: Tensor,
    b: Tensor,
    scale: f64,
    mask: Option<Tensor>,
    dropout: Option<Dropout>,
}

impl Update {
    /// `a` `[r, n_in]`, `b` `[n_out, r]`; nothing is dropped or masked.
    #[must_use]
    pub const fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self {
            a,
            b,
            scale,
            mask: None,
            dropout: None,
        }
    }

    /// With this dropout on what A sees.
    #[must_use]
    pub fn dropped(self, dropout: Option<Dropout>) -> Self {
        Self { dropout, ..self }
    }

    /// Of live slots only, or with a probe's mask on what A gives.
    ///
    /// # Errors
    /// If a slot does not exist.
    pub fn gated(self, mask: Mask) -> Result<Self> {
        Ok(match mask {
            Mask::All => self,
            Mask::Given(mask) => {
                let mask = mask.to_dtype(self.a.dtype())?.to_device(self.a.device())?;
                Self {
                    mask: Some(mask),
                    ..self
                }
            }
            Mask::Live(slots) if slots.is_empty() => Self {
                a: self.a.narrow(0, 0, 0)?,
                b: self.b.narrow(1, 0, 0)?,
                ..self
            },
            Mask::Live(slots) => {
                let slots = Tensor::new(slots, self.a.device())?;
                Self {
                    a: self.a.index_select(&slots, 0)?,
                    b: self.b.index_select(&slots, 1)?,
                    ..self
                }
            }
        })
    }

    fn is_empty(&self) -> bool {
        self.a.elem_count() == 0
    }

    /// The layer's output with it: `x` (.., n_in) -> (.., n_out).
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn onto(&self, base: &FrozenLinear, x: &Tensor) -> Result<Tensor> {
        Ok(match (&self.mask, self.dropout) {
            _ if self.is_empty() => base.forward(x)?,
            (Some(mask), _) => base.forward_plus(x, &self.down(x, mask)?, &self.b)?,
            (None, None) => base.forward_low_rank(x, &self.a, &self.b, self.scale)?,
            (None, Some(dropout)) => {
                base.forward_low_rank_dropped(x, &self.a, &self.b, self.scale, dropout)?
            }
        })
    }

    /// What it adds to `y_base`, the base's output.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn alone(&self, x: &Tensor, y_base: &Tensor) -> Result<Tensor> {
        Ok(match &self.mask {
            _ if self.is_empty() => y_base.zeros_like()?,
            Some(mask) => ops::linear(&self.down(x, mask)?, &self.b, None)?,
            None => ops::low_rank(&self.seen(x)?, &self.a, &self.b, self.scale)?,
        })
    }

    /// `[n_out, n_in]` with it added; of rank 0, the weight itself. Nothing is dropped.
    ///
    /// # Errors
    /// If a shape does not fit, or the mask is not one number a slot.
    pub fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        if self.is_empty() {
            return Ok(weight.clone());
        }
        let b = match &self.mask {
            Some(mask) => self.b.broadcast_mul(mask)?,
            None => self.b.clone(),
        };
        Ok(ops::add_scaled(weight, &b.matmul(&self.a)?, self.scale)?)
    }

    /// The input as A sees it.
    fn seen(&self, x: &Tensor) -> Result<Tensor> {
        match self.dropout {
            Some(dropout) => Ok(dropout.of(x)?),
            None => Ok(x.clone()),
        }
    }

    /// s (drop(x) Aᵀ m): (.., n_in) -> (.., r).
    fn down(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let h = ops::linear(&self.seen(x)?, &self.a, None)?;
        Ok((h.broadcast_mul(mask)? * self.scale)?)
    }
}

/// As it stands, without mask and dropout.
impl From<Update> for LowRank {
    fn from(update: Update) -> Self {
        Self {
            a: update.a,
            b: update.b,
            scale: update.scale,
            exact: true,
        }
    }
}
