//! The list of laws, and the door to them.

use crate::case::Case;
use crate::compare::Verdict;
use crate::laws::{control, files, forward, gradient, masks, merging, packing, selection};
use lowrank_adapter::AnyFamily;
use serde_json::Value;

/// What must hold of a family under a configuration.
///
/// Some laws come in variants that exclude each other (what a merge gives, where training starts): [`ALL`] holds the
/// usual one, and [`declaring`] puts another in its place. A variant is checked as strictly as the usual one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// A fresh adapter leaves the base's output as it was.
    StartsAsBase,
    /// Instead of [`StartsAsBase`](Self::StartsAsBase): a fresh adapter changes the output.
    NotAtBase,
    /// With every trained tensor away from its start, each has a finite gradient that matches central differences;
    /// nothing else has one.
    Gradients,
    /// Instead of [`Gradients`](Self::Gradients): part of the forward pass is a constant to the gradient on purpose, so
    /// that some gradient differs from central differences; each is finite, and nothing else has one. What the gradients
    /// are is for the family's own tests.
    GradientsHoldConstants,
    /// Recomputing a block's activations gives the same bits as keeping them: gradients, losses and records.
    RecomputeEqualsKeep,
    /// The merged layer equals the adapted layer in evaluation mode, also for weighted selections.
    MergeEqualsForward,
    /// Instead of [`MergeEqualsForward`](Self::MergeEqualsForward): merging reports an approximation at some site.
    MergeIsApproximate,
    /// Instead of [`MergeEqualsForward`](Self::MergeEqualsForward): at some site no weight equals the adapted layer.
    MergeIsRefused,
    /// `delta` is what `forward` adds to the base's output.
    DeltaEqualsForwardMinusBase,
    /// Selected adapters add up by their weights; none is the base bit for bit, as is the model after a detach.
    Selections,
    /// What was saved loads to the same bits; a missing, extra or misshapen tensor is named.
    SaveLoad,
    /// A configuration survives PEFT's file, and a misspelt key is answered with the right one.
    ConfigRoundTrip,
    /// The same seed gives the same initial values, losses and gradients.
    SameSeedSameBits,
    /// Another seed gives other initial values.
    OtherSeedDiffers,
    /// Instead of [`OtherSeedDiffers`](Self::OtherSeedDiffers): nothing is drawn at the start.
    StartIsNotRandom,
    /// Token by token with a cache equals one pass, and padding changes nothing.
    Incremental,
    /// Rows that are packed into sequences give what they give side by side with padding: logits in evaluation mode, and in
    /// training mode (unless it draws something for each token, as dropout does) losses, auxiliary losses, gradients and
    /// those records that are not by token. A cache continues packed rows too.
    Packed,
    /// On every storage of frozen weights, NF4 among them, outputs, gradients and merged weights are those on the same numbers
    /// in f64.
    EveryStorage,
    /// A gated family's masks mean what they say, and at every step of a short run exactly as many slots live as the
    /// controller's state says under the key `budget`. The run has 12 steps and must change a mask.
    MasksRespectBudget,
    /// A controller that was saved and restored in the middle of a run continues to the same bits.
    ControllerResumes,
}

/// The laws of an ordinary family.
pub const ALL: &[Law] = &[
    Law::StartsAsBase,
    Law::Gradients,
    Law::RecomputeEqualsKeep,
    Law::MergeEqualsForward,
    Law::DeltaEqualsForwardMinusBase,
    Law::Selections,
    Law::SaveLoad,
    Law::ConfigRoundTrip,
    Law::SameSeedSameBits,
    Law::OtherSeedDiffers,
    Law::Incremental,
    Law::Packed,
    Law::EveryStorage,
    Law::MasksRespectBudget,
    Law::ControllerResumes,
];

/// [`ALL`] with these variants in the place of the laws that they exclude.
#[must_use]
pub fn declaring(variants: &[Law]) -> Vec<Law> {
    let kept = ALL
        .iter()
        .filter(|law| !variants.iter().any(|variant| variant.replaces() == **law));
    kept.chain(variants).copied().collect()
}

impl Law {
    /// The law of [`ALL`] that cannot hold together with this one; itself if it is in there.
    const fn replaces(self) -> Self {
        match self {
            Self::NotAtBase => Self::StartsAsBase,
            Self::MergeIsApproximate | Self::MergeIsRefused => Self::MergeEqualsForward,
            Self::StartIsNotRandom => Self::OtherSeedDiffers,
            Self::GradientsHoldConstants => Self::Gradients,
            usual => usual,
        }
    }

    fn verdict(self, case: &Case) -> Verdict {
        match self {
            Self::StartsAsBase => forward::starts_as_base(case),
            Self::NotAtBase => forward::not_at_base(case),
            Self::Gradients => gradient::matches_differences(case),
            Self::GradientsHoldConstants => gradient::hold_constants(case),
            Self::RecomputeEqualsKeep => gradient::recompute_equals_keep(case),
            Self::MergeEqualsForward => merging::is_exact(case),
            Self::MergeIsApproximate => merging::is_approximate(case),
            Self::MergeIsRefused => merging::is_refused(case),
            Self::DeltaEqualsForwardMinusBase => forward::delta(case),
            Self::Selections => selection::selections(case),
            Self::SaveLoad => files::save_load(case),
            Self::ConfigRoundTrip => files::config_round_trip(case),
            Self::SameSeedSameBits => files::same_seed(case),
            Self::OtherSeedDiffers => files::other_seed(case),
            Self::StartIsNotRandom => files::no_seed(case),
            Self::Incremental => forward::incremental(case),
            Self::Packed => packing::equals_padded(case),
            Self::EveryStorage => forward::every_storage(case),
            Self::MasksRespectBudget => masks::respect_budget(case),
            Self::ControllerResumes => control::resumes(case),
        }
    }
}

/// Holds a family to `laws` under every configuration: a label, and the keys of a run file's `[adapter]` table
/// (`target_modules` is "all-linear" where absent).
///
/// # Panics
/// If a law is broken, with family, label, law and numbers.
pub fn check(family: &'static dyn AnyFamily, configurations: &[(&str, Value)], laws: &[Law]) {
    for (label, keys) in configurations {
        let blame = |law: &dyn std::fmt::Debug, what: &dyn std::fmt::Display| -> ! {
            panic!(
                "family {}, configuration `{label}`, {law:?}: {what}",
                family.name()
            )
        };
        let case = match Case::new(family, keys) {
            Ok(case) => case,
            Err(broken) => blame(&Law::ConfigRoundTrip, &broken),
        };
        for law in laws {
            if let Err(broken) = law.verdict(&case) {
                blame(law, &broken);
            }
        }
    }
}
