//! The keys of a run file's `[adapter]` table.

use lowrank_adapter::{Finite, Probability};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::num::NonZeroUsize;

/// The family's own keys. One rank and one scale serve all modules: blocks of a chain add up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResloraConfig {
    /// The rank of every block.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on what A sees.
    pub lora_dropout: Probability,
    /// Where the shortcut begins and ends.
    pub res_type: ResType,
    /// How many earlier blocks reach a block; an input shortcut always comes from one.
    pub pre_num: PreNum,
    /// How an input or a middle shortcut is folded into the base; a block shortcut needs no choice.
    pub merge: MergeMode,
}

/// Where the shortcut begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ResType {
    /// The previous block's input is added to this block's.
    #[serde(rename = "is")]
    Input,
    /// The previous blocks see this block's input too.
    #[default]
    #[serde(rename = "bs")]
    Block,
    /// What the previous blocks' A made of their inputs is added before this block's B.
    #[serde(rename = "ms")]
    Middle,
}

/// What the factor of an approximate merge is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MergeMode {
    /// A block that a shortcut reaches is not folded.
    #[default]
    #[serde(rename = "none")]
    None,
    /// Norms of activations, as they were in training.
    #[serde(rename = "bi")]
    Inputs,
    /// Norms of merged weights for an input shortcut; a sum of A's for a middle one.
    #[serde(rename = "bw")]
    Weights,
}

/// A number of earlier blocks; -1 is all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreNum(Option<usize>);

impl PreNum {
    /// All earlier blocks.
    pub const ALL: Self = Self(None);

    /// At most `count` earlier blocks.
    #[must_use]
    pub const fn new(count: usize) -> Self {
        Self(Some(count))
    }

    /// How many of `earlier` blocks these are.
    #[must_use]
    pub fn of(self, earlier: usize) -> usize {
        self.0.map_or(earlier, |count| count.min(earlier))
    }
}

impl Serialize for PreNum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(count) => serializer.serialize_u64(count as u64),
            None => serializer.serialize_i64(-1),
        }
    }
}

impl<'de> Deserialize<'de> for PreNum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = i64::deserialize(deserializer).ok();
        let found = count.and_then(|count| match count {
            -1 => Some(Self::ALL),
            count => usize::try_from(count).ok().map(Self::new),
        });
        found.ok_or_else(|| {
            D::Error::custom("expected a number of earlier blocks, or -1 for all of them")
        })
    }
}

impl Default for ResloraConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(4).expect("4 is not 0"),
            lora_alpha: Finite::new(8.0).expect("8 is finite"),
            lora_dropout: Probability::new(0.1).expect("0.1 is a probability"),
            res_type: ResType::default(),
            pre_num: PreNum::new(4),
            merge: MergeMode::default(),
        }
    }
}

impl ResloraConfig {
    /// The factor of the update.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.lora_alpha.get() / self.r.get() as f64
    }

    /// Whether norms of activations are measured while training, for merging.
    pub(crate) fn measures(&self) -> bool {
        match self.res_type {
            ResType::Input => self.merge == MergeMode::Inputs,
            ResType::Block => false,
            ResType::Middle => self.merge != MergeMode::None && self.pre_num.of(1) > 0,
        }
    }
}
