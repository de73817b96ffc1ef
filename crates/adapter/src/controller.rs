//! What acts on a whole adapter between optimiser steps.

use crate::Result;
use crate::gate::Revival;
use crate::pass::{Masks, Records};
use candle_core::Tensor;
use lowrank_ops::Grads;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;

/// Where in a run a hook is called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The optimiser step, from 1.
    pub index: u64,
    /// How many there will be.
    pub total: u64,
    /// How many make an epoch.
    pub per_epoch: u64,
    /// The run's seed.
    pub seed: u64,
    /// The learning rate of this step.
    pub learning_rate: f64,
}

/// Hooks around one optimiser step; all optional but the last two, which make it resumable.
pub trait Controller: fmt::Debug + Send {
    /// Before the first step of a run, also of one that is resumed (what was saved is restored after it): how many steps it
    /// will have. A trainer that is made only to look at a run calls it too.
    ///
    /// # Errors
    /// If the method cannot be trained in so many.
    fn begin(&mut self, _total: u64) -> Result<()> {
        Ok(())
    }

    /// A scalar added to the task loss, once per optimiser step. Losses that depend on activations go to
    /// [`Pass::add_loss`](crate::Pass::add_loss). `pass` hands out the parameters.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn penalty(&self, _step: Step, _pass: &crate::Pass) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// What the adapters recorded in one training pass; not called for a recomputation, nor for a step that is left
    /// out because it is not finite. Follows the step's `penalty`, precedes its `after_backward`.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn observe(&mut self, _step: Step, _records: &Records) -> Result<()> {
        Ok(())
    }

    /// Summed, normalised, unclipped gradients: may read them (scores) and rewrite them (projections).
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn after_backward(&mut self, _step: Step, _grads: &mut Grads) -> Result<()> {
        Ok(())
    }

    /// After the update, with the clipped gradients that were used: may mask, revive, shrink.
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn after_update(
        &mut self,
        _step: Step,
        _grads: &Grads,
        _probe: &mut dyn Probe,
    ) -> Result<Outcome> {
        Ok(Outcome::default())
    }

    /// How many held-out rows the probe must run on, if the controller asks it anything; a run without held-out rows is
    /// then refused before its first step.
    fn held_out(&self) -> Option<NonZeroUsize> {
        None
    }

    /// How many slots of all gates together may live now; `None` if the controller gates nothing.
    fn budget(&self) -> Option<usize> {
        None
    }

    /// Everything that a resumed run needs (gates and scratch tensors are saved without it).
    ///
    /// # Errors
    /// Whatever an operation refuses.
    fn state(&self) -> Result<State>;

    /// Takes back what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If the state is not this controller's.
    fn restore(&mut self, state: State) -> Result<()>;
}

/// What a controller did after an update.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What starts anew: the optimiser's state of these slots does too.
    pub revivals: Vec<Revival>,
    /// What the run's log is to hold of an allocation, beside its step: new ranks, the budget, scores.
    pub allocation: Option<serde_json::Map<String, serde_json::Value>>,
}

impl From<Vec<Revival>> for Outcome {
    fn from(revivals: Vec<Revival>) -> Self {
        Self {
            revivals,
            allocation: None,
        }
    }
}

/// A controller's state in a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Counters, histories, ranks.
    pub values: serde_json::Value,
    /// Averages and statistics, by name.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Held-out losses under masks.
pub trait Probe {
    /// The mean loss of the held-out batch under each set of masks; a gate that a set leaves out is as it is.
    ///
    /// # Errors
    /// If there is no held-out data, or a pass fails.
    fn losses(&mut self, masks: &[Masks]) -> Result<Vec<f64>>;
}
