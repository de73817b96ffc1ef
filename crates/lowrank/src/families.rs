//! What every family can do, found out by doing it.
//!
//! Each family is attached with its default configuration to a small LLaMA in memory, moved away from its start, and
//! asked: which storages of the base it runs on, what it merges to, whether it is a plain low-rank update.

mod drawn;

use crate::Result;
use candle_core::{DType, Tensor};
use drawn::{Drawn, Encoded, config, normal};
use lowrank_adapter::target::Targets;
use lowrank_adapter::{
    AdapterConfig, AnyFamily, Batch, Kind, Linear, LowRank, Memory, Merge, Model, Param, Part,
    Pass, Selection, Share, Source, Start, Tokens, attach, sweep, train_all,
};
use lowrank_frozen::{BlockType, Encoding, Weights};
use lowrank_models::Head;
use lowrank_models::Precision;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_registry::FAMILIES;
use serde::Serialize;
use serde_json::Map;

/// The family that trains every weight; it is no adapter.
pub(crate) const FULL: &str = "full";

const NAME: &str = "default";
const SEED: u64 = 11;

/// A row of the matrix; keys as the binary prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// What run files call it.
    pub name: &'static str,
    /// The tag in adapter files; none if there are none.
    pub peft_type: Option<String>,
    /// The storages of frozen weights that it trains on: `f32`, `bf16`, `q4_1`.
    pub bases: Vec<&'static str>,
    /// What folding it into the base gives.
    pub merges: Merges,
    /// How it becomes plain LoRA.
    pub to_lora: ToLora,
    /// Whether it switches ranks on and off.
    pub gated: bool,
}

/// What folding gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Merges {
    /// Weights equal to the adapted layers.
    Exact,
    /// Weights near to the adapted layers.
    Approximate,
    /// Nothing: the update depends on the input.
    No,
}

/// How an adapter becomes a plain low-rank update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ToLora {
    /// It is one.
    Exact,
    /// By decomposing what it merges to.
    Svd,
    /// Not at all.
    No,
}

/// Every choice of `family =` in a run file: the adapters, sorted by name, and full training.
///
/// # Errors
/// If a family does not run on an f32 base.
pub fn families() -> Result<Vec<Capabilities>> {
    let drawn = Drawn::new()?;
    let adapters = FAMILIES.iter().map(|family| Method::Adapter(*family));
    let methods = adapters.chain([Method::Full]);
    methods.map(|method| probe(method, &drawn)).collect()
}

