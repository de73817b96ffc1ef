//! The state of one forward pass.

use crate::gate::{GateId, Mask, RankGate};
use crate::model::Tokens;
use crate::site::SiteId;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use lowrank_ops::rng::{Key, Purpose, Stream};
use lowrank_ops::{self as ops, Dropout, Param, Tracking};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which adapters a pass uses: none, one, or several added with weights. Switching costs nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection(Vec<(Arc<str>, f64)>);

impl Selection {
    /// The base model.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// One adapter, as it is.
    pub fn one(name: impl Into<Arc<str>>) -> Self {
        Self(vec![(name.into(), 1.0)])
    }

    /// Several adapters, their updates added with these weights.
    pub fn weighted(adapters: impl IntoIterator<Item = (Arc<str>, f64)>) -> Self {
        Self(adapters.into_iter().collect())
    }

    /// Names and weights, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, weight)| (name.as_ref(), *weight))
    }
}

/// A slot for what one layer leaves to the next; belongs to the adapter that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    pub(crate) owner: Arc<str>,
    pub(crate) index: usize,
}

/// What adapters recorded during a pass, in order: site, name, detached value.
pub type Records = Vec<(SiteId, &'static str, Tensor)>;

/// Masks that a probe asks about.
pub type Masks = BTreeMap<GateId, Tensor>;

/// What layers left to later ones.
pub(crate) type Carries = BTreeMap<Chain, Vec<Tensor>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// No dropout, no graph.
    Evaluate,
    /// Dropout and a graph.
    Train,
}

/// What training blurs, lest rows are learnt by heart. Evaluation never does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Blur {
    /// The share of a label that is spread over all classes, in [0, 1).
    pub label_smoothing: f64,
    /// How strong the noise on embedded tokens is (NEFTune's alpha); 0 = none.
    pub embedding_noise: f64,
}

/// The state of one forward pass; it dies with the pass.
#[derive(Debug)]
pub struct Pass {
    selection: Selection,
    mode: Mode,
    key: Key,
    tokens: Option<Arc<Tokens>>,
    masks: Masks,
    watches: bool,
    blur: Blur,
    pub(crate) noised: bool,
    held: Arc<BTreeSet<Param>>,
    pub(crate) asked: BTreeSet<GateId>,
    pub(crate) carries: Carries,
    pub(crate) losses: Vec<(&'static str, Tensor)>,
    pub(crate) records: Records,
}

impl Pass {
    /// For evaluation: no dropout, no graph.
    #[must_use]
    pub fn evaluation(selection: Selection) -> Self {
        Self::new(selection, Mode::Evaluate, Key::new(0, Purpose::Dropout))
    }

    /// For training the selected adapters: dropout keyed by `key` (seed, step, micro-batch), and a graph.
    #[must_use]
    pub fn training_pass(selection: Selection, key: Key) -> Self {
        Self::new(selection, Mode::Train, key)
    }

    fn new(selection: Selection, mode: Mode, key: Key) -> Self {
        Self {
            selection,
            mode,
            key,
            tokens: None,
            masks: Masks::new(),
            watches: false,
            blur: Blur::default(),
            noised: false,
            held: Arc::default(),
            asked: BTreeSet::new(),
            carries: Carries::new(),
            losses: Vec::new(),
            records: Records::new(),
        }
    }

    /// The same place of the run, with nothing carried, recorded or added yet.
    pub(crate) fn again(&self) -> Self {
        Self {
            tokens: self.tokens.clone(),
            masks: self.masks.clone(),
            watches: self.watches,
            blur: self.blur,
            held: Arc::clone(&self.held),
            ..Self::new(self.selection.clone(), self.mode, self.key)
        }
    }

    /// Asks what the loss would be under these masks, whatever the gates say.
    #[must_use]
    pub fn with_masks(mut self, masks: Masks) -> Self {
        self.masks = masks;
        self
    }

    /// With smoothed labels and noise on embedded tokens, if the pass trains.
    #[must_use]
    pub fn blurred(mut self, blur: Blur) -> Self {
        self.blur = blur;
        self
    }

    /// These tensors are constants to it, though they are declared as trained.
    #[must_use]
    pub fn holding(mut self, held: Arc<BTreeSet<Param>>) -> Self {
        self.held = held;
        self
    }

    /// Stops, with [`Error::NotFinite`] and its path, at the first linear layer whose output is not finite.
    #[must_use]
    pub fn watching(mut self) -> Self {
        self.watches = true;
        self
    }

    pub(crate) fn check(&self, output: &Tensor) -> Result<()> {
        if self.watches && !ops::all_finite(output)? {
            return Err(Error::NotFinite);
        }
        Ok(())
    }

    pub(crate) fn set_tokens(&mut self, tokens: &Arc<Tokens>) {
        self.tokens = Some(Arc::clone(tokens));
    }

    /// Which adapters are used.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// True if dropout applies.
    #[must_use]
    pub fn training(&self) -> bool {
        self.mode == Mode::Train
    }

    /// The loss of every row of `logits` `[targets, classes]`, one target a row, with labels smoothed as this pass says:
    /// `[targets]`.
    ///
    /// # Errors
    /// If the shapes do not fit, or a target is not among the classes.
    pub fn cross_entropy(&self, logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let smoothing = self.label_smoothing();
        Ok(ops::smoothed_cross_entropy(logits, targets, smoothing)?)
    }

    pub(crate) fn label_smoothing(&self) -> f64 {
        match self.mode {
            Mode::Train => self.blur.label_smoothing,
            Mode::Evaluate => 0.0,
        }
    }

