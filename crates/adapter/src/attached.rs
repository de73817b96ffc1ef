//! An adapter that lies in a model, and what is written of it.

use crate::config::AdapterConfig;
use crate::controller::Controller;
use crate::gate::{GATE, RankGate, live};
use crate::{Error, Result};
use candle_core::Tensor;
use lowrank_ops::{Kind, Param};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An adapter that lies in a model: its tensors, and what acts on them between steps.
#[derive(Debug)]
pub struct Attached {
    /// The name it is selected by.
    pub name: Arc<str>,
    /// The configuration, with targets resolved.
    pub config: AdapterConfig,
    /// Every tensor, in order of declaration.
    pub params: Vec<Param>,
    /// The paths of the targeted modules, in site order.
    pub sites: Vec<String>,
    /// The masks over ranks, in order of declaration.
    pub gates: Vec<RankGate>,
    /// The factors of layers that learn a product and nothing else, in order of declaration.
    pub pairs: Vec<Pair>,
    /// What acts between steps.
    pub controller: Option<Box<dyn Controller>>,
}

/// The factors of a layer's whole update, `scale` b a.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// `[r, n_in]`.
    pub a: Param,
    /// `[n_out, r]`.
    pub b: Param,
    /// What their product is multiplied by.
    pub scale: f64,
}

impl Attached {
    /// The tensors that the optimiser updates.
    #[must_use]
    pub fn trained(&self) -> Vec<Param> {
        self.params
            .iter()
            .filter(|param| param.info().kind == Kind::Trained)
            .cloned()
            .collect()
    }

    /// The number of trained scalars, of slots that do not live none.
    #[must_use]
    pub fn trainable_parameters(&self) -> usize {
        self.trained()
            .iter()
            .map(|param| self.live_count(param))
            .sum()
    }

    /// How many numbers of a tensor belong to slots that live; all of them, if no gate is over it.
    #[must_use]
    pub fn live_count(&self, param: &Param) -> usize {
        let mut gates = self.gates.iter();
        let gate = gates.find(|gate| gate.gated().any(|gated| gated == param));
        let live = gate.and_then(|gate| gate.live().ok());
        match live {
            Some(live) if !live.is_empty() => {
                let count = live.iter().filter(|live| **live).count();
                param.elem_count() / live.len() * count
            }
            _ => param.elem_count(),
        }
    }

    /// What an adapter folder holds: copies of the trained and saved tensors, in the form that the family exports.
    ///
    /// # Errors
    /// If a copy cannot be allocated, or the family cannot export.
    pub fn exported(&self) -> Result<Exported> {
        let (mut tensors, mut scratch) = (Vec::new(), BTreeMap::new());
        for param in &self.params {
            let name = param.name().to_owned();
            match param.info().kind {
                Kind::Scratch => drop(scratch.insert(name, param.value())),
                _ => tensors.push((name, param.snapshot()?)),
            }
        }
        let export = Export {
            config: self.config.own.clone(),
            tensors,
            scratch,
        };
        let export = self.config.family.export(export)?;
        let config = AdapterConfig {
            own: export.config,
            ..self.config.clone()
        };
        Ok(Exported {
            config,
            tensors: export.tensors,
        })
    }
}

/// An adapter as its folder holds it.
#[derive(Debug)]
pub struct Exported {
    /// The configuration of these tensors; it may differ from the one that trained them.
    pub config: AdapterConfig,
    /// Names without `base_model.model.`, in order of declaration.
    pub tensors: Vec<(String, Tensor)>,
}

/// What [`Family::export`](crate::Family::export) turns into the form that others read.
#[derive(Debug)]
pub struct Export<C> {
    /// The family's own keys.
    pub config: C,
    /// Copies of the trained and saved tensors, in order of declaration, biases and whole modules among them.
    pub tensors: Vec<(String, Tensor)>,
    /// The scratch tensors, gates' masks among them: what is known beside the above, and is not written.
    pub scratch: BTreeMap<String, Tensor>,
}

impl<C> Export<C> {
    /// Which slots of a site's gate live; none if the site has no gate.
    ///
    /// # Errors
    /// If the mask cannot be read.
    pub fn live(&self, path: &str) -> Result<Option<Vec<bool>>> {
        let of_site = |name: &String| {
            let index = name.strip_prefix(path)?.strip_prefix(GATE)?;
            index
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then_some(())
        };
        let found = self
            .scratch
            .iter()
            .find(|(name, _)| of_site(name).is_some());
        found.map(|(_, mask)| live(mask)).transpose()
    }

    /// Leaves only the slots of a tensor that are to be kept, along the axis of its ranks.
    ///
    /// # Errors
    /// If there is no tensor of that name, or it has another number of slots.
    pub fn keep(&mut self, name: &str, axis: usize, keep: &[bool]) -> Result<()> {
        let found = self.tensors.iter_mut().find(|(known, _)| known == name);
        let (_, tensor) = found.ok_or_else(|| Error::MissingTensor {
            name: name.to_owned(),
        })?;
        if tensor.dim(axis)? != keep.len() {
            return Err(Error::Other(format!(
                "tensor `{name}` has shape {:?}, its gate {} slots",
                tensor.dims(),
                keep.len()
            )));
        }
        let slots = (0u32..).zip(keep).filter(|(_, keep)| **keep);
        let slots: Vec<u32> = slots.map(|(slot, _)| slot).collect();
        *tensor = if slots.is_empty() {
            tensor.narrow(axis, 0, 0)?
        } else {
            let slots = Tensor::new(slots, tensor.device())?;
            tensor.contiguous()?.index_select(&slots, axis)?
        };
        Ok(())
    }

    /// A scratch tensor.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn scratch(&self, name: &str) -> Result<&Tensor> {
        self.scratch.get(name).ok_or_else(|| Error::MissingTensor {
            name: name.to_owned(),
        })
    }
}
