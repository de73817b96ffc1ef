//! The method: what it declares at each site, and what it computes there.

use crate::config::{InitWeights, LokrConfig, Word};
use crate::factors::{Factor, Shape, Zero, factorization, kron};
use candle_core::{Device, Tensor};
use lowrank_adapter::{Adapter, Attach, Attachment, Family, LowRank, Merge, Pass, Result, SiteId};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, Second};
use std::collections::{BTreeMap, BTreeSet};

/// Numbers in a factor of a plain update; the largest ones of models of a hundred billion parameters have fewer.
const LARGEST: usize = 1 << 30;

/// Low-rank Kronecker products.
#[derive(Debug)]
pub struct Lokr;

const W1: &str = "lokr_w1";
const W2: &str = "lokr_w2";

impl Family for Lokr {
    type Config = LokrConfig;
    const NAME: &'static str = "lokr";

    fn lacks() -> &'static [&'static str] {
        &["bias"]
    }

    fn sites(shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)> {
        let path = |name: &String| Some(name.rsplit_once(".lokr_w")?.0.to_owned());
        let paths: BTreeSet<String> = shapes.keys().filter_map(path).collect();
        let size = |path: &str, name: &str| {
            let dims = |part: &str| match shapes.get(&format!("{path}.{name}{part}"))?.as_slice() {
                &[rows, columns] => Some((rows, columns)),
                _ => None,
            };
            dims("").or_else(|| Some((dims("_a")?.0, dims("_b")?.1)))
        };
        let site = |path: String| {
            let ((l, m), (k, n)) = (size(&path, W1)?, size(&path, W2)?);
            let (n_out, n_in) = (l.checked_mul(k)?, m.checked_mul(n)?);
            (n_out > 0 && n_in > 0).then_some((path, (n_out, n_in)))
        };
        paths.into_iter().filter_map(site).collect()
    }

    fn attach(&self, config: &LokrConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        config.warn_of_unused(cx)?;
        Attachment::per_site(cx, |cx, site| Ok(Box::new(layer(config, cx, site)?)))
    }
}

fn layer(config: &LokrConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let (rank, scale) = config.rank_and_scale(&path)?;
    cx.check_rank(site, rank)?;
    let ((l, k), (m, n)) = (
        factorization(n_out, config.decompose_factor),
        factorization(n_in, config.decompose_factor),
    );
    let (first, second) = match config.init_weights {
        InitWeights::Plain(true) => (Zero::Left, Zero::None),
        InitWeights::Plain(false) => (Zero::None, Zero::None),
        InitWeights::Named(Word::Lycoris) => (Zero::None, Zero::Right),
    };
    let shape = |name, (rows, columns), rank| Shape {
        name,
        rows,
        columns,
        rank,
    };
    let w1 = shape(W1, (l, m), config.decompose_both.then_some(rank));
    Ok(Layer {
        first: Factor::declare(cx, site, w1, first)?,
        second: Factor::declare(cx, site, shape(W2, (k, n), Some(rank)), second)?,
        scale,
        n_out,
        rank_dropout: config.rank_dropout.get(),
        rank_dropout_scale: config.rank_dropout_scale,
        module_dropout: config.module_dropout.get(),
        path,
    })
}

/// x Wᵀ + s x kron(W1, W2)ᵀ.
#[derive(Debug)]
struct Layer {
    first: Factor,
    second: Factor,
    scale: f64,
    n_out: usize,
    rank_dropout: f64,
    rank_dropout_scale: bool,
    module_dropout: f64,
    /// Keys what is dropped.
    path: String,
}

impl Layer {
    /// s x kron(W1, W2)ᵀ less what the pass drops: `x` (.., n_in) -> (.., n_out).
    fn update(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let scale = if self.leaves_out(pass) {
            0.0
        } else {
            self.scale
        };
        let first = self.first.matrix(pass)?;
        let y = match &self.second {
            Factor::Whole(whole) => {
                ops::kronecker(x, &first, Second::Whole(&whole.get(pass)), scale)?
            }
            Factor::Product(a, b) => {
                let (a, b) = (&a.get(pass), &b.get(pass));
                ops::kronecker(x, &first, Second::Product { a, b }, scale)?
            }
        };
        match self.kept_rows(&y, pass)? {
            Some(kept) => Ok(ops::scale_columns(&y, &kept)?),
            None => Ok(y),
        }
    }

    /// True if `module_dropout` leaves the module out of this pass. A scale of 0 does so, and keeps the gradients.
    fn leaves_out(&self, pass: &Pass) -> bool {
        pass.leaves_out(self.module_dropout, &self.path)
    }

    /// What `rank_dropout` multiplies the outputs by, `[n_out]`.
    fn kept_rows(&self, like: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        let Some(keep) = pass.kept_rows(self.rank_dropout, &self.path, self.n_out) else {
            return Ok(None);
        };
        let live = keep.iter().filter(|&&keep| keep).count().max(1);
        let factor = if self.rank_dropout_scale {
            self.n_out as f64 / live as f64
        } else {
            1.0
        };
        let kept: Vec<f64> = keep
            .into_iter()
            .map(|keep| if keep { factor } else { 0.0 })
            .collect();
        let kept = Tensor::from_vec(kept, self.n_out, &Device::Cpu)?;
        Ok(Some(kept.to_dtype(like.dtype())?.to_device(like.device())?))
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let update = self.update(x, pass)?;
        Ok(ops::add(&base.forward(x)?, &update)?)
    }

    fn delta(&self, _: &FrozenLinear, x: &Tensor, _: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.update(x, pass)
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let update = kron(&self.first.matrix(pass)?, &self.second.matrix(pass)?)?;
        Ok(Merge::Exact(
            ops::add_scaled(weight, &update, self.scale)?.into(),
        ))
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let ((b1, a1), (b2, a2)) = (self.first.parts()?, self.second.parts()?);
        // A damaged file may speak of a weight that no memory holds.
        let sizes = [(&a1, &a2), (&b1, &b2)]
            .map(|(one, two)| one.elem_count().checked_mul(two.elem_count()));
        if sizes
            .iter()
            .any(|size| size.is_none_or(|size| size > LARGEST))
        {
            return Ok(None);
        }
        Ok(Some(LowRank {
            a: kron(&a1, &a2)?,
            b: kron(&b1, &b2)?,
            scale: self.scale,
            exact: true,
        }))
    }
}
