//! What the family declares at each site, and what it computes there.

use crate::config::{SboraConfig, Variant};
use crate::sampler::region;
use crate::update::Update;
use candle_core::{D, DType, Device, Tensor};
use lowrank_adapter::{
    Adapter, Attach, Attachment, Error, Family, Init, Kind, LowRank, Merge, Param, Pass, Result,
    SiteId, Spec,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, Dropout};
use std::collections::{BTreeMap, BTreeSet};

/// Standard-basis low-rank adaptation.
#[derive(Debug)]
pub struct Sbora;

const INDICES: &str = "sbora_idx";

/// The trained factor's name.
const fn factor_of(variant: Variant) -> &'static str {
    match variant {
        Variant::Fa => "sbora_b",
        Variant::Fb => "sbora_a",
    }
}

/// One adapted layer.
#[derive(Debug)]
struct Layer {
    variant: Variant,
    /// `[r]`, u32, distinct.
    indices: Param,
    /// B `[n_out, r]` (FA) or A `[r, n_in]` (FB).
    factor: Param,
    /// How many columns (FA) or rows (FB) the weight has.
    count: Option<usize>,
    scale: f64,
    dropout: f64,
    /// Keys the dropout mask.
    path: String,
}

impl Family for Sbora {
    type Config = SboraConfig;
    const NAME: &'static str = "sbora";

    /// The side that indices are of is in no file: it is told as long as there are indices, the least that it can be.
    fn sites(shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)> {
        let of = |path: &str, name: &str| match shapes.get(&format!("{path}.{name}"))?[..] {
            [rows, columns] => Some((rows, columns)),
            _ => None,
        };
        let dims = |name: &String| {
            let path = name.strip_suffix(INDICES)?.strip_suffix('.')?;
            let factor = [Variant::Fa, Variant::Fb].map(factor_of);
            let dims = factor.into_iter().find_map(|factor| of(path, factor))?;
            Some((path.to_owned(), dims))
        };
        shapes.keys().filter_map(dims).collect()
    }

    fn attach(&self, config: &SboraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        config.check(cx)?;
        Attachment::per_site(cx, |cx, site| Ok(Box::new(layer(config, cx, site)?)))
    }
}

fn layer(config: &SboraConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let (rank, scale) = config.rank_and_scale(&path)?;
    let (count, shape) = match config.variant {
        Variant::Fa => (n_in, (n_out, rank)),
        Variant::Fb => (n_out, (rank, n_in)),
    };
    let mut indices = Spec::new(INDICES, rank).kind(Kind::Saved).dtype(DType::U32);
    if !cx.loads() {
        // The last task's slots must exist too.
        region(
            config.index_seed,
            &path,
            count,
            rank,
            config.tasks.get() - 1,
        )?;
        let own = region(config.index_seed, &path, count, rank, config.task)?;
        indices = indices.init(Init::Value(Tensor::new(own, &Device::Cpu)?));
    }
    let indices = cx.declare(site, indices)?;
    // A base of which only the shape is known takes it from the file, which does not tell this side.
    let known = cx.site(site).base.encoding().is_some();
    let count = known.then_some(count);
    check(&indices, config.variant, count)?;
    Ok(Layer {
        variant: config.variant,
        indices,
        factor: cx.declare(site, Spec::new(factor_of(config.variant), shape))?,
        count,
        scale,
        dropout: config.lora_dropout.get(),
        path,
    })
}

/// Refuses indices that are there twice or out of range, where `count` says how many columns or rows the weight has.
fn check(indices: &Param, variant: Variant, count: Option<usize>) -> Result<()> {
    let mut seen = BTreeSet::new();
    let places = variant.places();
    for index in indices.value().to_vec1::<u32>()? {
        let refuse = |what: String| {
            let name = indices.name();
            Err(Error::Other(format!("tensor `{name}` {what}")))
        };
        if let Some(count) = count.filter(|count| index as usize >= *count) {
            return refuse(format!(
                "holds {index}, and the weight has {count} {places}"
            ));
        }
        if index == u32::MAX {
            return refuse(format!("holds {index}, which no weight has"));
        }
        if !seen.insert(index) {
            return refuse(format!("holds {index} twice, expected distinct {places}"));
        }
    }
    Ok(())
}

impl Layer {
    fn indices(&self) -> Result<Vec<u32>> {
        Ok(self.indices.value().to_vec1()?)
    }

    fn dropout(&self, pass: &Pass) -> Result<Option<Dropout>> {
        pass.dropout(self.dropout, &self.path)
    }

    /// FA: s drop(x[idx]), (.., n_in) -> (.., r).
    fn picked(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let picked = ops::gather_columns(x, &self.indices()?)?;
        let picked = match self.dropout(pass)? {
            Some(dropout) => dropout.of(&picked)?,
            None => picked,
        };
        Ok((picked * self.scale)?)
    }

    fn update(&self, pass: &Pass) -> Result<Update> {
        let factor = self.factor.get(pass);
        Update::new(self.variant, self.indices()?, factor, self.scale)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let factor = self.factor.get(pass);
        Ok(match self.variant {
            Variant::Fa => base.forward_plus(x, &self.picked(x, pass)?, &factor)?,
            Variant::Fb => {
                let (indices, dropout) = (self.indices()?, self.dropout(pass)?);
                base.forward_low_rank_at(x, &factor, &indices, self.scale, dropout)?
            }
        })
    }

    fn delta(
        &self,
        _: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let factor = self.factor.get(pass);
        if self.variant == Variant::Fa {
            return Ok(ops::linear(&self.picked(x, pass)?, &factor, None)?);
        }
        let dropped = self.dropout(pass)?.map(|dropout| dropout.of(x));
        let dropped = dropped.transpose()?;
        let u = ops::linear(dropped.as_ref().unwrap_or(x), &factor, None)?;
        let nothing = Tensor::zeros(y_base.shape(), y_base.dtype(), y_base.device())?;
        let indices = self.indices.value();
        Ok(nothing.index_add(&indices, &(u * self.scale)?, D::Minus1)?)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let (merged, _) = self.update(pass)?.fold_into(weight)?;
        Ok(Merge::Exact(merged.into()))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let (factor, mut indices) = (self.factor.value(), self.indices()?);
        // Where the weight's side is not known, an update of the same size in the smallest one.
        let count = self.count.unwrap_or(indices.len());
        if self.count.is_none() {
            indices = (0u32..).take(count).collect();
        }
        let update = Update::new(self.variant, indices, factor, self.scale)?;
        Ok(Some(update.low_rank(count)?))
    }
}