#[derive(Clone, Copy)]
enum Method {
    Adapter(&'static dyn AnyFamily),
    Full,
}

fn probe(method: Method, drawn: &Drawn) -> Result<Capabilities> {
    let (name, peft_type) = match method {
        Method::Adapter(family) => (family.name(), Some(family.peft_type())),
        Method::Full => (FULL, None),
    };
    let (mut model, params, gated) = prepare(method, drawn, DType::F32.into())?;
    // Said here, since a family that does not run at all has no row.
    train_once(model.as_ref(), &params)?;
    let (merges, to_lora) = fold(model.as_mut())?;
    let plain = [DType::F32, DType::F64, DType::F16, DType::BF16].map(Encoding::Plain);
    let encodings = plain
        .into_iter()
        .chain(BlockType::ALL.map(Encoding::Blocks))
        .chain([Encoding::Nf4 { double: true }]);
    let runs = |encoding: &Encoding| {
        prepare(method, drawn, *encoding)
            .and_then(|(model, params, _)| train_once(model.as_ref(), &params))
            .is_ok()
    };
    Ok(Capabilities {
        name,
        peft_type,
        bases: encodings.filter(runs).map(Encoding::name).collect(),
        merges,
        to_lora,
        gated,
    })
}

/// A model held in `encoding` with every trained tensor away from its start, these tensors, and whether ranks are gated.
fn prepare(
    method: Method,
    drawn: &Drawn,
    encoding: Encoding,
) -> Result<(Box<dyn Model>, Vec<Param>, bool)> {
    let weights = Encoded(drawn, encoding);
    let origin = weights.origin();
    let mut model = lowrank_models::load(
        &config(),
        &origin,
        &weights,
        Precision::AsStored,
        Head::Language,
    )?;
    let (params, gated) = match method {
        Method::Adapter(family) => {
            let mut config = AdapterConfig::parse(family, &Map::new(), Source::RunFile)?;
            config.common.target_modules = Some(Targets::Pattern("all-linear".into()));
            let attached = attach(model.as_mut(), NAME, &config, Start::Seed(SEED))?;
            // A method may also set components to 0 in place, without a gate in the forward pass.
            let controller = attached.controller.as_ref();
            let budget = controller.and_then(|controller| controller.budget());
            let gated = !attached.gates.is_empty() || budget.is_some();
            (attached.params.clone(), gated)
        }
        Method::Full => (train_all(model.as_mut(), NAME)?, false),
    };
    let trained = |param: &Param| param.info().kind == Kind::Trained;
    let params: Vec<Param> = params.into_iter().filter(trained).collect();
    params.iter().try_for_each(move_away)?;
    Ok((model, params, gated))
}

/// A start may be a special case: B is 0.
fn move_away(param: &Param) -> lowrank_adapter::Result<()> {
    let noise = normal(param.name(), param.shape().dims(), 0.05)?;
    Ok(param.set(&(param.snapshot()? + noise.to_dtype(param.dtype())?)?)?)
}

/// One micro-batch forward and backward: finite losses, and a finite gradient for every tensor.
fn train_once(model: &dyn Model, params: &[Param]) -> Result<()> {
    let (rows, length) = (2, 5);
    let ids: Vec<u32> = (0..rows * length).map(|at| (7 * at + 3) as u32).collect();
    let labels = ids.iter().map(|&id| id as i32).collect();
    let positions = (0..rows).flat_map(|_| 0..length as u32).collect();
    let tokens = Tokens {
        rows,
        length,
        segments: vec![1; ids.len()],
        positions,
        ids,
    };
    let batch = Batch::new(tokens, labels)?;
    let mut pass = Pass::training_pass(
        Selection::one(NAME),
        Key::new(SEED, Purpose::Dropout).step(1),
    );
    let share = Share {
        token: 1.0 / batch.supervised() as f64,
        auxiliary: 1.0,
    };
    let swept = sweep(model, &batch, &mut pass, params, share, Memory::Keep)?;
    let grads = params.iter().map(|param| swept.grads.get(param));
    for tensor in grads.chain([Some(&swept.losses)]) {
        if !tensor.is_some_and(|tensor| ops::all_finite(tensor).unwrap_or(false)) {
            return Err(lowrank_adapter::Error::NotFinite.into());
        }
    }
    Ok(())
}

/// What the adapted layers merge to, all of them together.
fn fold(model: &mut dyn Model) -> lowrank_adapter::Result<(Merges, ToLora)> {
    let mut pass = Pass::evaluation(Selection::one(NAME));
    let (mut merges, mut plain, mut adapters) = (Merges::Exact, true, 0);
    let mut failed = None;
    model.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part
            && failed.is_none()
        {
            adapters += usize::from(linear.adapter(NAME).is_some());
            match fold_one(linear, &mut pass) {
                Ok((found, low_rank)) => {
                    merges = worse(merges, found);
                    plain &= low_rank;
                }
                Err(error) => failed = Some(error),
            }
        }
    });
    let to_lora = match (merges, plain) {
        // Without an adapter there is nothing to export.
        _ if adapters == 0 => ToLora::No,
        (_, true) => ToLora::Exact,
        (Merges::No, false) => ToLora::No,
        (_, false) => ToLora::Svd,
    };
    failed.map_or(Ok((merges, to_lora)), Err)
}

/// What a layer merges to, and whether that is the low-rank update that its adapter states.
fn fold_one(linear: &Linear, pass: &mut Pass) -> lowrank_adapter::Result<(Merges, bool)> {
    let merge = linear.merge(pass)?;
    let low_rank = match linear.adapter(NAME) {
        Some(adapter) => adapter.low_rank()?,
        // A layer that is not adapted takes nothing away.
        None => return Ok((kind(&merge), true)),
    };
    let (Merge::Exact(merged) | Merge::Approximate(merged), Some(low_rank)) = (&merge, low_rank)
    else {
        return Ok((kind(&merge), false));
    };
    let LowRank { a, b, scale, exact } = low_rank;
    let expected = ops::add_scaled(&linear.base().weight()?, &b.matmul(&a)?, scale)?;
    let largest = |tensor: &Tensor| tensor.abs()?.max_all()?.to_scalar::<f32>();
    let gap = largest(&(&merged.weight - &expected)?)?;
    let equal = exact && merged.bias.is_none() && gap <= 1e-5 * largest(&expected)?;
    Ok((kind(&merge), equal))
}

