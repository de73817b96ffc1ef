//! The forward pass and the merge of one adapted linear layer.

use crate::{Pass, Result};
use candle_core::Tensor;
use lowrank_frozen::FrozenLinear;
use std::fmt;

/// The forward pass of one adapted linear layer.
pub trait Adapter: fmt::Debug + Send + Sync {
    /// The layer's whole output, `x`: (.., n_in) -> (.., n_out): additive families start from the base's product.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor>;

    /// What this adapter adds to `y_base` (the base's output) when several are selected. Additive families override
    /// the default, which runs the base once more.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn delta(
        &self,
        base: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        Ok((self.forward(base, x, pass)? - y_base)?)
    }

    /// Weight `[n_out, n_in]` and bias with the adapter folded in, asked for in site order. No default: every author
    /// decides.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn merge(&self, weight: &Tensor, bias: Option<&Tensor>, pass: &mut Pass) -> Result<Merge>;

    /// The update as `scale * b a` against the checkpoint's own weight, if it has that form, or comes near to it as
    /// [`merge`](Self::merge) does.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn low_rank(&self) -> Result<Option<LowRank>> {
        Ok(None)
    }
}

/// A layer with its adapter folded in.
#[derive(Debug, Clone)]
pub struct Merged {
    /// `[n_out, n_in]`.
    pub weight: Tensor,
    /// `[n_out]`; `None` leaves the bias as it was.
    pub bias: Option<Tensor>,
}

impl From<Tensor> for Merged {
    fn from(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }
}

impl Merged {
    pub(crate) fn or_bias(self, bias: Option<Tensor>) -> Self {
        Self {
            bias: self.bias.or(bias),
            ..self
        }
    }
}

/// What folding gives.
#[derive(Debug, Clone)]
pub enum Merge {
    /// Equal to the adapted layer, up to rounding.
    Exact(Merged),
    /// Near to the adapted layer.
    Approximate(Merged),
    /// The update depends on the input: no weight is equal to it.
    InputDependent {
        /// What of the method makes it so, and what to do, in words that follow a colon.
        why: &'static str,
    },
}

/// A plain low-rank update, `scale * b a`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[r, n_in]`.
    pub a: Tensor,
    /// `[n_out, r]`.
    pub b: Tensor,
    /// The factor.
    pub scale: f64,
    /// Whether it gives what the adapter gives, up to rounding; else it only comes near.
    pub exact: bool,
}

impl LowRank {
    /// The Frobenius norm of the update, without forming it: `sqrt(tr((BᵀB)(AAᵀ)))`.
    ///
    /// # Errors
    /// If the factors do not fit.
    pub fn norm(&self) -> Result<f64> {
        use candle_core::DType::F64;
        let (a, b) = (self.a.to_dtype(F64)?, self.b.to_dtype(F64)?);
        let gram_a = a.matmul(&a.t()?.contiguous()?)?;
        let gram_b = b.t()?.contiguous()?.matmul(&b)?;
        let square = (gram_a * gram_b)?.sum_all()?.to_scalar::<f64>()?;
        Ok(self.scale.abs() * square.max(0.0).sqrt())
    }
}
