//! The method: what it declares at each site, and what it computes there.

use crate::ResloraConfig;
use candle_core::Tensor;
use lowrank_adapter::{
    Adapter, Attach, Attachment, Error, Family, Init, LowRank, Merge, Param, Pass, Result, SiteId,
    Spec,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, rng::Purpose};

/// The family. CHANGE: the method's name.
#[derive(Debug)]
pub struct Reslora;

/// x Wᵀ + s x Aᵀ Bᵀ.
#[derive(Debug)]
struct Layer {
    a: Param,
    b: Param,
    scale: f64,
    dropout: f64,
    /// Keys the dropout mask.
    path: String,
}

impl Family for Reslora {
    type Config = ResloraConfig;
    const NAME: &'static str = "reslora";

    fn attach(&self, config: &ResloraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        Attachment::per_site(cx, |cx, site| Ok(Box::new(layer(config, cx, site)?)))
    }
}

/// CHANGE: the method's tensors. The name is the key in the adapter's file.
fn layer(config: &ResloraConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let rank = config.r.get();
    if rank > n_out.min(n_in) && !cx.loads() {
        return Err(Error::RankTooLarge { rank, n_out, n_in });
    }
    let a = Spec::new("lora_A.weight", (rank, n_in))
        .rank_axis(0)
        .init(Init::KaimingUniform);
    let b = Spec::new("lora_B.weight", (n_out, rank)).rank_axis(1);
    Ok(Layer {
        a: cx.declare(site, a)?,
        b: cx.declare(site, b)?,
        scale: config.scale(),
        dropout: config.lora_dropout.get(),
        path: cx.site(site).path.clone(),
    })
}

impl Layer {
    /// s drop(x) Aᵀ: `x` (.., n_in) -> (.., r). CHANGE: the method's mathematics, here and below.
    fn down(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let a = self.a.get(pass);
        let h = if self.dropout == 0.0 || !pass.training() {
            ops::linear(x, &a, None)?
        } else {
            let key = pass.rng().purpose(Purpose::Dropout).site(&self.path);
            ops::linear(&ops::dropout(x, self.dropout, key)?, &a, None)?
        };
        Ok((h * self.scale)?)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let h = self.down(x, pass)?;
        Ok(base.forward_plus(x, &h, &self.b.get(pass))?)
    }

    fn delta(&self, _: &FrozenLinear, x: &Tensor, _: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let h = self.down(x, pass)?;
        Ok(ops::linear(&h, &self.b.get(pass), None)?)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let update = self.b.get(pass).matmul(&self.a.get(pass))?;
        Ok(Merge::Exact(
            ops::add_scaled(weight, &update, self.scale)?.into(),
        ))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        Ok(Some(LowRank {
            a: self.a.value(),
            b: self.b.value(),
            scale: self.scale,
        }))
    }
}
