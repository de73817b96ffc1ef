//! Rank gates: which components of a site are live.

use crate::spec::Init;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_ops::Param;
use lowrank_ops::rng::Key;

/// Names a gate within one attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GateId {
    pub(crate) owner: std::sync::Arc<str>,
    pub(crate) index: usize,
}

/// A mask over the rank components of one site, shared between its adapter and the controller; never trained.
///
/// The gated tensors keep their shape; the forward pass computes live slots only. Clones share the mask.
#[derive(Debug, Clone)]
pub struct RankGate {
    pub(crate) id: GateId,
    pub(crate) mask: Param,
    pub(crate) gated: Vec<(Param, Init)>,
    pub(crate) key: Key,
}

/// What [`RankGate::revive`] changed, for the optimiser: these slots start anew (moments 0, age 0).
#[derive(Debug, Clone)]
pub struct Revival {
    /// A tensor with fresh values.
    pub param: Param,
    /// The axis of its ranks.
    pub axis: usize,
    /// The slots on that axis.
    pub slots: Vec<usize>,
}

/// How a forward pass applies a gate.
#[derive(Debug, Clone)]
pub enum Mask {
    /// Every slot is live.
    All,
    /// Only these slots, ascending.
    Live(Vec<u32>),
    /// Multiply the component activations by this (a probe's question): `[r]` or `[batch, 1, r]`; in the head, where each
    /// row is a target, `[r]` or `[targets, r]`.
    Given(Tensor),
}

/// What follows the site's path, and precedes the gate's number, in the name of its mask.
pub(crate) const GATE: &str = ".gate_";

/// Which slots of a mask live.
pub(crate) fn live(mask: &Tensor) -> Result<Vec<bool>> {
    let mask = mask.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(mask.into_iter().map(|value| value != 0.0).collect())
}

impl RankGate {
    /// The name that [`Masks`](crate::Masks) address it by.
    #[must_use]
    pub const fn id(&self) -> &GateId {
        &self.id
    }

    /// The tensors of its site that have a rank axis: what it prunes and revives.
    pub fn gated(&self) -> impl Iterator<Item = &Param> {
        self.gated.iter().map(|(param, _)| param)
    }

    /// The number of slots.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mask.elem_count()
    }

    /// Which slots are live.
    ///
    /// # Errors
    /// If the mask cannot be read.
    pub fn live(&self) -> Result<Vec<bool>> {
        live(&self.mask.value())
    }

    /// What it asks of a pass.
    ///
    /// # Errors
    /// If the mask cannot be read.
    pub fn mask(&self) -> Result<Mask> {
        let live = self.live()?;
        if live.iter().all(|&live| live) {
            return Ok(Mask::All);
        }
        let slots = (0u32..).zip(live);
        let slots = slots.filter_map(|(slot, live)| live.then_some(slot));
        Ok(Mask::Live(slots.collect()))
    }

    /// Sets which slots are live. A masked component keeps its values and stays the optimiser's.
    ///
    /// # Errors
    /// If `keep` has another length than the gate.
    pub fn keep(&self, keep: &[bool]) -> Result<()> {
        if keep.len() != self.capacity() {
            return Err(Error::Other(format!(
                "a gate of {} slots was given a mask of {}",
                self.capacity(),
                keep.len()
            )));
        }
        let mask: Vec<f64> = keep.iter().map(|&live| f64::from(u8::from(live))).collect();
        let mask = Tensor::from_vec(mask, keep.len(), &candle_core::Device::Cpu)?;
        Ok(self.mask.set(&mask.to_dtype(self.mask.dtype())?)?)
    }

    /// Makes `slots` live with fresh values, drawn as the tensors' declarations say and keyed by `step`.
    /// The caller hands the result to the trainer, which restarts the optimiser for these slots.
    ///
    /// # Errors
    /// If a slot does not exist.
    pub fn revive(&self, slots: &[usize], step: u64) -> Result<Vec<Revival>> {
        let mut live = self.live()?;
        for &slot in slots {
            *live.get_mut(slot).ok_or_else(|| {
                Error::Other(format!(
                    "slot {slot} of a gate with {} slots",
                    self.capacity()
                ))
            })? = true;
        }
        let mut revivals = Vec::new();
        for (param, init) in &self.gated {
            let Some(axis) = param.info().rank_axis else {
                continue;
            };
            let fresh = init.draw(
                param.shape(),
                self.key.step(step).site(param.name()),
                param.dtype(),
            )?;
            let fresh = fresh.to_device(param.device())?;
            let old = param.value();
            let mut rows = Vec::new();
            for slot in 0..self.capacity() {
                let from = if slots.contains(&slot) { &fresh } else { &old };
                rows.push(from.narrow(axis, slot, 1)?);
            }
            param.set(&Tensor::cat(&rows, axis)?)?;
            revivals.push(Revival {
                param: param.clone(),
                axis,
                slots: slots.to_vec(),
            });
        }
        self.keep(&live)?;
        Ok(revivals)
    }
}
