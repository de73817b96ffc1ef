//! The keys of a run file's `[adapter]` table.

use lowrank_adapter::target::Pattern;
use lowrank_adapter::{Attach, Error, Finite, Probability, Result};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Which factor is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", expecting = "expected \"fa\" or \"fb\"")]
pub enum Variant {
    /// A picks inputs, B is trained: columns of the weight change.
    Fa,
    /// B picks outputs, A is trained: rows of the weight change.
    Fb,
}

impl Variant {
    /// The axis of the weight `[n_out, n_in]` that indices are of.
    #[must_use]
    pub const fn axis(self) -> usize {
        match self {
            Self::Fa => 1,
            Self::Fb => 0,
        }
    }

    /// What indices are of, in a user's words.
    pub(crate) const fn places(self) -> &'static str {
        match self {
            Self::Fa => "columns",
            Self::Fb => "rows",
        }
    }
}

/// The family's own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SboraConfig {
    /// How many columns or rows of each weight train.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on the adapter's input.
    pub lora_dropout: Probability,
    /// Which factor is frozen.
    pub variant: Variant,
    /// Which of the tasks this adapter is for, from 0.
    pub task: usize,
    /// How many tasks share the weights; each gets columns (or rows) of its own.
    pub tasks: NonZeroUsize,
    /// Keys the permutation that tasks take their indices from; adapters that are to be disjoint share it.
    pub index_seed: u64,
    /// Other ranks for some modules.
    pub rank_pattern: Pattern<NonZeroUsize>,
    /// Other numerators for some modules.
    pub alpha_pattern: Pattern<Finite>,
}

impl Default for SboraConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(8).expect("8 is not 0"),
            lora_alpha: Finite::new(16.0).expect("16 is finite"),
            lora_dropout: Probability::default(),
            variant: Variant::Fa,
            task: 0,
            tasks: NonZeroUsize::MIN,
            index_seed: 42,
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
        }
    }
}

impl SboraConfig {
    /// Rank and scale, alpha / r, of the module at `path`.
    ///
    /// # Errors
    /// If a pattern is not a regular expression.
    pub fn rank_and_scale(&self, path: &str) -> Result<(usize, f64)> {
        let rank = self.rank_pattern.get(path, self.r)?.get();
        let alpha = self.alpha_pattern.get(path, self.lora_alpha)?.get();
        Ok((rank, alpha / rank as f64))
    }

    /// Refuses a task that is not among the tasks, and warns of patterns for modules that are not targeted.
    pub(crate) fn check(&self, cx: &Attach<'_>) -> Result<()> {
        if self.task >= self.tasks.get() {
            let (task, tasks) = (self.task, self.tasks);
            return Err(Error::Config {
                what: format!(
                    "`task = {task}` is not one of the {tasks} that `tasks` says there are; they count from 0"
                ),
            });
        }
        cx.warn_of_unused("rank_pattern", &self.rank_pattern)?;
        cx.warn_of_unused("alpha_pattern", &self.alpha_pattern)
    }
}
