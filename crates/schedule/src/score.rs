//! What a rank is worth.

use crate::Result;
use lowrank_adapter::{Param, Probe, RankGate, State};
use lowrank_ops::Grads;
use std::fmt;
use std::num::NonZeroUsize;

/// The rank components of one site.
#[derive(Debug, Clone)]
pub struct Components {
    /// The tensors with a rank axis.
    pub params: Vec<Param>,
    /// What says which slots live, if anything does.
    pub gate: Option<RankGate>,
}

impl Components {
    /// What a gate prunes and revives.
    #[must_use]
    pub fn of(gate: &RankGate) -> Self {
        Self {
            params: gate.gated().cloned().collect(),
            gate: Some(gate.clone()),
        }
    }
}

/// A measure of what each rank is worth. An open set: implement it for another one.
pub trait Score: fmt::Debug + Send {
    /// After every update, with the gradients that were used.
    ///
    /// # Errors
    /// If a gradient is missing or does not fit.
    fn observe(&mut self, _sites: &[Components], _grads: &Grads) -> Result<()> {
        Ok(())
    }

    /// One number a slot, by site; those of slots that do not live mean nothing.
    ///
    /// # Errors
    /// If the probe or a tensor refuses.
    fn scores(&mut self, sites: &[Components], probe: &mut dyn Probe) -> Result<Vec<Vec<f64>>>;

    /// How many held-out rows it asks the probe about, if any.
    fn held_out(&self) -> Option<NonZeroUsize> {
        None
    }

    /// How far apart two evaluations of the same thing lay when scores were last asked for, if that can be known.
    fn noise(&self) -> Option<f64> {
        None
    }

    /// These slots of a site were given fresh values: what is remembered of them is forgotten.
    ///
    /// # Errors
    /// If the score cannot forget them.
    fn forget(&mut self, _site: &Components, _slots: &[usize]) -> Result<()> {
        Ok(())
    }

    /// Everything that a resumed run needs.
    ///
    /// # Errors
    /// If a tensor cannot be allocated.
    fn state(&self) -> Result<State> {
        Ok(State::default())
    }

    /// Takes back what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If it does not fit.
    fn restore(&mut self, _state: State) -> Result<()> {
        Ok(())
    }
}
