//! The method: what it declares at each site, and what it computes there.

use crate::LohaConfig;
use candle_core::{Device, Tensor};
use lowrank_adapter::{
    Adapter, Attach, Attachment, Family, Init, LowRank, Merge, Param, Pass, Result, SiteId, Spec,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use std::collections::BTreeMap;

/// Low-rank Hadamard products.
#[derive(Debug)]
pub struct Loha;

const W1_A: &str = "hada_w1_a";
const W1_B: &str = "hada_w1_b";
const W2_A: &str = "hada_w2_a";
const W2_B: &str = "hada_w2_b";

impl Family for Loha {
    type Config = LohaConfig;
    const NAME: &'static str = "loha";

    fn lacks() -> &'static [&'static str] {
        &["bias"]
    }

    fn sites(shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)> {
        let pair = |(name, a): (&String, &Vec<usize>)| {
            let path = name.strip_suffix(&format!(".{W1_A}"))?;
            let b = shapes.get(&format!("{path}.{W1_B}"))?;
            match (a.as_slice(), b.as_slice()) {
                (&[n_out, _], &[_, n_in]) => Some((path.to_owned(), (n_out, n_in))),
                _ => None,
            }
        };
        shapes.iter().filter_map(pair).collect()
    }

    fn attach(&self, config: &LohaConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        config.warn_of_unused(cx)?;
        Attachment::per_site(cx, |cx, site| Ok(Box::new(layer(config, cx, site)?)))
    }
}

fn layer(config: &LohaConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let (rank, scale) = config.rank_and_scale(&path)?;
    cx.check_rank(site, rank)?;
    let last = if config.init_weights {
        Init::Zeros
    } else {
        Init::KaimingUniform
    };
    let mut declare = |name: &str, shape: (usize, usize), init: Init| {
        cx.declare(site, Spec::new(name, shape).init(init))
    };
    Ok(Layer {
        first: (
            declare(W1_A, (n_out, rank), Init::KaimingUniform)?,
            declare(W1_B, (rank, n_in), Init::KaimingUniform)?,
        ),
        second: (
            declare(W2_A, (n_out, rank), Init::KaimingUniform)?,
            declare(W2_B, (rank, n_in), last)?,
        ),
        scale,
        form: if rank * rank * (n_out + n_in) <= n_out * n_in {
            Form::LowRank
        } else {
            Form::Whole
        },
        rank_dropout: config.rank_dropout.get(),
        module_dropout: config.module_dropout.get(),
        path,
    })
}

/// x Wᵀ + s x ((w1_a w1_b) ∘ (w2_a w2_b))ᵀ.
#[derive(Debug)]
struct Layer {
    /// `[n_out, r]`, `[r, n_in]`.
    first: (Param, Param),
    /// The same.
    second: (Param, Param),
    scale: f64,
    form: Form,
    rank_dropout: f64,
    module_dropout: f64,
    /// Keys what is dropped.
    path: String,
}

/// How the update is computed.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// As a product of rank r², never formed.
    LowRank,
    /// Formed.
    Whole,
}

/// The four factors as a pass uses them.
struct Factors {
    first: (Tensor, Tensor),
    second: (Tensor, Tensor),
    scale: f64,
}

impl Factors {
    /// a `[r², n_in]` and b `[n_out, r²]`, whose product is the update over its scale.
    fn low_rank(&self) -> Result<(Tensor, Tensor)> {
        let a = ops::khatri_rao(&self.first.1, &self.second.1)?;
        let b = ops::outer_rows(&self.first.0, &self.second.0)?;
        Ok((a, b))
    }

    /// The update `[n_out, n_in]`.
    fn whole(&self) -> Result<Tensor> {
        let (first, second) = (&self.first, &self.second);
        Ok(ops::hadamard(
            (&first.0, &first.1),
            (&second.0, &second.1),
            self.scale,
        )?)
    }
}

impl Layer {
    /// What the pass trains, less what it drops: the rows of the update are those of `hada_w1_a`.
    fn factors(&self, pass: &Pass) -> Result<Factors> {
        let get = |(a, b): &(Param, Param)| (a.get(pass), b.get(pass));
        let mut first = get(&self.first);
        if let Some(kept) = self.kept_rows(&first.0, pass)? {
            first.0 = first.0.broadcast_mul(&kept)?;
        }
        Ok(Factors {
            first,
            second: get(&self.second),
            scale: if self.leaves_out(pass) {
                0.0
            } else {
                self.scale
            },
        })
    }

    /// True if `module_dropout` leaves the module out of this pass. A scale of 0 does so, and keeps the gradients.
    fn leaves_out(&self, pass: &Pass) -> bool {
        pass.leaves_out(self.module_dropout, &self.path)
    }

    /// What `rank_dropout` multiplies the rows of `like` by, `[n_out, 1]`.
    fn kept_rows(&self, like: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        let rows = like.dims()[0];
        let Some(keep) = pass.kept_rows(self.rank_dropout, &self.path, rows) else {
            return Ok(None);
        };
        let live = keep.iter().filter(|&&keep| keep).count().max(1);
        let factor = rows as f64 / live as f64;
        let kept: Vec<f64> = keep
            .into_iter()
            .map(|keep| if keep { factor } else { 0.0 })
            .collect();
        let kept = Tensor::from_vec(kept, (rows, 1), &Device::Cpu)?;
        Ok(Some(kept.to_dtype(like.dtype())?.to_device(like.device())?))
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let factors = self.factors(pass)?;
        match self.form {
            Form::LowRank => {
                let (a, b) = factors.low_rank()?;
                Ok(base.forward_low_rank(x, &a, &b, factors.scale)?)
            }
            Form::Whole => {
                let update = ops::linear(x, &factors.whole()?, None)?;
                Ok(ops::add(&base.forward(x)?, &update)?)
            }
        }
    }

    fn delta(&self, _: &FrozenLinear, x: &Tensor, _: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let factors = self.factors(pass)?;
        match self.form {
            Form::LowRank => {
                let (a, b) = factors.low_rank()?;
                Ok(ops::low_rank(x, &a, &b, factors.scale)?)
            }
            Form::Whole => Ok(ops::linear(x, &factors.whole()?, None)?),
        }
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let update = self.factors(pass)?.whole()?;
        Ok(Merge::Exact(ops::add_scaled(weight, &update, 1.0)?.into()))
    }

    /// Of rank r², or of the smaller side's size where that is less.
    fn low_rank(&self) -> Result<Option<LowRank>> {
        let value = |(a, b): &(Param, Param)| (a.value(), b.value());
        let factors = Factors {
            first: value(&self.first),
            second: value(&self.second),
            scale: self.scale,
        };
        let (n_out, rank) = factors.first.0.dims2()?;
        let (_, n_in) = factors.first.1.dims2()?;
        if rank * rank <= n_out.min(n_in) {
            let (a, b) = factors.low_rank()?;
            let scale = self.scale;
            return Ok(Some(LowRank {
                a,
                b,
                scale,
                exact: true,
            }));
        }
        let update = factors.whole()?;
        let (dtype, device) = (update.dtype(), update.device().clone());
        let (a, b) = if n_in <= n_out {
            (Tensor::eye(n_in, dtype, &device)?, update)
        } else {
            (update, Tensor::eye(n_out, dtype, &device)?)
        };
        Ok(Some(LowRank {
            a,
            b,
            scale: 1.0,
            exact: true,
        }))
    }
}