fn kind(merge: &Merge) -> Merges {
    match merge {
        Merge::Exact(_) => Merges::Exact,
        Merge::Approximate(_) => Merges::Approximate,
        Merge::InputDependent { .. } => Merges::No,
    }
}

fn worse(a: Merges, b: Merges) -> Merges {
    match (a, b) {
        (Merges::No, _) | (_, Merges::No) => Merges::No,
        (Merges::Approximate, _) | (_, Merges::Approximate) => Merges::Approximate,
        (Merges::Exact, Merges::Exact) => Merges::Exact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowrank_adapter::{Adapter, Attach, Attachment, Family, Spec};
    use lowrank_conformance::families::{Chained, Gated, InputDependent};
    use lowrank_frozen::FrozenLinear;
    use serde_json::Value;
    use std::collections::BTreeMap;

    fn check(
        family: &'static dyn AnyFamily,
        bases: usize,
        merges: Merges,
        to_lora: ToLora,
        gated: bool,
    ) -> Result<()> {
        let found = probe(Method::Adapter(family), &Drawn::new()?)?;
        assert_eq!(found.bases.len(), bases, "{found:?}");
        let row = (found.merges, found.to_lora, found.gated);
        assert_eq!(row, (merges, to_lora, gated), "{found:?}");
        Ok(())
    }

    #[test]
    fn families_are_seen_through() -> Result<()> {
        let all = 5 + BlockType::ALL.len();
        check(&Chained, all, Merges::Exact, ToLora::Svd, false)?;
        check(&Gated, all, Merges::Exact, ToLora::Svd, true)?;
        check(&InputDependent, all, Merges::No, ToLora::No, false)?;
        // f32 and f64 alone, and what it says of its update is not what it merges to.
        check(&Odd, 2, Merges::Approximate, ToLora::Svd, false)
    }

    /// y = W x + b x, with everything wrong that a family can have.
    struct Odd;

    #[derive(Debug)]
    struct Layer(Param);

    impl Family for Odd {
        type Config = BTreeMap<String, Value>;
        const NAME: &'static str = "odd";

        fn attach(
            &self,
            _: &Self::Config,
            cx: &mut Attach<'_>,
        ) -> lowrank_adapter::Result<Attachment> {
            Attachment::per_site(cx, |cx, site| {
                let base = &cx.site(site).base;
                if !matches!(
                    base.encoding(),
                    Some(Encoding::Plain(DType::F32 | DType::F64))
                ) {
                    return Err(lowrank_adapter::Error::Other("not on this base".into()));
                }
                let shape = base.dims();
                Ok(Box::new(Layer(
                    cx.declare(site, Spec::new("odd_b", shape))?,
                )))
            })
        }
    }

    impl Adapter for Layer {
        fn forward(
            &self,
            base: &FrozenLinear,
            x: &Tensor,
            pass: &mut Pass,
        ) -> lowrank_adapter::Result<Tensor> {
            Ok((base.forward(x)? + ops::linear(x, &self.0.get(pass), None)?)?)
        }

        fn merge(
            &self,
            weight: &Tensor,
            _: Option<&Tensor>,
            _: &mut Pass,
        ) -> lowrank_adapter::Result<Merge> {
            Ok(Merge::Approximate((weight + self.0.value())?.into()))
        }

        fn low_rank(&self) -> lowrank_adapter::Result<Option<LowRank>> {
            let b = self.0.value();
            let (_, n_in) = b.dims2()?;
            let a = Tensor::eye(n_in, b.dtype(), b.device())?;
            Ok(Some(LowRank {
                a,
                b,
                scale: 1.5,
                exact: true,
            }))
        }
    }
}
