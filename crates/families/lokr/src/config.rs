//! PEFT's keys for LoKr.

use lowrank_adapter::target::Pattern;
use lowrank_adapter::{Attach, Finite, Probability, Result};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The family's own keys, with PEFT's names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LokrConfig {
    /// The rank of a matrix that is a product.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub alpha: Finite,
    /// The probability of a row of the update to be switched off in training.
    pub rank_dropout: Probability,
    /// Divide what `rank_dropout` leaves by its share.
    pub rank_dropout_scale: bool,
    /// The probability of a module to be left out of a training pass.
    pub module_dropout: Probability,
    /// Let W1 be a product too, where r is small enough.
    pub decompose_both: bool,
    /// How sides are divided: see [`factorization`](crate::factorization).
    pub decompose_factor: i64,
    /// Which factor starts at 0.
    pub init_weights: InitWeights,
    /// Accepted for PEFT's sake: it is about convolutions.
    pub use_effective_conv2d: bool,
    /// Other ranks for some modules.
    pub rank_pattern: Pattern<NonZeroUsize>,
    /// Other numerators for some modules.
    pub alpha_pattern: Pattern<Finite>,
}

/// Which factor starts at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or \"lycoris\"")]
pub enum InitWeights {
    /// True: W1. False: none.
    Plain(bool),
    /// Another choice.
    Named(Word),
}

/// A choice with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// W2, as in the LyCORIS repository.
    Lycoris,
}

impl Default for LokrConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(8).expect("8 is not 0"),
            alpha: Finite::new(8.0).expect("8 is finite"),
            rank_dropout: Probability::default(),
            rank_dropout_scale: false,
            module_dropout: Probability::default(),
            decompose_both: false,
            decompose_factor: -1,
            init_weights: InitWeights::Plain(true),
            use_effective_conv2d: false,
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
        }
    }
}

impl LokrConfig {
    /// Rank and scale of the module at `path`. Patterns are looked up separately, so a rank that changes alone changes the
    /// scale, as in PEFT; the scale is alpha / r also where no factor has that rank.
    ///
    /// # Errors
    /// If a pattern is not a regular expression.
    pub fn rank_and_scale(&self, path: &str) -> Result<(usize, f64)> {
        let rank = self.rank_pattern.get(path, self.r)?.get();
        let alpha = self.alpha_pattern.get(path, self.alpha)?.get();
        Ok((rank, alpha / rank as f64))
    }

    /// Warns of patterns for modules that are not targeted.
    pub(crate) fn warn_of_unused(&self, cx: &Attach<'_>) -> Result<()> {
        cx.warn_of_unused("rank_pattern", &self.rank_pattern)?;
        cx.warn_of_unused("alpha_pattern", &self.alpha_pattern)
    }
}
