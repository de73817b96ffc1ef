//! What the family declares at each site, and what it computes there.

use crate::config::MorConfig;
use crate::mixture::{route, side_by_side};
use crate::usage::Usage;
use candle_core::{D, Device, Tensor};
use lowrank_adapter::{
    Adapter, Attach, Attachment, Error, Family, Init, LORA_B, LowRank, Merge, Param, Pass, Result,
    SiteId, Spec, Update,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;

/// A mixture of ranks.
#[derive(Debug)]
pub struct Mor;

/// One adapted layer.
#[derive(Debug)]
struct Layer {
    /// A `[r, n_in]`.
    a: Param,
    /// B `[n_out, r]`.
    b: Param,
    /// OA `[N, r]`.
    scale_a: Param,
    /// OB `[N, n_out]`.
    scale_b: Param,
    /// Wg `[N, n_in]`, where gates depend on the input.
    router: Option<Param>,
    scale: f64,
    dropout: f64,
    balance_weight: f64,
    /// Keys the dropout mask.
    path: String,
}

impl Family for Mor {
    type Config = MorConfig;
    const NAME: &'static str = "mor";

    fn attach(&self, config: &MorConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        config.warn_of_unused(cx)?;
        Attachment::per_site(cx, |cx, site| Ok(Box::new(layer(config, cx, site)?)))
    }
}

fn layer(config: &MorConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let (rank, scale) = config.rank_and_scale(&path)?;
    let experts = config.num_experts.get();
    cx.check_rank(site, rank)?;
    if experts > n_out && !cx.loads() {
        return Err(Error::Config {
            what: format!(
                "`num_experts = {experts}`, expected at most the {n_out} outputs of the module"
            ),
        });
    }
    let noise = config.init_noise.get();
    let a = Spec::new("lora_A.weight", (rank, n_in)).init(Init::KaimingUniform);
    let b = Spec::new("lora_B.weight", (n_out, rank)).group(LORA_B);
    let mut scale_a = Spec::new("mor_scale_A", (experts, rank));
    if !cx.loads() {
        let mut stream = cx.key(site, "mor_scale_A").stream();
        let start: Vec<f64> = (0..experts * rank)
            .map(|_| 1.0 + noise * stream.normal())
            .collect();
        let start = Tensor::from_vec(start, (experts, rank), &Device::Cpu)?;
        scale_a = scale_a.init(Init::Value(start));
    }
    let scale_b = Spec::new("mor_scale_B", (experts, n_out)).init(Init::Ones);
    let router = Spec::new("mor_router", (experts, n_in)).init(Init::Normal { std: noise });
    Ok(Layer {
        a: cx.declare(site, a.rank_axis(0))?,
        b: cx.declare(site, b.rank_axis(1))?,
        // They live around 1: decay would draw them to 0.
        scale_a: cx.declare(site, scale_a.rank_axis(1).no_decay())?,
        scale_b: cx.declare(site, scale_b.no_decay())?,
        router: config
            .routes()
            .then(|| cx.declare(site, router))
            .transpose()?,
        scale,
        dropout: config.lora_dropout.get(),
        balance_weight: config.balance_weight.get(),
        path,
    })
}

/// The update that a layer is while its gates are `gates`, one an expert: `scale * (B .* S) A` with S = OBᵀ diag(g) OA,
/// where `a` is A `[r, n_in]`, `b` B `[n_out, r]`, `scale_a` OA `[N, r]` and `scale_b` OB `[N, n_out]`. With a router it is
/// another function than the layer: an approximation, whatever gates are taken.
///
/// # Errors
/// If the shapes do not fit.
pub fn at_gates(
    (a, b): (&Tensor, &Tensor),
    (scale_a, scale_b): (&Tensor, &Tensor),
    gates: &[f64],
    scale: f64,
) -> Result<LowRank> {
    Ok(LowRank {
        a: a.clone(),
        b: scaled(b, (scale_a, scale_b), gates)?,
        scale,
        exact: false,
    })
}

/// B .* S.
fn scaled(b: &Tensor, (scale_a, scale_b): (&Tensor, &Tensor), gates: &[f64]) -> Result<Tensor> {
    let gates = Tensor::new(gates, b.device())?.to_dtype(b.dtype())?;
    let scale_a = scale_a.broadcast_mul(&gates.unsqueeze(1)?)?;
    let s = scale_b.t()?.contiguous()?.matmul(&scale_a)?;
    Ok((b * s)?)
}

impl Layer {
    /// Plain LoRA, where gates are the same for every input.
    fn without_router(&self, pass: &Pass) -> Result<Update> {
        let scales = (&self.scale_a.get(pass), &self.scale_b.get(pass));
        let b = scaled(&self.b.get(pass), scales, &self.equal_gates())?;
        let update = Update::new(self.a.get(pass), b, self.scale);
        Ok(update.dropped(pass.dropout(self.dropout, &self.path)?))
    }

    fn equal_gates(&self) -> Vec<f64> {
        let experts = self.scale_a.shape().dims()[0];
        vec![1.0 / experts as f64; experts]
    }

    /// c (.., N r) and Bcat `[n_out, N r]`.
    fn mixed(&self, router: &Param, x: &Tensor, pass: &mut Pass) -> Result<(Tensor, Tensor)> {
        let (a, router) = (self.a.get(pass), router.get(pass));
        let p = match pass.dropout(self.dropout, &self.path)? {
            Some(dropout) => {
                let h = ops::linear(&dropout.of(x)?, &a, None)?;
                Tensor::cat(&[h, ops::linear(x, &router, None)?], D::Minus1)?
            }
            None => ops::linear(x, &Tensor::cat(&[a, router], 0)?, None)?,
        };
        let (c, gates) = route(&p, &self.scale_a.get(pass), self.scale)?;
        if self.balance_weight > 0.0 && pass.training() {
            self.add_balance(&gates, pass)?;
        }
        let wide = side_by_side(&self.b.get(pass), &self.scale_b.get(pass))?;
        Ok((c, wide))
    }

    /// weight * N sum_i f_i P_i over the tokens that are not padding. f has no gradient, so that it is a sum of gates
    /// times constants.
    fn add_balance(&self, gates: &Tensor, pass: &mut Pass) -> Result<()> {
        let experts = gates.dim(D::Minus1)?;
        let rows = gates.elem_count() / experts;
        let real = pass.tokens().map(|tokens| {
            let segments = tokens.segments.iter();
            segments.map(|&segment| segment != 0).collect::<Vec<_>>()
        });
        // A head sees tokens that were picked, none of them padding.
        let real = real.filter(|real| real.len() == rows);
        let usage = Usage::of(gates, real.as_deref())?;
        let factor = self.balance_weight * experts as f64 / usage.tokens.max(1) as f64;
        let slopes: Vec<f64> = (0..rows)
            .flat_map(|at| {
                let counts = real.as_ref().is_none_or(|real| real[at]);
                let factor = if counts { factor } else { 0.0 };
                usage.busiest.iter().map(move |f| factor * f)
            })
            .collect();
        let slopes = Tensor::from_vec(slopes, gates.shape(), gates.device())?;
        let loss = ops::sum_all(&(gates * slopes.to_dtype(gates.dtype())?)?)?;
        pass.add_loss("balance", loss)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if let Some(router) = &self.router {
            let (c, wide) = self.mixed(router, x, pass)?;
            return Ok(base.forward_plus(x, &c, &wide)?);
        }
        self.without_router(pass)?.onto(base, x)
    }

    fn delta(
        &self,
        _: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        if let Some(router) = &self.router {
            let (c, wide) = self.mixed(router, x, pass)?;
            return Ok(ops::linear(&c, &wide, None)?);
        }
        self.without_router(pass)?.alone(x, y_base)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        if self.router.is_some() {
            return Ok(Merge::InputDependent {
                why: "the router weighs the experts anew for every token (`router = \"mean\"` and one expert do not); keep \
                      the adapter apart",
            });
        }
        let merged = self.without_router(pass)?.merged(weight)?;
        Ok(Merge::Exact(merged.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        if self.router.is_some() {
            return Ok(None);
        }
        let scales = (&self.scale_a.value(), &self.scale_b.value());
        Ok(Some(LowRank {
            exact: true,
            ..at_gates(
                (&self.a.value(), &self.b.value()),
                scales,
                &self.equal_gates(),
                self.scale,
            )?
        }))
    }
}
