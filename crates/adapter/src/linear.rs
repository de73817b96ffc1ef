//! The parts of a model: what is frozen, what adapters add, and what they train in its place.

use crate::adapter::{Adapter, Merge, Merged};
use crate::{Error, Pass, Result, Selection, Tokens};
use candle_core::{DType, Device, Tensor};
use lowrank_frozen::{Compute, FrozenEmbedding, FrozenLinear};
use lowrank_ops::{self as ops, Param};
use std::sync::Arc;

/// The weight of a norm or an embedding, and what adapters train in its place (`modules_to_save`, bias modes, full
/// training).
#[derive(Debug)]
pub struct Weight {
    name: String,
    base: Base,
    trained: Vec<Param>,
}

#[derive(Debug)]
enum Base {
    Dense(Tensor),
    /// Rows of it are looked up in the form it is held in.
    Table(FrozenEmbedding),
}

impl Weight {
    /// `name` is the key in the checkpoint, `model.norm.weight`.
    pub fn new(name: impl Into<String>, base: Tensor) -> Self {
        Self::of(name.into(), Base::Dense(base.detach()))
    }

    fn of(name: String, base: Base) -> Self {
        Self {
            name,
            base,
            trained: Vec::new(),
        }
    }

    /// The key in the checkpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The base model's value in [`Self::dtype`]; a copy if it is packed.
    ///
    /// # Errors
    /// If it cannot be made dense.
    pub fn base(&self) -> Result<Tensor> {
        match &self.base {
            Base::Dense(base) => Ok(base.clone()),
            Base::Table(table) => Ok(table.weight()?),
        }
    }

    /// The dtype that the base is computed with in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.base {
            Base::Dense(base) => base.dtype(),
            Base::Table(table) => table.dtype(),
        }
    }

    /// How many numbers the base model's value has.
    #[must_use]
    pub fn elem_count(&self) -> usize {
        match &self.base {
            Base::Dense(base) => base.elem_count(),
            Base::Table(table) => table.dims().0 * table.dims().1,
        }
    }

    /// Bytes of the base model's value in memory, in the form it is held in.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.base {
            Base::Dense(base) => base.elem_count() * base.dtype().size_in_bytes(),
            Base::Table(table) => table.bytes(),
        }
    }

    /// What this pass uses: the replacement of the selected adapter, else the base.
    ///
    /// # Errors
    /// If a replacement is selected together with other adapters, or the base cannot be made dense.
    pub fn get(&self, pass: &Pass) -> Result<Tensor> {
        match self.replacement(pass)? {
            Some(value) => Ok(value),
            None => self.base(),
        }
    }

    fn replacement(&self, pass: &Pass) -> Result<Option<Tensor>> {
        let found = replacement(&self.name, &self.trained, pass.selection())?;
        Ok(found.map(|param| param.get(pass)))
    }

    /// True if an adapter of this selection trains another value in its place.
    #[must_use]
    pub fn is_changed_by(&self, selection: &Selection) -> bool {
        selection.iter().any(|(name, _)| {
            self.trained
                .iter()
                .any(|param| &*param.info().owner == name)
        })
    }

    pub(crate) fn move_to(&mut self, device: &Device) -> Result<()> {
        self.base = match &self.base {
            Base::Dense(base) => Base::Dense(base.to_device(device)?),
            Base::Table(table) => Base::Table(table.to_device(device)?),
        };
        Ok(())
    }

    /// The linear layer that shares the table, hidden -> vocab.
    pub(crate) fn head(&self) -> Result<FrozenLinear> {
        Ok(match &self.base {
            Base::Dense(base) => FrozenLinear::new(base.clone(), None)?,
            Base::Table(table) => table.head(),
        })
    }

    pub(crate) fn train(&mut self, param: Param) {
        self.trained.push(param);
    }

    /// The base becomes an alias of the parameter, so that the weight is held once (full training).
    pub(crate) fn train_base(&mut self, param: Param) {
        self.base = Base::Dense(param.value());
        self.train(param);
    }

    pub(crate) fn remove(&mut self, owner: &str) {
        self.trained.retain(|param| &*param.info().owner != owner);
    }
}

fn replacement<'a>(
    name: &str,
    trained: &'a [Param],
    selection: &Selection,
) -> Result<Option<&'a Param>> {
    let mut found = None;
    for (owner, weight) in selection.iter() {
        if let Some(param) = trained.iter().find(|param| &*param.info().owner == owner) {
            #[expect(clippy::float_cmp, reason = "1.0 is what `Selection::one` stores")]
            if selection.iter().count() != 1 || weight != 1.0 {
                return Err(Error::Replaced {
                    name: name.to_owned(),
                    selection: format!("{selection:?}"),
                });
            }
            found = Some(param);
        }
    }
    Ok(found)
}

