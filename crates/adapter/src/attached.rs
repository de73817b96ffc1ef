//! An adapter that lies in a model, and what is written of it.

use crate::config::AdapterConfig;
use crate::controller::Controller;
use crate::gate::RankGate;
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
    /// What acts between steps.
    pub controller: Option<Box<dyn Controller>>,
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

    /// The number of trained scalars.
    #[must_use]
    pub fn trainable_parameters(&self) -> usize {
        self.trained().iter().map(Param::elem_count).sum()
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
