//! What acts between steps: the penalty, the scores, and the ranks that are set to 0.

use crate::config::AdaloraConfig;
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Controller, Error, Outcome, Param, Pass, Probe, Result, State, Step};
use lowrank_ops::{self as ops, Deviation, Frame, Grads};
use lowrank_schedule::{Budget, Components, Score as _, Sensitivity, Shape, above_threshold};
use serde_json::{Map, Value, json};

/// Two integers in checkpoints: the number of steps of the run, and whether ranks have been chosen.
pub(crate) const RUN: &str = "adalora_run";

/// The tensors of one module.
#[derive(Debug)]
pub(crate) struct Triplet {
    pub path: String,
    pub a: Param,
    pub e: Param,
    pub b: Param,
    /// 1 where the last choice kept a rank `[r]`.
    pub kept: Param,
}

/// Takes ranks from where they matter least.
#[derive(Debug)]
pub(crate) struct Allocation {
    triplets: Vec<Triplet>,
    components: Vec<Components>,
    budget: Budget,
    betas: (f64, f64),
    penalty: f64,
    deviation: Deviation,
    /// What the configuration says of the number of steps.
    stated: Option<u64>,
    run: Param,
    /// None once the last choice is made.
    score: Option<Sensitivity>,
    /// How many ranks there may be now.
    ranks: usize,
}

impl Allocation {
    pub fn new(config: &AdaloraConfig, triplets: Vec<Triplet>, run: Param) -> Result<Self> {
        let first = triplets.iter().map(|triplet| triplet.kept.elem_count());
        let first = first.sum();
        let components: Vec<Components> = triplets
            .iter()
            .map(|triplet| Components {
                params: [&triplet.a, &triplet.b, &triplet.e]
                    .map(Clone::clone)
                    .into(),
                gate: None,
            })
            .collect();
        let weight = config.orth_reg_weight.get();
        let (penalty, deviation) = if config.orth_squared {
            (weight, Deviation::Square)
        } else {
            // A mean over all A and all B.
            (weight / (2 * triplets.len()) as f64, Deviation::Norm)
        };
        let betas = (config.beta1.get(), config.beta2.get());
        Ok(Self {
            score: Some(Sensitivity::new(&components, betas.0, betas.1)?),
            budget: Budget {
                first,
                last: config.target_r.saturating_mul(triplets.len()),
                shape: Shape::Cubic,
                warmup: config.tinit,
                cooldown: config.tfinal,
                every: config.delta_t.get(),
            },
            triplets,
            components,
            betas,
            penalty,
            deviation,
            stated: config.total_step.map(|total| total.get()),
            run,
            ranks: first,
        })
    }

    /// The step after which ranks are fixed.
    fn settled(&self, total: u64) -> u64 {
        total.saturating_sub(self.budget.cooldown)
    }

    /// Sets the ranks of the lowest scores to 0. What is returned is for the log: nothing where as many ranks are left in every
    /// module as before.
    fn allocate(
        &mut self,
        ranks: usize,
        probe: &mut dyn Probe,
    ) -> Result<Option<Map<String, Value>>> {
        self.ranks = ranks.min(self.budget.first);
        let Some(score) = &mut self.score else {
            return Ok(None);
        };
        if ranks >= self.budget.first {
            return Ok(None);
        }
        let scores = score.scores(&self.components, probe)?;
        let masks = above_threshold(&scores, ranks)?;
        let chosen = self.run.value().to_vec1::<u32>()?[1] != 0;
        let mut changed = !chosen;
        let mut counts = Map::new();
        for (triplet, keep) in self.triplets.iter().zip(&masks) {
            let count = |keep: &[bool]| keep.iter().filter(|keep| **keep).count();
            changed |= count(&triplet.kept()?) != count(keep);
            let values = keep.iter().map(|keep| f64::from(u8::from(*keep)));
            write(&triplet.kept, values.collect())?;
            triplet.mask(keep)?;
            counts.insert(triplet.path.clone(), count(keep).into());
        }
        self.note(|run| run[1] = 1)?;
        if !changed {
            return Ok(None);
        }
        let event = [
            ("budget".to_owned(), ranks.into()),
            ("ranks".to_owned(), Value::Object(counts)),
        ];
        Ok(Some(event.into_iter().collect()))
    }

    fn note(&self, change: impl FnOnce(&mut [u32])) -> Result<()> {
        let mut run = self.run.value().to_vec1::<u32>()?;
        change(&mut run);
        let run = Tensor::new(run, &Device::Cpu)?;
        Ok(self.run.set(&run.to_device(self.run.device())?)?)
    }
}