/// A linear layer of the model: one frozen base and any number of named adapters.
#[derive(Debug)]
pub struct Linear {
    path: String,
    tied_to: Option<String>,
    base: FrozenLinear,
    trained_weight: Vec<Param>,
    trained_bias: Vec<Param>,
    adapters: Vec<(Arc<str>, Box<dyn Adapter>)>,
}

impl Linear {
    /// `path` is the module's Hugging Face path.
    pub fn new(path: impl Into<String>, base: FrozenLinear) -> Self {
        Self {
            path: path.into(),
            tied_to: None,
            base,
            trained_weight: Vec::new(),
            trained_bias: Vec::new(),
            adapters: Vec::new(),
        }
    }

    /// A layer whose weight is the embedding's at `embedding` (a tied head): it is not stored under its own name.
    pub fn tied(path: impl Into<String>, base: FrozenLinear, embedding: impl Into<String>) -> Self {
        Self {
            tied_to: Some(embedding.into()),
            ..Self::new(path, base)
        }
    }

    /// The module's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of the embedding whose weight this is, if it is tied.
    #[must_use]
    pub fn tied_to(&self) -> Option<&str> {
        self.tied_to.as_deref()
    }

    /// The frozen layer.
    #[must_use]
    pub fn base(&self) -> &FrozenLinear {
        &self.base
    }

    /// Chooses what the frozen layer's products are computed in.
    pub fn set_compute(&mut self, compute: Compute) {
        self.base = self.base.clone().with_compute(compute);
    }

    /// The layer on a device, its weight being that of `shared` if it is tied to a table that lies there.
    pub(crate) fn move_to(&mut self, device: &Device, shared: Option<&FrozenLinear>) -> Result<()> {
        if !(self.adapters.is_empty()
            && self.trained_weight.is_empty()
            && self.trained_bias.is_empty())
        {
            return Err(Error::Other(format!(
                "`{}` has adapters: a model is moved before they are attached",
                self.path
            )));
        }
        self.base = match shared {
            None => self.base.to_device(device)?,
            Some(shared) => {
                let bias = self.base.bias().map(|bias| bias.to_device(device));
                let base = shared.with_bias(bias.transpose()?);
                base.with_compute(self.base.compute())
            }
        };
        Ok(())
    }

    /// The adapter of that name, if it has one here.
    #[must_use]
    pub fn adapter(&self, name: &str) -> Option<&dyn Adapter> {
        self.adapters
            .iter()
            .find(|(owner, _)| &**owner == name)
            .map(|(_, adapter)| &**adapter)
    }

