//! What happens between steps: the penalties, the multiplier, the phases, the extraction.

use crate::config::{Extract, Reduction};
use crate::density::{Ranks, density_gap, expected_density, orthogonality};
use crate::extraction::{positive, top_budget};
use crate::layer::Gates;
use crate::phase::{Phase, PhaseParam};
use crate::{HardConcrete, SaloraConfig};
use candle_core::Tensor;
use lowrank_adapter::{
    Controller, Error, Outcome, Param, Pass, Probe, Result, Revival, State, Step,
};
use lowrank_ops::{self as ops, Grads};
use serde_json::{Map, Value, json};

/// phi is kept within this after each update.
const LIMIT: f64 = 10.0;

/// A multiplier beyond this says that the target cannot be reached.
const ALARM: f64 = 1e4;

/// Learns the gates of all layers together.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    config: SaloraConfig,
    law: HardConcrete,
    phase: PhaseParam,
    modules: Vec<Module>,
    /// The multiplier.
    lambda: f64,
    /// (C - b)² before this step's update.
    gap: Option<f64>,
    /// How many ranks live.
    live: usize,
}

/// A layer that has gates.
#[derive(Debug)]
pub(crate) struct Module {
    pub path: String,
    /// How many numbers a rank has.
    pub cost: usize,
    pub q: Param,
    pub p: Param,
    pub gates: Gates,
}

impl Gatekeeper {
    pub fn new(config: SaloraConfig, phase: PhaseParam, modules: Vec<Module>) -> Self {
        let live = modules.iter().map(|module| module.gates.live.capacity());
        Self {
            law: config.gates(),
            live: live.sum(),
            config,
            phase,
            modules,
            lambda: 0.0,
            gap: None,
        }
    }

    fn ranks(&self) -> Result<Vec<Ranks>> {
        let of_module = |module: &Module| {
            Ok(Ranks {
                cost: module.cost,
                phi: module.gates.numbers()?,
            })
        };
        self.modules.iter().map(of_module).collect()
    }

    fn phis(&self, pass: &Pass) -> Vec<Tensor> {
        let phi = |module: &Module| module.gates.phi.get(pass);
        self.modules.iter().map(phi).collect()
    }

