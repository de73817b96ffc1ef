//! Linear layers and nothing else, for the worked examples of a paper.

use candle_core::{Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, AnyFamily, Ask, Attached, Batch, Error, KvCache, Linear, Merge, Model, Part,
    Pass, Result, Selection, Source, Start, attach,
};
use lowrank_frozen::FrozenLinear;
use serde_json::Value;

/// The adapter's name.
pub const ADAPTER: &str = "default";

/// A model that is some linear layers and cannot run as a whole.
#[derive(Debug)]
pub struct Layers(pub Vec<Linear>);

impl Layers {
    /// Layers by path, whose weights `[n_out, n_in]` are given.
    ///
    /// # Errors
    /// If a tensor is no weight.
    pub fn new<'a>(weights: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Self> {
        let layer = |(path, weight)| Ok(Linear::new(path, FrozenLinear::new(weight, None)?));
        Ok(Self(weights.into_iter().map(layer).collect::<Result<_>>()?))
    }

    /// Attaches an adapter with these keys of a run file, as if they had been read from a folder or not.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn adapt(
        &mut self,
        family: &'static dyn AnyFamily,
        keys: &Value,
        start: Start,
    ) -> Result<Attached> {
        let keys = keys.as_object().cloned().unwrap_or_default();
        let config = AdapterConfig::parse(family, &keys, Source::RunFile)?;
        attach(self, ADAPTER, &config, start)
    }

    /// The tensors of a file, by their whole names.
    pub fn saved<'a>(tensors: impl IntoIterator<Item = (&'a str, Tensor)>) -> Start {
        let named = |(name, tensor): (&str, Tensor)| (name.to_owned(), tensor);
        Start::Saved {
            tensors: tensors.into_iter().map(named).collect(),
            seed: 1,
        }
    }

    /// What a layer does to `x` in evaluation mode.
    ///
    /// # Errors
    /// If it refuses.
    pub fn output(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let mut pass = Pass::evaluation(Selection::one(ADAPTER));
        self.0[layer].forward(x, &mut pass)
    }

    /// The weight `[n_out, n_in]` of a layer with its adapter folded in, which must be exact.
    ///
    /// # Errors
    /// If it is not.
    pub fn merged(&self, layer: usize) -> Result<Tensor> {
        let mut pass = Pass::evaluation(Selection::one(ADAPTER));
        match self.0[layer].merge(&mut pass)? {
            Merge::Exact(merged) => Ok(merged.weight),
            other => Err(Error::Other(format!("expected an exact merge: {other:?}"))),
        }
    }
}

impl Model for Layers {
    fn model_type(&self) -> &str {
        "llama"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        self.0
            .iter_mut()
            .for_each(|layer| visit(Part::Linear(layer)));
    }

    fn embed(&self, _: &Batch, _: &mut Pass) -> Result<Tensor> {
        Err(Error::Other("these layers are no model".into()))
    }

    fn blocks(&self) -> usize {
        0
    }

    fn block(
        &self,
        _: usize,
        h: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        _: &mut Pass,
    ) -> Result<Tensor> {
        Ok(h.clone())
    }

    fn head(&self, h: &Tensor, _: &Batch, _: &Ask, _: &mut Pass) -> Result<Tensor> {
        Ok(h.clone())
    }
}

/// A matrix in f64.
///
/// # Errors
/// If rows differ in length.
pub fn matrix(rows: &[&[f64]]) -> Result<Tensor> {
    let columns = rows.first().map_or(0, |row| row.len());
    let flat = rows.concat();
    Ok(Tensor::from_vec(flat, (rows.len(), columns), &Device::Cpu)?)
}

/// The largest absolute difference of two f64 tensors; an error if their shapes differ.
///
/// # Errors
/// If they cannot be compared.
pub fn gap(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar()?)
}