    /// `x`: (.., n_in) -> (.., n_out), through the adapters that the pass selects.
    ///
    /// # Errors
    /// Any error below, with the module's path.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let checked = |pass: &mut Pass| {
            let y = self.adapted(x, pass)?;
            pass.check(&y)?;
            Ok(y)
        };
        checked(pass).map_err(|error: Error| error.at(&self.path))
    }

    /// The cross-entropy of the layer's outputs with one target a row: `x` `[targets, n_in]` -> `[targets]`, with labels
    /// smoothed as the pass says. Where the pass
    /// changes nothing here, the logits of all rows never exist at once.
    ///
    /// # Errors
    /// Any error below, with the module's path.
    pub fn cross_entropy(&self, x: &Tensor, targets: &[u32], pass: &mut Pass) -> Result<Tensor> {
        if self.is_changed_by(pass.selection()) {
            let logits = self.forward(x, pass)?;
            return pass.cross_entropy(&logits, targets);
        }
        let checked = |pass: &mut Pass| {
            let smoothing = pass.label_smoothing();
            let losses = self.base.smoothed_cross_entropy(x, targets, smoothing)?;
            pass.check(&losses)?;
            Ok(losses)
        };
        checked(pass).map_err(|error: Error| error.at(&self.path))
    }

    fn adapted(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let selection = pass.selection().clone();
        let bias =
            replacement(&self.path, &self.trained_bias, &selection)?.map(|param| param.get(pass));
        if let Some(weight) = replacement(&self.path, &self.trained_weight, &selection)? {
            let bias = bias.as_ref().or(self.base.bias());
            return Ok(ops::linear(x, &weight.get(pass), bias)?);
        }
        let rebiased;
        let base = match bias {
            Some(bias) => {
                rebiased = self.base.with_bias(Some(bias));
                &rebiased
            }
            None => &self.base,
        };
        let mut active = selection
            .iter()
            .filter_map(|(name, weight)| Some((self.adapter(name)?, weight)));
        match (active.next(), active.next()) {
            (None, _) => Ok(base.forward(x)?),
            // 1.0 is what `Selection::one` stores.
            (Some((adapter, 1.0)), None) => adapter.forward(base, x, pass),
            (first, second) => {
                let y_base = base.forward(x)?;
                let mut y = y_base.clone();
                for (adapter, weight) in first.into_iter().chain(second).chain(active) {
                    y = (y + (adapter.delta(base, x, &y_base, pass)? * weight)?)?;
                }
                Ok(y)
            }
        }
    }

    /// The weight and bias that a stand-alone model would have, with the pass's selection folded in; asked for in
    /// site order. Several adapters add their weighted changes.
    ///
    /// # Errors
    /// If the base's weight cannot be made dense, or an adapter fails.
    pub fn merge(&self, pass: &mut Pass) -> Result<Merge> {
        self.merged(pass).map_err(|error| error.at(&self.path))
    }

    fn merged(&self, pass: &mut Pass) -> Result<Merge> {
        let selection = pass.selection().clone();
        let bias = replacement(&self.path, &self.trained_bias, &selection)?.map(Param::value);
        let bias = bias.or_else(|| self.base.bias().cloned());
        if let Some(weight) = replacement(&self.path, &self.trained_weight, &selection)? {
            return Ok(Merge::Exact(Merged {
                weight: weight.value(),
                bias,
            }));
        }
        let weight = self.base.weight()?;
        let active: Vec<_> = selection
            .iter()
            .filter_map(|(name, factor)| Some((self.adapter(name)?, factor)))
            .collect();
        #[expect(clippy::float_cmp, reason = "1.0 is what `Selection::one` stores")]
        if let [(adapter, factor)] = active[..]
            && factor == 1.0
        {
            return Ok(match adapter.merge(&weight, bias.as_ref(), pass)? {
                Merge::Exact(merged) => Merge::Exact(merged.or_bias(bias)),
                Merge::Approximate(merged) => Merge::Approximate(merged.or_bias(bias)),
                Merge::InputDependent { why } => Merge::InputDependent { why },
            });
        }
        let mut sum = Merged {
            weight: weight.clone(),
            bias: bias.clone(),
        };
        let mut exact = true;
        for (adapter, factor) in active {
            let one = match adapter.merge(&weight, bias.as_ref(), pass)? {
                Merge::Exact(one) => one,
                Merge::Approximate(one) => {
                    exact = false;
                    one
                }
                Merge::InputDependent { why } => return Ok(Merge::InputDependent { why }),
            };
            sum.weight = ops::add_scaled(&sum.weight, &(one.weight - &weight)?, factor)?;
            sum.bias = match (sum.bias, one.bias.or_else(|| bias.clone()), &bias) {
                (Some(sum), Some(one), Some(base)) => {
                    Some(ops::add_scaled(&sum, &(one - base)?, factor)?)
                }
                (_, Some(one), None) => Some((one * factor)?),
                (sum, ..) => sum,
            };
        }
        Ok(if exact {
            Merge::Exact(sum)
        } else {
            Merge::Approximate(sum)
        })
    }

    /// True if an adapter of this selection changes the layer, or trains its weight or bias.
    #[must_use]
    pub fn is_changed_by(&self, selection: &Selection) -> bool {
        let trained = || self.trained_weight.iter().chain(&self.trained_bias);
        selection.iter().any(|(name, _)| {
            self.adapter(name).is_some() || trained().any(|param| &*param.info().owner == name)
        })
    }

    /// True if this selection trains the layer's weight together with the embedding's it is tied to (full training).
    #[must_use]
    pub fn trains_tied(&self, selection: &Selection) -> bool {
        let Some(home) = self.tied_to() else {
            return false;
        };
        let shared = format!("{home}.weight");
        selection.iter().any(|(name, _)| {
            self.trained_weight
                .iter()
                .any(|param| &*param.info().owner == name && param.name() == shared)
        })
    }

    pub(crate) fn attach(&mut self, name: &Arc<str>, adapter: Box<dyn Adapter>) {
        self.adapters.push((Arc::clone(name), adapter));
    }

    pub(crate) fn train_weight(&mut self, param: Param) {
        self.trained_weight.push(param);
    }

    pub(crate) fn train_bias(&mut self, param: Param) {
        self.trained_bias.push(param);
    }

    /// Replaces the base by aliases of trained parameters, so that weights are held once (full training).
    pub(crate) fn train_base(&mut self, weight: Param, bias: Option<Param>) -> Result<()> {
        self.base = FrozenLinear::new(weight.value(), bias.as_ref().map(Param::value))?;
        self.train_weight(weight);
        self.trained_bias.extend(bias);
        Ok(())
    }

    pub(crate) fn remove(&mut self, owner: &str) {
        self.adapters.retain(|(name, _)| &**name != owner);
        self.trained_weight
            .retain(|param| &*param.info().owner != owner);
        self.trained_bias
            .retain(|param| &*param.info().owner != owner);
    }
}