    /// Embedded tokens, `[rows, length, hidden]`, with the noise of this pass: NEFTune's, uniform in +-alpha / sqrt(L d)
    /// for a row of L tokens and width d. Padding gets none. L and the draws are those of each row (each segment, if rows
    /// are packed): what a row becomes depends neither on its neighbours nor on padding. transformers divides by the
    /// padded length of the batch instead.
    pub(crate) fn with_noise(&mut self, embedded: &Tensor) -> Result<Tensor> {
        let alpha = self.blur.embedding_noise;
        if alpha == 0.0 || !self.training() {
            return Ok(embedded.clone());
        }
        let tokens = self.tokens.clone();
        let tokens = tokens
            .ok_or_else(|| Error::Other("noise on tokens that the pass does not know".into()))?;
        self.noised = true;
        let (rows, length, width) = embedded.dims3()?;
        if (rows, length) != (tokens.rows, tokens.length) {
            let what = format!("embedded tokens are {rows} x {length}, the batch is another");
            return Err(Error::Other(what));
        }
        let mut noise = vec![0.0; rows * length * width];
        let key = self.key.purpose(Purpose::Noise);
        for (index, (start, count)) in tokens.runs().into_iter().enumerate() {
            let size = alpha / ((count * width) as f64).sqrt();
            let mut stream = key.site(&index.to_string()).stream();
            for number in &mut noise[start * width..][..count * width] {
                *number = (2.0 * stream.uniform() - 1.0) * size;
            }
        }
        let noise = Tensor::from_vec(noise, embedded.shape(), &Device::Cpu)?;
        let noise = noise
            .to_dtype(embedded.dtype())?
            .to_device(embedded.device())?;
        Ok(ops::add(embedded, &noise)?)
    }

    /// Refuses a model whose embedding left the noise out.
    pub(crate) fn check_noise(&self, model_type: &str) -> Result<()> {
        if self.training() && self.blur.embedding_noise != 0.0 && !self.noised {
            let what = format!("a {model_type} puts no noise on embedded tokens");
            return Err(Error::Other(what));
        }
        Ok(())
    }

    /// The place of this pass in the run; a layer adds its site and what it draws for.
    #[must_use]
    pub const fn rng(&self) -> Key {
        self.key
    }

    /// The dropout with probability `p` that applies in this pass, if any does; `path` (a site's, or what is drawn for there)
    /// keys it.
    ///
    /// # Errors
    /// If `p` is not a probability.
    pub fn dropout(&self, p: f64, path: &str) -> Result<Option<Dropout>> {
        if p == 0.0 || !self.training() {
            return Ok(None);
        }
        let key = self.key.purpose(Purpose::Dropout).site(path);
        Ok(Some(Dropout::new(p, key)?))
    }

    /// Whether this pass leaves the module at `path` out, which it does with probability `p` in training.
    #[must_use]
    pub fn leaves_out(&self, p: f64, path: &str) -> bool {
        p > 0.0 && self.training() && self.drawn(path, "module").uniform() < p
    }

    /// Which of the `rows` outputs of the module at `path` this pass keeps, each lost with probability `p` in training; none
    /// if nothing can be lost.
    #[must_use]
    pub fn kept_rows(&self, p: f64, path: &str, rows: usize) -> Option<Vec<bool>> {
        if p == 0.0 || !self.training() {
            return None;
        }
        let mut stream = self.drawn(path, "rank");
        Some((0..rows).map(|_| stream.uniform() >= p).collect())
    }

    fn drawn(&self, path: &str, what: &str) -> Stream {
        let key = self.key.purpose(Purpose::Dropout);
        key.site(&format!("{path}.{what}")).stream()
    }

    /// What earlier layers left on this chain.
    pub fn carry(&mut self, chain: &Chain) -> &mut Vec<Tensor> {
        self.carries.entry(chain.clone()).or_default()
    }

    /// Adds a scalar to the loss: a mean over this pass's tokens (padding excluded). Micro-batches are weighted by
    /// their tokens.
    ///
    /// # Errors
    /// If `loss` is not a scalar.
    pub fn add_loss(&mut self, name: &'static str, loss: Tensor) -> Result<()> {
        if loss.rank() != 0 {
            return Err(Error::Other(format!(
                "loss `{name}` has shape {:?}, expected a scalar",
                loss.dims()
            )));
        }
        self.losses.push((name, loss));
        Ok(())
    }

    /// Leaves a value to the controller; a detached alias is kept.
    pub fn record(&mut self, site: SiteId, name: &'static str, value: &Tensor) {
        self.records.push((site, name, value.detach()));
    }

    /// How this pass applies a gate.
    ///
    /// # Errors
    /// If the gate's mask cannot be read.
    pub fn mask(&mut self, gate: &RankGate) -> Result<Mask> {
        if !self.asked.contains(&gate.id) {
            self.asked.insert(gate.id.clone());
        }
        if let Some(mask) = self.masks.get(&gate.id) {
            return Ok(Mask::Given(mask.clone()));
        }
        gate.mask()
    }

    /// Padding, segments and positions of the batch, if the pass runs a whole model.
    #[must_use]
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_deref()
    }

    /// Takes what adapters recorded so far.
    pub fn take_records(&mut self) -> Records {
        std::mem::take(&mut self.records)
    }

    /// Takes the auxiliary losses so far.
    pub fn take_losses(&mut self) -> Vec<(&'static str, Tensor)> {
        std::mem::take(&mut self.losses)
    }
}

impl Tracking for Pass {
    fn trains(&self, param: &Param) -> bool {
        self.mode == Mode::Train
            && self
                .selection
                .iter()
                .any(|(name, _)| name == &*param.info().owner)
            && !self.held.contains(param)
    }
}
