//! The keys of a run file's `[adapter]` table.

use lowrank_adapter::target::Pattern;
use lowrank_adapter::{Attach, Finite, NonNegative, Probability, Result};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Where gates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "lowercase",
    expecting = "expected \"softmax\" or \"mean\""
)]
pub enum Router {
    /// A softmax of a trained product with the input.
    Softmax,
    /// Every gate is 1/N.
    Mean,
}

/// The family's own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MorConfig {
    /// The rank of the pair that the experts share.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on what A sees; the router sees the whole input.
    pub lora_dropout: Probability,
    /// N, the number of experts.
    pub num_experts: NonZeroUsize,
    /// Where gates come from.
    pub router: Router,
    /// The standard deviation of the start of OA (around 1) and of the router (around 0).
    pub init_noise: NonNegative,
    /// The factor of the loss that balances experts; it does nothing where gates do not depend on the input.
    pub balance_weight: NonNegative,
    /// Other ranks for some modules.
    pub rank_pattern: Pattern<NonZeroUsize>,
    /// Other numerators for some modules.
    pub alpha_pattern: Pattern<Finite>,
}

impl Default for MorConfig {
    fn default() -> Self {
        let eight = NonZeroUsize::new(8).expect("8 is not 0");
        Self {
            r: eight,
            lora_alpha: Finite::new(16.0).expect("16 is finite"),
            lora_dropout: Probability::default(),
            num_experts: eight,
            router: Router::Softmax,
            init_noise: NonNegative::new(0.02).expect("0.02 is not negative"),
            balance_weight: NonNegative::default(),
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
        }
    }
}

impl MorConfig {
    /// Rank and scale, alpha / r, of the module at `path`.
    ///
    /// # Errors
    /// If a pattern is not a regular expression.
    pub fn rank_and_scale(&self, path: &str) -> Result<(usize, f64)> {
        let rank = self.rank_pattern.get(path, self.r)?.get();
        let alpha = self.alpha_pattern.get(path, self.lora_alpha)?.get();
        Ok((rank, alpha / rank as f64))
    }

    /// True if gates depend on the input, so that there is a router to train.
    #[must_use]
    pub fn routes(&self) -> bool {
        self.router == Router::Softmax && self.num_experts.get() > 1
    }

    /// Warns of patterns for modules that are not targeted, and of keys that leave experts as they are.
    pub(crate) fn warn_of_unused(&self, cx: &Attach<'_>) -> Result<()> {
        cx.warn_of_unused("rank_pattern", &self.rank_pattern)?;
        cx.warn_of_unused("alpha_pattern", &self.alpha_pattern)?;
        if !self.routes() && self.balance_weight.get() > 0.0 && !cx.loads() {
            tracing::warn!("`balance_weight` does nothing: the gates do not depend on the input");
        }
        if self.routes() && self.init_noise.get() == 0.0 && !cx.loads() {
            tracing::warn!("`init_noise = 0`: the experts start alike, and stay alike for ever");
        }
        Ok(())
    }
}