/// An embedding table.
#[derive(Debug)]
pub struct Embedding {
    path: String,
    /// `[vocab, hidden]`.
    pub weight: Weight,
}

impl Embedding {
    /// `table`: `[vocab, hidden]`; `path` is the module's.
    pub fn new(path: impl Into<String>, table: Tensor) -> Self {
        Self::of(path.into(), Base::Dense(table.detach()))
    }

    /// As [`Self::new`], with a table that stays in the form it is held in.
    pub fn frozen(path: impl Into<String>, table: FrozenEmbedding) -> Self {
        Self::of(path.into(), Base::Table(table))
    }

    fn of(path: String, table: Base) -> Self {
        Self {
            weight: Weight::of(format!("{path}.weight"), table),
            path,
        }
    }

    /// The module's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `ids` (row-major `[rows, length]`) -> `[rows, length, hidden]`.
    ///
    /// # Errors
    /// If an id is not in the table.
    pub fn forward(&self, ids: &[u32], shape: (usize, usize), pass: &Pass) -> Result<Tensor> {
        let rows = match (self.weight.replacement(pass)?, &self.weight.base) {
            (None, Base::Table(table)) => table.forward(ids, shape).map_err(Error::from),
            (None, Base::Dense(table)) => ops::embedding(table, ids, shape).map_err(Error::from),
            (Some(table), _) => ops::embedding(&table, ids, shape).map_err(Error::from),
        };
        rows.map_err(|error| error.at(&self.path))
    }

    /// The tokens of a batch, with the noise that the pass puts on them in training: `[rows, length, hidden]`.
    ///
    /// # Errors
    /// If a token is not in the table.
    pub fn forward_tokens(&self, tokens: &Tokens, pass: &mut Pass) -> Result<Tensor> {
        let embedded = self.forward(&tokens.ids, (tokens.rows, tokens.length), pass)?;
        let noised = pass.with_noise(&embedded);
        noised.map_err(|error| error.at(&self.path))
    }
}

/// The scale (and shift) of a norm.
#[derive(Debug)]
pub struct Norm {
    path: String,
    /// `[hidden]`.
    pub weight: Weight,
    /// `[hidden]`, for norms that shift.
    pub bias: Option<Weight>,
    eps: f64,
}

impl Norm {
    /// A norm with a scale only; `path` is the module's.
    pub fn rms(path: impl Into<String>, weight: Tensor, eps: f64) -> Self {
        let path = path.into();
        Self {
            weight: Weight::new(format!("{path}.weight"), weight),
            bias: None,
            eps,
            path,
        }
    }

    /// A norm that shifts too; `path` is the module's.
    pub fn layer(path: impl Into<String>, weight: Tensor, bias: Tensor, eps: f64) -> Self {
        let path = path.into();
        Self {
            bias: Some(Weight::new(format!("{path}.bias"), bias)),
            ..Self::rms(path, weight, eps)
        }
    }

    /// The module's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `x`: (.., hidden) -> the same shape: without its mean, divided by its deviation, scaled and shifted.
    ///
    /// # Errors
    /// If the last dimension is not the weight's, or this is a norm that does not shift.
    pub fn forward_layer(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let normed = || {
            let Some(bias) = &self.bias else {
                return Err(Error::Other(
                    "a norm without a shift is no layer norm".into(),
                ));
            };
            let (weight, bias) = (self.weight.get(pass)?, bias.get(pass)?);
            Ok(ops::layer_norm(x, &weight, &bias, self.eps)?)
        };
        normed().map_err(|error| error.at(&self.path))
    }

    /// (x + y, and [`Self::forward_rms`] of that sum): a residual and the norm after it.
    ///
    /// # Errors
    /// As [`Self::forward_rms`], and if `y` has another shape than `x`.
    pub fn add_forward_rms(&self, x: &Tensor, y: &Tensor, pass: &Pass) -> Result<(Tensor, Tensor)> {
        let weight = self.weight.get(pass)?;
        ops::add_rms_norm(x, y, &weight, self.eps)
            .map_err(|error| Error::from(error).at(&self.path))
    }

    /// `x`: (.., hidden) -> the same shape, divided by its root mean square and scaled.
    ///
    /// # Errors
    /// If the last dimension is not the weight's.
    pub fn forward_rms(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let weight = self.weight.get(pass)?;
        ops::rms_norm(x, &weight, self.eps).map_err(|error| Error::from(error).at(&self.path))
    }
}