    /// The weighted orthogonality term of all modules.
    fn orthogonality(&self, pass: &Pass) -> Result<Option<Tensor>> {
        let weight = match self.config.orth_reduction {
            Reduction::Sum => self.config.orth_weight.get(),
            Reduction::Mean => self.config.orth_weight.get() / self.modules.len() as f64,
        };
        if weight == 0.0 {
            return Ok(None);
        }
        let terms = self.modules.iter().map(|module| {
            let term = orthogonality(&module.p.get(pass), &module.q.get(pass))?;
            Ok(term.reshape(1)?)
        });
        let terms = Tensor::cat(&terms.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(Some((ops::sum_all(&terms)? * weight)?))
    }

    fn clamp(&self) -> Result<()> {
        for Module { gates, .. } in &self.modules {
            if gates.numbers()?.iter().any(|phi| phi.abs() > LIMIT) {
                gates.phi.set(&gates.phi.value().clamp(-LIMIT, LIMIT)?)?;
            }
        }
        Ok(())
    }

    /// lambda <- lambda + eta (C - b)², which never falls.
    fn ascend(&mut self, gap: f64) {
        let before = self.lambda;
        self.lambda += self.config.eta_lambda.get() * gap;
        if before <= ALARM && self.lambda > ALARM {
            tracing::warn!(
                "the multiplier of SaLoRA's density has passed {ALARM}: `density = {}` may be out of reach",
                self.config.density.get()
            );
        }
    }

    /// Chooses ranks, and folds the test-time gates of those that stay into P. One whose gate is 0 begins anew as a rank
    /// of plain LoRA: P's column is 0 then, Q's row stays.
    fn extract(&mut self) -> Result<Outcome> {
        let ranks = self.ranks()?;
        let (unit, target) = (self.config.budget, self.config.density.get());
        let keep = match self.config.extract {
            Extract::TopBudget => top_budget(&ranks, unit, target)?,
            Extract::Positive => positive(&ranks, self.law),
        };
        let (mut revivals, mut sizes, mut open) = (Vec::new(), Map::new(), 0);
        self.live = 0;
        for (module, keep) in self.modules.iter().zip(&keep) {
            let settled = module.gates.settled()?;
            open += settled.iter().filter(|&&gate| gate > 0.0).count();
            let kept = |&slot: &usize| keep[slot];
            let slots: Vec<usize> = (0..keep.len()).filter(kept).collect();
            let fold: Vec<f64> = settled
                .iter()
                .zip(keep)
                .map(|(&gate, &kept)| if kept { gate } else { 1.0 })
                .collect();
            let p = module.p.value();
            let fold = Tensor::new(fold, p.device())?.to_dtype(p.dtype())?;
            module.p.set(&p.broadcast_mul(&fold)?)?;
            module.gates.live.keep(keep)?;
            self.live += slots.len();
            sizes.insert(module.path.clone(), slots.len().into());
            let fresh: Vec<usize> = slots
                .into_iter()
                .filter(|&slot| settled[slot] == 0.0)
                .collect();
            if !fresh.is_empty() {
                let revived = |(param, axis): (&Param, usize)| Revival {
                    param: param.clone(),
                    axis,
                    slots: fresh.clone(),
                };
                revivals.extend([(&module.q, 0), (&module.p, 1)].map(revived));
            }
        }
        self.phase.set(Phase::Extracted)?;
        let allocation = [
            ("density", json!(expected_density(&ranks, unit, self.law))),
            ("lambda", json!(self.lambda)),
            ("positive", json!(open)),
            ("ranks", Value::Object(sizes)),
        ];
        Ok(Outcome {
            revivals,
            allocation: Some(
                allocation
                    .map(|(key, value)| (key.to_owned(), value))
                    .into_iter()
                    .collect(),
            ),
        })
    }
}

impl Controller for Gatekeeper {
    fn penalty(&self, _: Step, pass: &Pass) -> Result<Option<Tensor>> {
        let phase = self.phase.get()?;
        if phase == Phase::Extracted || self.modules.is_empty() {
            return Ok(None);
        }
        let orthogonality = self.orthogonality(pass)?;
        if phase == Phase::Open {
            return Ok(orthogonality);
        }
        let sizes = self.modules.iter();
        let sizes = sizes.map(|module| (module.cost, module.gates.live.capacity()));
        let shares = self.config.budget.shares(sizes);
        let target = self.config.density.get();
        let gap = density_gap(&self.phis(pass), &shares, target, self.law)?;
        let of_budget = (gap * self.lambda)?;
        Ok(Some(match orthogonality {
            Some(term) => (term + of_budget)?,
            None => of_budget,
        }))
    }

    fn after_backward(&mut self, _: Step, grads: &mut Grads) -> Result<()> {
        match self.phase.get()? {
            Phase::Open => {
                for module in &self.modules {
                    // Without a gradient phi does not age.
                    grads.remove(&module.gates.phi);
                }
            }
            Phase::Learning => {
                let density = expected_density(&self.ranks()?, self.config.budget, self.law);
                self.gap = Some((density - self.config.density.get()).powi(2));
            }
            Phase::Extracted => {}
        }
        Ok(())
    }

    fn after_update(&mut self, step: Step, _: &Grads, _: &mut dyn Probe) -> Result<Outcome> {
        let phase = self.phase.get()?;
        if phase == Phase::Extracted || self.modules.is_empty() {
            return Ok(Outcome::default());
        }
        if let Some(gap) = self.gap.take() {
            self.clamp()?;
            self.ascend(gap);
        }
        let (start, end) = self.config.window(step.total);
        if step.index >= end {
            return self.extract();
        }
        if phase == Phase::Open && step.index >= start {
            self.phase.set(Phase::Learning)?;
        }
        Ok(Outcome::default())
    }

    fn budget(&self) -> Option<usize> {
        Some(self.live)
    }

    fn state(&self) -> Result<State> {
        Ok(State {
            values: json!({ "lambda": self.lambda, "live": self.live }),
            ..State::default()
        })
    }

    fn restore(&mut self, state: State) -> Result<()> {
        let values = state.values;
        let lacks = |key: &str| Error::Other(format!("the state of `salora` lacks `{key}`"));
        self.lambda = values["lambda"].as_f64().ok_or_else(|| lacks("lambda"))?;
        let live = values["live"].as_u64().ok_or_else(|| lacks("live"))?;
        self.live = live as usize;
        self.gap = None;
        Ok(())
    }
}
