//! PEFT's keys for AdaLoRA.

use lowrank_adapter::{Finite, NonNegative, Probability};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};

/// The family's own keys, with PEFT's names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaloraConfig {
    /// Of no effect, as in PEFT: [`init_r`](Self::init_r) is the rank.
    pub r: usize,
    /// The numerator of the scale; 0 or less means [`init_r`](Self::init_r).
    pub lora_alpha: Finite,
    /// Dropout on the adapter's input.
    pub lora_dropout: Probability,
    /// Accepted for PEFT's sake: the module's type decides, and every linear layer here stores `[n_out, n_in]`.
    pub fan_in_fan_out: bool,
    /// The rank of a module at the start.
    pub init_r: NonZeroUsize,
    /// The rank that modules have on average at the end.
    pub target_r: usize,
    /// Steps before ranks are taken.
    pub tinit: u64,
    /// Steps at the end in which ranks are fixed.
    pub tfinal: u64,
    /// Ranks are chosen at multiples of so many steps.
    #[serde(rename = "deltaT")]
    pub delta_t: NonZeroU64,
    /// How slowly the average of sensitivities forgets.
    pub beta1: Probability,
    /// How slowly the average of their uncertainties forgets.
    pub beta2: Probability,
    /// The weight of the penalty.
    pub orth_reg_weight: NonNegative,
    /// The paper's penalty: the sum of the squares of the norms, instead of their mean.
    pub orth_squared: bool,
    /// How many steps the run had that made the file; a run sets it.
    pub total_step: Option<NonZeroU64>,
    /// Which of its init_r ranks a module has, under the module's path and `.lora_E`; where there is no entry, all.
    pub rank_pattern: Option<BTreeMap<String, Vec<bool>>>,
}

impl Default for AdaloraConfig {
    fn default() -> Self {
        let smoothing = Probability::new(0.85).expect("0.85 is a probability");
        Self {
            r: 8,
            lora_alpha: Finite::new(8.0).expect("8 is finite"),
            lora_dropout: Probability::default(),
            fan_in_fan_out: false,
            init_r: NonZeroUsize::new(12).expect("12 is not 0"),
            target_r: 8,
            tinit: 0,
            tfinal: 0,
            delta_t: NonZeroU64::MIN,
            beta1: smoothing,
            beta2: smoothing,
            orth_reg_weight: NonNegative::new(0.5).expect("0.5 is not negative"),
            orth_squared: false,
            total_step: None,
            rank_pattern: None,
        }
    }
}

impl AdaloraConfig {
    /// The factor of the update: that of init_r ranks, however many there are.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let ranks = self.init_r.get() as f64;
        let alpha = self.lora_alpha.get();
        let numerator = if alpha > 0.0 { alpha } else { ranks };
        numerator / (ranks + 1e-5)
    }
}
