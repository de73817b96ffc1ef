//! Optimisers: what a run file may name, and what the trainer sees of them.
//!
//! One is a module here: its constants are an [`Algorithm`], which starts an [`Optimizer`]; its line in `LISTED` is all
//! that the rest of the crate knows. What is updated number by number is a rule for [`elements`], which keeps numbers,
//! ages and groups.

mod adamw;
mod elements;
mod lora_fa;
mod sgd;
mod updated;

pub use adamw::AdamW;
pub use lora_fa::LoraFa;
pub use sgd::Sgd;
pub use updated::{Group, Updated};

use crate::error::Result;
use crate::keys::{Keys, Origin};
use candle_core::Tensor;
use lowrank_adapter::{Param, Revival};
use lowrank_ops::Grads;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use toml::Value;

/// The ages of every tensor, by its name: how many updates, one number a rank or one for all.
pub type Ages = BTreeMap<String, Vec<u64>>;

/// An optimiser's constants, as a run file gives them.
pub trait Algorithm: fmt::Debug + Send + Sync {
    /// What `train.optimizer` calls it.
    fn name(&self) -> &'static str;

    /// Its keys in `[train]` with their values.
    fn keys(&self) -> Vec<(&'static str, Value)>;

    /// What updates those tensors, before its first step: all moments and ages are 0.
    ///
    /// # Errors
    /// If nothing is trained, a setting is for tensors that there are none of, or the tensors are not such as it updates.
    fn start(&self, updated: &Updated<'_>) -> Result<Box<dyn Optimizer>>;
}

/// What turns gradients into changes.
pub trait Optimizer: fmt::Debug + Send {
    /// The tensors that are updated, in order of declaration: whatever else is declared as trained stays what it is.
    fn params(&self) -> &[Param];

    /// Updates every tensor that has a gradient, as if gradients were multiplied by `factor`, in one sweep over all of
    /// them; the other tensors stay as they are and do not age.
    ///
    /// # Errors
    /// If a gradient has another shape or dtype than its tensor; nothing is updated then.
    fn update(&mut self, grads: &Grads, factor: f64, learning_rate: f64) -> Result<()>;

    /// Moments and ages of revived ranks become 0.
    ///
    /// # Errors
    /// If the tensor is not updated, or its ranks lie along another axis.
    fn restart(&mut self, revival: &Revival) -> Result<()>;

    /// Everything that a checkpoint needs: moments under the tensors' names, and ages.
    ///
    /// # Errors
    /// If a tensor cannot be allocated.
    fn state(&self) -> Result<(BTreeMap<String, Tensor>, Ages)>;

    /// Takes back what [`state`](Self::state) gave; on an error nothing has changed.
    ///
    /// # Errors
    /// Names the tensor that is missing, superfluous, or of another shape or dtype.
    fn restore(&mut self, tensors: BTreeMap<String, Tensor>, ages: Ages) -> Result<(), String>;

    /// The size of its moments.
    fn bytes(&self) -> usize;
}

/// The algorithm that a run file chose. Two are equal if they have the same name, keys and values.
#[derive(Clone)]
pub struct Chosen(Arc<dyn Algorithm>);

impl Chosen {
    /// This one.
    pub fn new(algorithm: impl Algorithm + 'static) -> Self {
        Self(Arc::new(algorithm))
    }
}

impl std::ops::Deref for Chosen {
    type Target = dyn Algorithm;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref()
    }
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for Chosen {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.keys() == other.keys()
    }
}

/// An optimiser as run files know it.
struct Listed {
    name: &'static str,
    /// The keys that belong to it.
    keys: &'static [&'static str],
    /// Takes those keys.
    read: fn(&mut Keys<'_>) -> Result<Chosen>,
}

/// All of them; the first is the default.
const LISTED: [Listed; 3] = [adamw::LISTED, lora_fa::LISTED, sgd::LISTED];

/// What is not built.
const PLANNED: [&str; 5] = ["adam", "adamw8bit", "adafactor", "lion", "lora_pro"];

/// Takes `optimizer` and its keys. Another optimiser's key has no meaning.
pub(crate) fn read(keys: &mut Keys<'_>, origin: &Origin) -> Result<Chosen> {
    let words = LISTED.each_ref().map(|listed| (listed.name, listed));
    let listed = keys.word("optimizer", &words, &PLANNED)?;
    let listed = listed.unwrap_or(&LISTED[0]);
    let all = LISTED.iter().flat_map(|listed| listed.keys);
    let mut foreign = all.filter(|key| !listed.keys.contains(key) && keys.has(key));
    if let Some(key) = foreign.next() {
        let what = format!(
            "`train.{key}` has no meaning for `train.optimizer = \"{}\"`, which takes `{}`",
            listed.name,
            listed.keys.join("`, `")
        );
        return Err(origin.error(&format!("train.{key}"), what));
    }
    (listed.read)(keys)
}

const NOT_NEGATIVE: &str = "a finite number of at least 0";

fn not_negative(number: f64) -> bool {
    number >= 0.0
}
