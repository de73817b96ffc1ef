//! The keys of a run file's `[adapter]` table.

use crate::HardConcrete;
use lowrank_adapter::target::Pattern;
use lowrank_adapter::{
    AboveOne, Attach, BelowOne, Error, Finite, Fraction, Negative, NonNegative, Positive,
    Probability, Result,
};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// What the target density is a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetUnit {
    /// A rank counts as much as it has numbers, n_out + n_in.
    Parameters,
    /// Every rank counts the same.
    Ranks,
}

/// How the orthogonality terms of all modules become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

/// Which ranks stay when gates are no longer learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// Those with the largest phi that fit the budget.
    TopBudget,
    /// Those whose test-time gate is above 0, however many they are.
    Positive,
}

/// The family's own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaloraConfig {
    /// The rank of every module before any is dropped; the divisor of the scale for good.
    pub r: NonZeroUsize,
    /// The numerator of the scale.
    pub lora_alpha: Finite,
    /// Dropout on the adapter's input.
    pub lora_dropout: Probability,
    /// Other ranks for some modules; 0 leaves a module as it is. After extraction every module's path with its rank.
    pub rank_pattern: Pattern<usize>,
    /// b: the share that is to be kept.
    pub density: Fraction,
    /// What it is a share of.
    pub budget: BudgetUnit,
    /// The temperature of the gates.
    pub beta: Positive,
    /// The lower end of the stretched interval.
    pub gamma: Negative,
    /// Its upper end.
    pub zeta: AboveOne,
    /// The factor of the orthogonality term.
    pub orth_weight: NonNegative,
    /// How it is taken over modules.
    pub orth_reduction: Reduction,
    /// How fast the multiplier rises.
    pub eta_lambda: NonNegative,
    /// The learning rate of phi.
    pub gate_lr: Positive,
    /// The share of all steps before gates are learned.
    pub t_start: BelowOne,
    /// The share of all steps after which they are extracted.
    pub t_end: Fraction,
    /// Which ranks are extracted.
    pub extract: Extract,
    /// True of a folder whose ranks were extracted: no gates any more, and `rank_pattern` has the size of every module.
    pub extracted: bool,
}

impl Default for SaloraConfig {
    fn default() -> Self {
        let valid = "a default is in range";
        Self {
            r: NonZeroUsize::new(8).expect(valid),
            lora_alpha: Finite::new(8.0).expect(valid),
            lora_dropout: Probability::default(),
            rank_pattern: Pattern::default(),
            density: Fraction::new(0.5).expect(valid),
            budget: BudgetUnit::Parameters,
            beta: Positive::new(2.0 / 3.0).expect(valid),
            gamma: Negative::new(-0.1).expect(valid),
            zeta: AboveOne::new(1.1).expect(valid),
            orth_weight: NonNegative::new(0.1).expect(valid),
            orth_reduction: Reduction::Mean,
            eta_lambda: NonNegative::new(1.0).expect(valid),
            gate_lr: Positive::new(0.05).expect(valid),
            t_start: BelowOne::new(0.1).expect(valid),
            t_end: Fraction::new(0.7).expect(valid),
            extract: Extract::TopBudget,
            extracted: false,
        }
    }
}

impl SaloraConfig {
    /// The factor of the update, whatever ranks are left.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.lora_alpha.get() / self.r.get() as f64
    }

    /// The rank of the module at `path`.
    ///
    /// # Errors
    /// If an expression of `rank_pattern` is malformed.
    pub fn rank(&self, path: &str) -> Result<usize> {
        self.rank_pattern.get(path, self.r.get())
    }

    /// The distribution of the gates.
    #[must_use]
    pub fn gates(&self) -> HardConcrete {
        HardConcrete {
            beta: self.beta.get(),
            gamma: self.gamma.get(),
            zeta: self.zeta.get(),
        }
    }

    /// The last step with all gates at 1 (0 if gates are learned from the first on), and the one after which ranks are
    /// extracted, in a run of `total`.
    #[must_use]
    pub fn window(&self, total: u64) -> (u64, u64) {
        let at = |share: f64| (share * total as f64).round() as u64;
        let start = match self.t_start.get() {
            0.0 => 0,
            share => at(share).max(1),
        };
        (start, at(self.t_end.get()).max(start + 1).min(total))
    }

    /// Refuses what no single key says.
    pub(crate) fn check(&self, cx: &Attach<'_>) -> Result<()> {
        let (start, end) = (self.t_start.get(), self.t_end.get());
        if start >= end {
            return Err(Error::Config {
                what: format!("`t_start = {start}` must be less than `t_end`, which is {end}"),
            });
        }
        if self.extracted {
            return Ok(());
        }
        cx.warn_of_unused("rank_pattern", &self.rank_pattern)
    }
}
