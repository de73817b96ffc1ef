//! One family under one configuration, and what most laws do with it.

use crate::compare::{Verdict, require};
use crate::toy::{Head, Toy, batch};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, AnyFamily, Ask, Attached, Batch, Kind, KvCache, Linear, Model, Param, Part,
    Pass, Selection, Share, Source, Start, attach, run,
};
use lowrank_frozen::Encoding;
use lowrank_ops::rng::{Key, Purpose, Stream};
use serde_json::{Map, Value};

/// The adapter's name in most laws.
pub(crate) const NAME: &str = "first";

/// The second adapter's name, where there are two.
pub(crate) const OTHER: &str = "second";

/// The seed of the adapter's start in most laws.
pub(crate) const SEED: u64 = 5;

/// A family under a configuration.
pub(crate) struct Case {
    pub keys: Map<String, Value>,
    pub config: AdapterConfig,
}

impl Case {
    pub fn new(family: &'static dyn AnyFamily, keys: &Value) -> Verdict<Self> {
        let mut keys = keys.as_object().cloned().unwrap_or_default();
        keys.entry("target_modules")
            .or_insert_with(|| "all-linear".into());
        let config = AdapterConfig::parse(family, &keys, Source::RunFile)?;
        Ok(Self { keys, config })
    }

    /// Attaches a fresh adapter.
    pub fn attach(&self, toy: &mut Toy, name: &str, seed: u64) -> Verdict<Attached> {
        Ok(attach(toy, name, &self.config, Start::Seed(seed))?)
    }

    /// A model with a fresh adapter.
    pub fn fresh(&self, dtype: DType) -> Verdict<(Toy, Attached)> {
        let mut toy = Toy::new(dtype, Head::Own)?;
        let attached = self.attach(&mut toy, NAME, SEED)?;
        Ok((toy, attached))
    }

    /// A model with an adapter that has left its start.
    pub fn trained(&self, encoding: impl Into<Encoding>) -> Verdict<(Toy, Attached)> {
        self.trained_on(Toy::new(encoding, Head::Own)?)
    }

    /// This model with an adapter that has left its start.
    pub fn trained_on(&self, mut toy: Toy) -> Verdict<(Toy, Attached)> {
        let attached = self.attach(&mut toy, NAME, SEED)?;
        randomise(&attached.params, 1)?;
        Ok((toy, attached))
    }

    /// The same without what trains in place of base weights, which allows no second adapter.
    pub fn additive(&self) -> Self {
        let mut config = self.config.clone();
        config.common.modules_to_save = None;
        config.common.bias = "none".into();
        Self {
            keys: self.keys.clone(),
            config,
        }
    }
}

/// Moves every trained tensor away from its start; tensors of other kinds keep their meaning.
pub(crate) fn randomise(params: &[Param], salt: u64) -> Verdict {
    for param in params
        .iter()
        .filter(|param| param.info().kind == Kind::Trained)
    {
        let noise = noise(param, salt, 0.3)?;
        param.set(&(param.snapshot()? + noise)?)?;
    }
    Ok(())
}

/// Normal numbers of the parameter's shape, keyed by its name.
pub(crate) fn noise(param: &Param, salt: u64, std: f64) -> Verdict<Tensor> {
    let mut stream = stream(param.name(), salt);
    let values: Vec<f64> = (0..param.elem_count())
        .map(|_| std * stream.normal())
        .collect();
    let noise = Tensor::from_vec(values, param.shape(), &Device::Cpu)?;
    Ok(noise.to_dtype(param.dtype())?)
}

/// Numbers for a law, keyed by what they are for.
pub(crate) fn stream(what: &str, salt: u64) -> Stream {
    Key::new(salt, Purpose::Test).site(what).stream()
}

/// Three rows: a plain one, a padded one, and a packed one.
pub(crate) fn tokens() -> Verdict<Batch> {
    Ok(batch(3, &[&[6], &[4], &[2, 3]])?)
}

/// A training pass of the only adapter at some place of a run.
pub(crate) fn training() -> Pass {
    let key = Key::new(17, Purpose::Dropout).step(4).micro(1);
    Pass::training_pass(Selection::one(NAME), key)
}

/// How the laws weigh token losses and auxiliary ones.
pub(crate) fn share(batch: &Batch) -> Share {
    Share {
        token: 1.0 / batch.supervised() as f64,
        auxiliary: 0.7,
    }
}

/// Logits at every token that is not padding.
pub(crate) fn logits(toy: &Toy, batch: &Batch, pass: &mut Pass) -> Verdict<Tensor> {
    cached_logits(toy, batch, None, pass)
}

/// The same, after what the cache holds.
pub(crate) fn cached_logits(
    toy: &Toy,
    batch: &Batch,
    kv: Option<&mut KvCache>,
    pass: &mut Pass,
) -> Verdict<Tensor> {
    let segments = (0..).zip(&batch.tokens().segments);
    let real = segments.filter_map(|(at, &segment)| (segment != 0).then_some(at));
    let logits = run(toy, batch, &Ask::Logits(real.collect()), kv, pass)?;
    require(!logits.track_op() || pass.training(), || {
        "the logits of an evaluation carry a graph".into()
    })?;
    Ok(logits)
}

/// [`logits`] of [`tokens`] in evaluation mode.
pub(crate) fn evaluated(toy: &Toy, selection: &Selection) -> Verdict<Tensor> {
    logits(toy, &tokens()?, &mut Pass::evaluation(selection.clone()))
}

/// Shows every linear layer, in the order of the forward pass.
pub(crate) fn walk(toy: &mut Toy, visit: &mut dyn FnMut(&Linear) -> Verdict) -> Verdict {
    let mut verdict = Ok(());
    toy.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part
            && verdict.is_ok()
        {
            verdict = visit(linear);
        }
    });
    verdict
}

/// A random input for a layer, the same at every call.
pub(crate) fn input(linear: &Linear) -> Verdict<Tensor> {
    let (_, n_in) = linear.base().dims();
    let mut stream = stream(linear.path(), 2);
    let values: Vec<f64> = (0..2 * 3 * n_in).map(|_| stream.normal()).collect();
    let x = Tensor::from_vec(values, (2, 3, n_in), &Device::Cpu)?;
    Ok(x.to_dtype(linear.base().dtype())?)
}

/// Every layer's output for its [`input`], in one evaluation pass.
pub(crate) fn outputs(toy: &mut Toy, selection: &Selection) -> Verdict<Vec<(String, Tensor)>> {
    let mut pass = Pass::evaluation(selection.clone());
    let mut all = Vec::new();
    walk(toy, &mut |linear| {
        let y = linear.forward(&input(linear)?, &mut pass)?;
        all.push((linear.path().to_owned(), y));
        Ok(())
    })?;
    Ok(all)
}
