//! Layers whose update depends on the input: two experts and a router.

use super::{dropped, shares};
use candle_core::{D, Tensor};
use lowrank_adapter::{
    Adapter, Attach, Attachment, Family, Init, Merge, Param, Pass, Probability, Result, Spec,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The keys of [`InputDependent`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct InputDependentConfig {
    /// The rank of each expert.
    pub r: NonZeroUsize,
    /// The update is multiplied by alpha / r.
    pub alpha: f64,
    /// The factor of the loss that keeps both experts busy.
    pub balance: f64,
    /// Dropout of the experts' input; the router sees all of it.
    pub dropout: Probability,
}

impl Default for InputDependentConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(2).expect("2 is not 0"),
            alpha: 3.0,
            balance: 0.5,
            dropout: Probability::default(),
        }
    }
}

/// y = W x + s (p B1 A1 x + (1 - p) B2 A2 x) with p = sigmoid(w x), and a loss that draws the mean of p to 1/2.
#[derive(Debug, Clone, Copy)]
pub struct InputDependent;

#[derive(Debug)]
struct Layer {
    path: String,
    /// `[2 r, n_in]`, one expert under the other.
    a: Param,
    /// `[n_out, 2 r]`, one expert beside the other.
    b: Param,
    /// `[1, n_in]`.
    router: Param,
    config: InputDependentConfig,
}

impl Family for InputDependent {
    type Config = InputDependentConfig;
    const NAME: &'static str = "inputdependent";

    fn attach(&self, config: &InputDependentConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        Attachment::per_site(cx, |cx, site| {
            let ((n_out, n_in), rank) = (cx.site(site).dims(), 2 * config.r.get());
            let a = Spec::new("lora_A.weight", (rank, n_in)).init(Init::KaimingUniform);
            let router = Spec::new("routed_router", (1, n_in))
                .init(Init::Normal { std: 0.5 })
                .group("router");
            Ok(Box::new(Layer {
                path: cx.site(site).path.clone(),
                a: cx.declare(site, a)?,
                b: cx.declare(site, Spec::new("lora_B.weight", (n_out, rank)))?,
                router: cx.declare(site, router)?,
                config: config.clone(),
            }))
        })
    }
}

impl Layer {
    /// What B is multiplied by: `x` (.., n_in) -> (.., 2 r).
    fn down(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let rank = self.config.r.get();
        let logit = ops::linear(x, &self.router.get(pass), None)?;
        // sigmoid(z) = (1 + tanh(z / 2)) / 2.
        let first = (((logit * 0.5)?.tanh()? + 1.0)? * 0.5)?;
        self.add_balance(&first, pass)?;
        let second = (1.0 - &first)?;
        let h = dropped(x, self.config.dropout, &self.path, pass)?;
        let h = ops::linear(&h, &self.a.get(pass), None)?;
        let routed = [
            h.narrow(D::Minus1, 0, rank)?.broadcast_mul(&first)?,
            h.narrow(D::Minus1, rank, rank)?.broadcast_mul(&second)?,
        ];
        let scale = self.config.alpha / rank as f64;
        Ok((Tensor::cat(&routed, D::Minus1)? * scale)?)
    }

    /// (mean p - 1/2)^2 over the tokens that are not padding: `first` `[rows, length, 1]`.
    fn add_balance(&self, first: &Tensor, pass: &mut Pass) -> Result<()> {
        let Some(shares) = shares(pass).filter(|_| pass.training()) else {
            return Ok(());
        };
        let shares =
            Tensor::from_vec(shares, first.shape(), first.device())?.to_dtype(first.dtype())?;
        let off = (ops::sum_all(&(first * shares)?)? - 0.5)?;
        pass.add_loss("balance", ((&off * &off)? * self.config.balance)?)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let h = self.down(x, pass)?;
        Ok(base.forward_plus(x, &h, &self.b.get(pass))?)
    }

    fn merge(&self, _: &Tensor, _: Option<&Tensor>, _: &mut Pass) -> Result<Merge> {
        Ok(Merge::InputDependent {
            why: "a router weighs experts; keep the adapter apart",
        })
    }
}
