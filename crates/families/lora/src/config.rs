//! PEFT's keys for LoRA.

use lowrank_adapter::target::Pattern;
use lowrank_adapter::{Finite, Probability, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
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
}

/// `init_lora_weights`: how A and B start. B is 0 in all but `Random`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: A uniform in ±1/sqrt(n_in).
    Default,
    /// `false`: A as above, B uniform in ±1/sqrt(r); does not start as the base model.
    Random,
    /// `"gaussian"`: A normal with standard deviation 1/r.
    Gaussian,
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_bool(true),
            Self::Random => serializer.serialize_bool(false),
            Self::Gaussian => serializer.serialize_str("gaussian"),
        }
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bool(bool),
            Word(String),
        }
        match Written::deserialize(deserializer) {
            Ok(Written::Bool(true)) => Ok(Self::Default),
            Ok(Written::Bool(false)) => Ok(Self::Random),
            Ok(Written::Word(word)) if word == "gaussian" => Ok(Self::Gaussian),
            Ok(Written::Word(word)) => Err(D::Error::custom(format!(
                "\"{word}\" is not yet supported, expected true, false or \"gaussian\""
            ))),
            Err(_) => Err(D::Error::custom("expected true, false or \"gaussian\"")),
        }
    }
}
