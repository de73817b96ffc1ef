//! PEFT's keys for LoRA.

use crate::init::InitLoraWeights;
use lowrank_adapter::target::Pattern;
use lowrank_adapter::{Attach, Error, Finite, Probability, Result};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The family's own keys, with PEFT's names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on the adapter's input.
    pub lora_dropout: Probability,
    /// Scale by 1 / sqrt(r) instead of 1 / r.
    pub use_rslora: bool,
    /// Train the length of every row of the weight apart from its direction (DoRA).
    pub use_dora: bool,
    /// How A and B start.
    pub init_lora_weights: InitLoraWeights,
    /// Accepted for PEFT's sake: the module's type decides, and every linear layer here stores `[n_out, n_in]`.
    pub fan_in_fan_out: bool,
    /// Other ranks for some modules.
    pub rank_pattern: Pattern<NonZeroUsize>,
    /// Other numerators for some modules.
    pub alpha_pattern: Pattern<Finite>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(8).expect("8 is not 0"),
            lora_alpha: Finite::new(8.0).expect("8 is finite"),
            lora_dropout: Probability::default(),
            use_rslora: false,
            use_dora: false,
            init_lora_weights: InitLoraWeights::Default,
            fan_in_fan_out: false,
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
        }
    }
}

impl LoraConfig {
    /// Rank and scale of the module at `path`. Patterns are looked up separately, so a rank that changes alone
    /// changes the scale, as in PEFT.
    ///
    /// # Errors
    /// If a pattern is not a regular expression.
    pub fn rank_and_scale(&self, path: &str) -> Result<(usize, f64)> {
        let rank = self.rank_pattern.get(path, self.r)?.get();
        let alpha = self.alpha_pattern.get(path, self.lora_alpha)?.get();
        let divisor = if self.use_rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        Ok((rank, alpha / divisor))
    }

    /// Warns of patterns for modules that are not targeted.
    pub(crate) fn warn_of_unused(&self, cx: &Attach<'_>) -> Result<()> {
        cx.warn_of_unused("rank_pattern", &self.rank_pattern)?;
        cx.warn_of_unused("alpha_pattern", &self.alpha_pattern)
    }

    /// The configuration of twice the ranks with the same scales, as PEFT writes it.
    ///
    /// # Errors
    /// If a number would be too large, or a scale cannot be kept (rsLoRA with patterns).
    pub(crate) fn doubled(self) -> Result<Self> {
        self.check_doubling()?;
        let too_large = |key: &str| Error::Config {
            what: format!("`{key}` is too large to be doubled"),
        };
        let factor = if self.use_rslora {
            std::f64::consts::SQRT_2
        } else {
            2.0
        };
        let two = NonZeroUsize::MIN.saturating_add(1);
        let rank = |rank: NonZeroUsize| rank.checked_mul(two).ok_or_else(|| too_large("r"));
        let alpha = |alpha: Finite, factor: f64| {
            Finite::new(alpha.get() * factor).ok_or_else(|| too_large("lora_alpha"))
        };
        let ranks = self.rank_pattern.0.into_iter();
        let ranks = ranks.map(|(key, value)| Ok((key, rank(value)?)));
        let alphas = self.alpha_pattern.0.into_iter();
        let alphas = alphas.map(|(key, value)| Ok((key, alpha(value, 2.0)?)));
        Ok(Self {
            r: rank(self.r)?,
            lora_alpha: alpha(self.lora_alpha, factor)?,
            rank_pattern: Pattern(ranks.collect::<Result<_>>()?),
            alpha_pattern: Pattern(alphas.collect::<Result<_>>()?),
            ..self
        })
    }

    /// A residual start is exported at twice its ranks, which must be possible before anything is trained.
    pub(crate) fn check_doubling(&self) -> Result<()> {
        let patterns = !self.rank_pattern.0.is_empty() || !self.alpha_pattern.0.is_empty();
        if self.use_rslora && patterns {
            let what = "a residual start cannot be exported with `use_rslora = true` together with `rank_pattern` or \
                        `alpha_pattern`; leave one of them out"
                .into();
            return Err(Error::Config { what });
        }
        Ok(())
    }
}
