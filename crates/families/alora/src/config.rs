//! The keys of a run file's `[adapter]` table.

use lowrank_adapter::target::Pattern;
use lowrank_adapter::{Error, Finite, NonNegative, Probability, Result};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The family's own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AloraConfig {
    /// The rank of every matrix at the start, and the denominator of the scale throughout.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on the adapter's input.
    pub lora_dropout: Probability,
    /// How many ranks are moved in a round, over the whole model; absent: the number of different kinds of matrices.
    pub n_a: Option<usize>,
    /// How many rounds there are.
    pub rounds: u64,
    /// Epochs before the first round; absent: 1.
    pub k1: Option<NonNegative>,
    /// Epochs between rounds; absent: 0.25.
    pub k2: Option<NonNegative>,
    /// The same as `k1` in steps, instead of it.
    pub k1_steps: Option<u64>,
    /// The same as `k2` in steps, instead of it.
    pub k2_steps: Option<u64>,
    /// How many held-out rows the ablations are measured on.
    pub probe_examples: NonZeroUsize,
    /// What a rank is worth.
    pub score: Scoring,
    /// Other ranks for some modules, 0 among them; in a folder, what became of them.
    pub rank_pattern: Pattern<usize>,
}

/// What a rank is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// What the held-out loss says without it, and with it alone (AB-LoRA).
    #[default]
    Ablation,
    /// AdaLoRA's smoothed sensitivity times its uncertainty.
    Sensitivity,
}

impl Default for AloraConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(8).expect("8 is not 0"),
            lora_alpha: Finite::new(16.0).expect("16 is finite"),
            lora_dropout: Probability::default(),
            n_a: None,
            rounds: 8,
            k1: None,
            k2: None,
            k1_steps: None,
            k2_steps: None,
            probe_examples: NonZeroUsize::new(32).expect("32 is not 0"),
            score: Scoring::default(),
            rank_pattern: Pattern::default(),
        }
    }
}

impl AloraConfig {
    /// The factor of the update, whatever ranks become.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.lora_alpha.get() / self.r.get() as f64
    }

    /// Refuses epochs beside steps.
    pub(crate) fn check(&self) -> Result<()> {
        let both = [
            ("k1", self.k1.is_some() && self.k1_steps.is_some()),
            ("k2", self.k2.is_some() && self.k2_steps.is_some()),
        ];
        match both.iter().find(|(_, both)| *both) {
            None => Ok(()),
            Some((key, _)) => Err(Error::Config {
                what: format!("`{key}` and `{key}_steps` say the same thing; give one of them"),
            }),
        }
    }

    /// The steps before the first round, and between rounds, if so many steps make an epoch; each at least 1.
    #[must_use]
    pub fn due(&self, steps_per_epoch: u64) -> (u64, u64) {
        let steps = |epochs: Option<NonNegative>, otherwise: f64| {
            let epochs = epochs.map_or(otherwise, NonNegative::get);
            (epochs * steps_per_epoch as f64).round() as u64
        };
        let first = self.k1_steps.unwrap_or_else(|| steps(self.k1, 1.0));
        let between = self.k2_steps.unwrap_or_else(|| steps(self.k2, 0.25));
        (first.max(1), between.max(1))
    }
}
