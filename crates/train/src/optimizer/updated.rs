//! What an optimiser updates, and how fast.

use crate::error::{Error, Result};
use lowrank_adapter::{Kind, LORA_B, Pair, Param};
use std::collections::{BTreeMap, BTreeSet};

/// What is different for the tensors of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Multiplies the learning rate.
    pub learning_rate_factor: f64,
    /// Replaces the decay.
    pub weight_decay: Option<f64>,
}

/// The tensors that an optimiser is to update, and what a run file says of them.
#[derive(Debug, Clone, Copy)]
pub struct Updated<'a> {
    /// Of these only the trained ones are taken.
    pub params: &'a [Param],
    /// The factors of layers that learn a product and nothing else.
    pub pairs: &'a [Pair],
    /// Settings of groups, by name.
    pub groups: &'a BTreeMap<String, Group>,
    /// LoRA+: the learning rate of the group `lora_B`, and of tensors with one axis, in units of the run's.
    pub lora_plus_ratio: Option<f64>,
    /// The run's: tensors with one of their own differ from the others by the factor between the two. If it is 0, nothing
    /// moves.
    pub learning_rate: f64,
}

/// How one tensor differs from the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pace {
    /// Multiplies the learning rate.
    pub factor: f64,
    /// The share, times the learning rate, by which it decays.
    pub decay: f64,
}

impl<'a> Updated<'a> {
    /// These tensors, all alike.
    #[must_use]
    pub fn all(params: &'a [Param], groups: &'a BTreeMap<String, Group>) -> Self {
        Self {
            params,
            pairs: &[],
            groups,
            lora_plus_ratio: None,
            learning_rate: 1.0,
        }
    }

    /// The trained tensors but for `held`, in order of declaration, each with its pace.
    pub(crate) fn paces(
        &self,
        weight_decay: f64,
        held: &BTreeSet<Param>,
    ) -> Result<BTreeMap<Param, Pace>> {
        let trained = self
            .params
            .iter()
            .filter(|param| param.info().kind == Kind::Trained && !held.contains(param));
        let trained: BTreeSet<&Param> = trained.collect();
        if trained.is_empty() {
            return Err(Error::NothingTrained);
        }
        let known: BTreeSet<&str> = trained.iter().map(|param| param.info().group).collect();
        let listed = || known.iter().map(|group| (*group).to_owned()).collect();
        let mut named = self.groups.keys();
        if let Some(group) = named.find(|group| !known.contains(group.as_str())) {
            return Err(Error::UnknownGroup {
                group: group.clone(),
                known: listed(),
            });
        }
        if self.lora_plus_ratio.is_some() && !known.contains(LORA_B) {
            return Err(Error::NoFactors { known: listed() });
        }
        let names: BTreeSet<&str> = trained.iter().map(|param| param.name()).collect();
        let pace = |param: &&Param| ((*param).clone(), self.pace(param, weight_decay, &names));
        Ok(trained.iter().map(pace).collect())
    }

    fn pace(&self, param: &Param, weight_decay: f64, names: &BTreeSet<&str>) -> Pace {
        let info = param.info();
        let group = self.groups.get(info.group);
        let decay = group.and_then(|group| group.weight_decay);
        let mut pace = Pace {
            factor: group.map_or(1.0, |group| group.learning_rate_factor),
            decay: if info.decay {
                decay.unwrap_or(weight_decay)
            } else {
                0.0
            },
        };
        match (info.learning_rate, self.lora_plus_ratio) {
            (Some(own), _) if self.learning_rate != 0.0 => {
                pace.factor *= own / self.learning_rate;
            }
            (None, Some(ratio)) => {
                let flat = param.shape().rank() == 1;
                if flat || info.group == LORA_B {
                    pace.factor *= ratio;
                }
                // PEFT exempts what is called a bias, and layer norms: the vectors that have a bias beside them.
                let normalises = || {
                    let path = info.name.strip_suffix(".weight");
                    let bias = path.map(|path| format!("{path}.bias"));
                    flat && bias.is_some_and(|bias| names.contains(bias.as_str()))
                };
                if flat && (info.name.contains("bias") || normalises()) {
                    pace.decay = 0.0;
                }
            }
            _ => {}
        }
        pace
    }
}
