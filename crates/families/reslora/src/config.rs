//! The keys of a run file's `[adapter]` table.

use lowrank_adapter::{Finite, Probability};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The family's own keys. CHANGE: the method's; every key has a default, and a range lives in the type of its field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResloraConfig {
    /// The rank.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on the adapter's input.
    pub lora_dropout: Probability,
}

impl Default for ResloraConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(8).expect("8 is not 0"),
            lora_alpha: Finite::new(8.0).expect("8 is finite"),
            lora_dropout: Probability::default(),
        }
    }
}

impl ResloraConfig {
    /// The factor of the update.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.lora_alpha.get() / self.r.get() as f64
    }
}