impl Triplet {
    fn kept(&self) -> Result<Vec<bool>> {
        let kept = self.kept.value().to_dtype(DType::F64)?.to_vec1::<f64>()?;
        Ok(kept.into_iter().map(|kept| kept != 0.0).collect())
    }

    /// E is 0 where a rank is not kept.
    fn mask(&self, keep: &[bool]) -> Result<()> {
        let e = self.e.value().to_dtype(DType::F64)?.flatten_all()?;
        let e = e.to_vec1::<f64>()?.into_iter().zip(keep);
        write(
            &self.e,
            e.map(|(e, keep)| if *keep { e } else { 0.0 }).collect(),
        )
    }
}

fn write(param: &Param, numbers: Vec<f64>) -> Result<()> {
    let numbers = Tensor::from_vec(numbers, param.shape(), &Device::Cpu)?;
    let numbers = numbers.to_dtype(param.dtype())?;
    Ok(param.set(&numbers.to_device(param.device())?)?)
}

impl Controller for Allocation {
    fn begin(&mut self, total: u64) -> Result<()> {
        let (warmup, cooldown) = (self.budget.warmup, self.budget.cooldown);
        if warmup >= self.settled(total) {
            return Err(Error::Config {
                what: format!(
                    "`tinit = {warmup}` and `tfinal = {cooldown}` leave none of the {total} steps of this run to allocate \
                     ranks in; make them smaller, or the run longer"
                ),
            });
        }
        if self.budget.last >= self.budget.first {
            tracing::warn!(
                "`target_r` asks for {} ranks and the adapter has {}: none will be taken",
                self.budget.last,
                self.budget.first
            );
        }
        if let Some(stated) = self.stated.filter(|stated| *stated != total) {
            tracing::warn!("`total_step = {stated}`, but the run has {total} steps, which count");
        }
        self.note(|run| run[0] = u32::try_from(total).unwrap_or(u32::MAX))
    }

    fn penalty(&self, _: Step, pass: &Pass) -> Result<Option<Tensor>> {
        if self.penalty == 0.0 {
            return Ok(None);
        }
        let get = |triplet: &Triplet| (triplet.a.get(pass), triplet.b.get(pass));
        let factors: Vec<(Tensor, Tensor)> = self.triplets.iter().map(get).collect();
        let frames = factors
            .iter()
            .flat_map(|(a, b)| [Frame::Rows(a), Frame::Columns(b)]);
        let frames: Vec<Frame<'_>> = frames.collect();
        let sum = ops::orthogonality(&frames, self.deviation)?;
        Ok(Some((sum * self.penalty)?))
    }

    /// PEFT's order: the update, then the scores with the new values and the gradients of before, then the choice.
    fn after_update(
        &mut self,
        step: Step,
        grads: &Grads,
        probe: &mut dyn Probe,
    ) -> Result<Outcome> {
        let settled = self.settled(step.total);
        let mut outcome = Outcome::default();
        if step.index < settled {
            if let Some(score) = &mut self.score {
                score.observe(&self.components, grads)?;
            }
            let allotment = self.budget.at(step.index, step.total);
            if allotment.due {
                outcome.allocation = self.allocate(allotment.ranks, probe)?;
            }
        } else if self.score.is_some() {
            // The step that is due may have been left out, because it was not finite.
            outcome.allocation = self.allocate(self.budget.last, probe)?;
            self.score = None;
        } else if self.run.value().to_vec1::<u32>()?[1] != 0 {
            for triplet in &self.triplets {
                triplet.mask(&triplet.kept()?)?;
            }
        }
        Ok(outcome)
    }

    fn budget(&self) -> Option<usize> {
        Some(self.ranks)
    }

    fn state(&self) -> Result<State> {
        let score = self.score.as_ref();
        let tensors = score.map(|score| score.state()).transpose()?;
        Ok(State {
            values: json!({ "ranks": self.ranks, "settled": self.score.is_none() }),
            tensors: tensors.unwrap_or_default().tensors,
        })
    }

    fn restore(&mut self, state: State) -> Result<()> {
        let foreign = |what: &str| Error::Other(format!("the state of adalora lacks `{what}`"));
        let State { values, tensors } = state;
        let settled = values["settled"].as_bool();
        let ranks = values["ranks"].as_u64().ok_or_else(|| foreign("ranks"))?;
        self.ranks = usize::try_from(ranks).map_err(|_| foreign("ranks"))?;
        self.score = None;
        if !settled.ok_or_else(|| foreign("settled"))? {
            let (beta1, beta2) = self.betas;
            let mut score = Sensitivity::new(&self.components, beta1, beta2)?;
            score.restore(State {
                values: Value::Null,
                tensors,
            })?;
            self.score = Some(score);
        }
        Ok(())
    }
}
