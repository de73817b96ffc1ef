//! One optimiser step.

use crate::clip::{clip_factor, find_non_finite, find_non_finite_param, global_norm};
use crate::error::{Error, Result};
use crate::evaluate::{batch, numbers, packed};
use crate::optimizer::{Optimizer, Updated};
use crate::run_file::{DataKeys, OnNonFinite, TrainKeys};
use crate::schedule::Schedule;
use candle_core::DType;
use lowrank_adapter::{
    self as adapter, Ask, Attached, Batch, Controller, Kind, Masks, Model, Pair, Param, Pass,
    Probe, Records, Selection, Share, Step, masked_losses, run, sweep,
};
use lowrank_data::{Example, Examples, Lengths, Mixture, Order, Packing, Plan, StepRows};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Grads};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is trained: an adapter in its model, or a whole model.
pub struct Trainable<'a> {
    /// The model, with the parameters in it.
    pub model: &'a dyn Model,
    /// Every parameter, trained or not: all of them are in checkpoints.
    pub params: Vec<Param>,
    /// The factors of layers that learn a product and nothing else.
    pub pairs: Vec<Pair>,
    /// What acts between steps.
    pub controller: Option<&'a mut dyn Controller>,
    /// What training passes select.
    pub selection: Selection,
    /// Scalars that are declared as trained, at the start.
    pub trainable_parameters: usize,
}

impl<'a> Trainable<'a> {
    /// An attached adapter.
    pub fn adapter(model: &'a dyn Model, attached: &'a mut Attached) -> Self {
        Self {
            model,
            trainable_parameters: attached.trainable_parameters(),
            params: attached.params.clone(),
            pairs: attached.pairs.clone(),
            selection: Selection::one(attached.name.clone()),
            controller: match &mut attached.controller {
                Some(controller) => Some(controller.as_mut()),
                None => None,
            },
        }
    }

    /// Every weight of a model, as `lowrank_adapter::train_all` made them under `name`.
    pub fn whole(model: &'a dyn Model, name: &str, params: Vec<Param>) -> Self {
        Self {
            model,
            trainable_parameters: params.iter().map(Param::elem_count).sum(),
            params,
            pairs: Vec::new(),
            selection: Selection::one(name),
            controller: None,
        }
    }
}

/// The gradient of a step, before anything looks at it.
#[derive(Debug)]
pub struct Summed {
    /// Gradients of the mean loss over the step's supervised tokens (with smoothed labels, if they are smoothed), and of auxiliary losses and penalties.
    pub grads: Grads,
    /// The mean loss; 0 if nothing is supervised.
    pub loss: f64,
    /// Auxiliary losses (a mean over tokens) and penalties, if there are any.
    pub auxiliary: Option<f64>,
    /// Tokens that are not padding.
    pub tokens: u64,
    /// Predictions that count.
    pub supervised: u64,
    /// What adapters recorded, by micro-batch; the controller has not seen it yet.
    pub records: Vec<Records>,
    /// Where a loss that is not finite comes from; everything else is then that of some rows only.
    pub origin: Option<String>,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The mean loss before the update; 0 if nothing is supervised.
    pub loss: f64,
    /// Auxiliary losses and penalties, if there are any.
    pub auxiliary: Option<f64>,
    /// The global norm before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that are not padding.
    pub tokens: u64,
    /// Whether parameters were updated, and if not, why.
    pub update: Update,
    /// What a controller allocated after the update.
    pub allocation: Option<Map<String, Value>>,
}

/// Whether parameters were updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// They were.
    Made,
    /// The step's rows have no supervised token: neither decay nor ages nor controllers moved.
    NothingSupervised,
    /// The loss or a gradient was not finite, and the run file says to go on.
    NotFinite,
}

/// Makes steps.
pub struct Trainer<'a, 'b> {
    trainable: &'b mut Trainable<'a>,
    examples: Examples<'b>,
    held_out: Examples<'b>,
    keys: &'b TrainKeys,
    plan: Plan,
    schedule: Schedule,
    optimizer: Box<dyn Optimizer>,
    trained: Vec<Param>,
    /// What is declared as trained, and the optimiser leaves as it is.
    held: Arc<BTreeSet<Param>>,
    /// Whether every trained tensor has been seen in the gradients.
    reached: bool,
}

impl<'a, 'b> Trainer<'a, 'b> {
    /// A trainer before its first step. `held_out` is what controllers may probe; it may be empty. Of `data` the order,
    /// the grouping and the packing count.
    ///
    /// # Errors
    /// If there are no rows, nothing is trained, the run file names a group that does not exist, or it asks for more epochs
    /// than can be packed.
    pub fn new(
        trainable: &'b mut Trainable<'a>,
        examples: impl Into<Examples<'b>>,
        held_out: impl Into<Examples<'b>>,
        data: &DataKeys,
        keys: &'b TrainKeys,
    ) -> Result<Self> {
        let (examples, held_out) = (examples.into(), held_out.into());
        let len = std::num::NonZeroUsize::new(examples.len()).ok_or(Error::NoRows)?;
        let mixture = examples.mixture(keys.seed, data.shuffle)?;
        let order = Order {
            seed: keys.seed,
            shuffle: data.shuffle,
            len: mixture.as_ref().map_or(len, Mixture::draws),
        };
        let mut plan = Plan::new(order, keys.batch_size, keys.accumulate, keys.length);
        if let Some(mixture) = mixture {
            plan = plan.mixed(mixture)?;
        }
        if data.group_by_length {
            plan = plan.grouped(Lengths::new(examples))?;
        }
        if data.packing {
            plan = plan.packed(Packing::new(examples, data.max_length))?;
        }
        let total = plan.total_steps();
        let optimizer = keys.optimizer.start(&Updated {
            params: &trainable.params,
            pairs: &trainable.pairs,
            groups: &keys.groups,
            lora_plus_ratio: keys.lora_plus_ratio,
            learning_rate: keys.learning_rate,
        })?;
        let trained = optimizer.params().to_vec();
        let declared = trainable.params.iter();
        let declared = declared.filter(|param| param.info().kind == Kind::Trained);
        let held = declared.filter(|param| !trained.contains(param)).cloned();
        let wanted = trainable
            .controller
            .as_ref()
            .and_then(|controller| controller.held_out());
        if wanted.is_some() && held_out.is_empty() {
            return Err(Error::NoHeldOut);
        }
        if let Some(controller) = &mut trainable.controller {
            controller.begin(total)?;
        }
        Ok(Self {
            held: Arc::new(held.collect()),
            trained,
            optimizer,
            schedule: Schedule {
                base: keys.learning_rate,
                curve: keys.schedule,
                warmup: keys.warmup.steps(total),
                total,
                least: keys.least_rate,
            },
            trainable,
            examples,
            held_out,
            keys,
            plan,
            reached: false,
        })
    }

    /// Which rows every step takes.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The optimiser.
    #[must_use]
    pub fn optimizer(&self) -> &dyn Optimizer {
        self.optimizer.as_ref()
    }

    /// Scalars that are trained at the start, without those that the optimiser leaves as they are.
    #[must_use]
    pub fn trainable_parameters(&self) -> usize {
        let held: usize = self.held.iter().map(Param::elem_count).sum();
        self.trainable.trainable_parameters - held
    }

    /// A pass that trains what this trainer does.
    #[must_use]
    pub fn pass(&self, key: Key) -> Pass {
        let pass = Pass::training_pass(self.trainable.selection.clone(), key);
        pass.holding(Arc::clone(&self.held)).blurred(self.keys.blur)
    }

    /// What is trained.
    #[must_use]
    pub fn trainable(&self) -> &Trainable<'a> {
        self.trainable
    }

    /// For a checkpoint: the optimiser and what is trained, to be set to what they were.
    pub(crate) fn restorable(&mut self) -> (&mut dyn Optimizer, &mut Trainable<'a>) {
        self.reached = true;
        (self.optimizer.as_mut(), self.trainable)
    }

    /// Runs one step: micro-batches, sum, finite check, `after_backward`, clip, update, `after_update`.
    ///
    /// # Errors
    /// If the model refuses a row, a trained tensor is in no gradient, or the loss or a gradient is not finite and the
    /// run file says to stop.
    pub fn step(&mut self, rows: &StepRows) -> Result<Done> {
        let step = self.place(rows.step);
        let summed = self.gradients(rows)?;
        let mut done = Done {
            loss: summed.loss,
            auxiliary: summed.auxiliary,
            grad_norm: 0.0,
            learning_rate: step.learning_rate,
            tokens: summed.tokens,
            update: Update::NothingSupervised,
            allocation: None,
        };
        if summed.supervised == 0 {
            return Ok(done);
        }
        let mut grads = summed.grads;
        done.grad_norm = global_norm(&grads)?;
        let whole = summed.origin.is_none();
        if let Some(what) = not_finite(&done, &grads, summed.origin)? {
            if !whole {
                // Other rows were not looked at.
                (done.loss, done.grad_norm) = (f64::NAN, f64::NAN);
            }
            return self.give_up(step, what, done);
        }
        self.check_reached(&grads)?;
        let max_norm = self.keys.max_grad_norm;
        let mut factor = clip_factor(done.grad_norm, max_norm);
        if let Some(controller) = &mut self.trainable.controller {
            // Not before the check: what was recorded of a step that is left out must not reach the statistics.
            for records in &summed.records {
                controller.observe(step, records)?;
            }
            controller.after_backward(step, &mut grads)?;
            // It may have rewritten them: what is logged is what is clipped.
            let norm = global_norm(&grads)?;
            if let Some(name) = find_non_finite_of(&grads, norm)? {
                let what =
                    format!("the gradient of `{name}`, as rewritten by its method, is not finite");
                return self.give_up(step, what, done);
            }
            done.grad_norm = norm;
            // It is shown the gradients that are used, so they are clipped before the update and not on the way.
            let before = clip_factor(norm, max_norm);
            if before < 1.0 {
                grads.scale(before)?;
            }
            factor = 1.0;
        }
        self.optimizer.update(&grads, factor, step.learning_rate)?;
        if let Some(controller) = &mut self.trainable.controller {
            let mut probe = HeldOut {
                model: self.trainable.model,
                selection: &self.trainable.selection,
                examples: self.held_out,
                rows: controller.held_out().unwrap_or(self.keys.batch_size).get(),
                seed: self.keys.seed,
            };
            let outcome = controller.after_update(step, &grads, &mut probe)?;
            for revival in &outcome.revivals {
                self.optimizer.restart(revival)?;
            }
            done.allocation = outcome.allocation;
        }
        done.update = Update::Made;
        Ok(done)
    }

    /// The gradient of a step's rows, whose mean is over the supervised tokens of all micro-batches together. A loss that
    /// is not finite ends it early.
    ///
    /// # Errors
    /// If the model refuses a row.
    pub fn gradients(&self, rows: &StepRows) -> Result<Summed> {
        let step = self.place(rows.step);
        let mut batches: Vec<Batch> = Vec::with_capacity(rows.micro_batches.len());
        for sequences in &rows.micro_batches {
            let read = |rows: &Vec<usize>| -> lowrank_data::Result<Vec<Cow<'_, Example>>> {
                rows.iter().map(|&row| self.examples.get(row)).collect()
            };
            let read = sequences.iter().map(read);
            let read = read.collect::<lowrank_data::Result<Vec<_>>>()?;
            batches.push(packed(
                read.iter().map(|rows| rows.iter().map(Cow::as_ref)),
            )?);
        }
        let tokens: Vec<usize> = batches.iter().map(|batch| batch.tokens().count()).collect();
        let all_tokens: usize = tokens.iter().sum();
        let supervised: usize = batches.iter().map(|batch| batch.supervised()).sum();
        let mut summed = Summed {
            grads: Grads::default(),
            loss: 0.0,
            auxiliary: None,
            tokens: all_tokens as u64,
            supervised: supervised as u64,
            records: Vec::new(),
            origin: None,
        };
        if supervised == 0 {
            return Ok(summed);
        }
        let key = Key::new(self.keys.seed, Purpose::Dropout).step(rows.step);
        let (mut loss, mut auxiliary) = (0.0, 0.0);
        for ((micro, batch), tokens) in (0..).zip(&batches).zip(tokens) {
            let share = Share {
                token: 1.0 / supervised as f64,
                auxiliary: tokens as f64 / all_tokens as f64,
            };
            let mut pass = self.pass(key.micro(micro));
            let model = self.trainable.model;
            let swept = sweep(
                model,
                batch,
                &mut pass,
                &self.trained,
                share,
                self.keys.memory,
            )?;
            loss += numbers(&swept.losses)?.iter().sum::<f64>();
            auxiliary += swept.auxiliary * share.auxiliary;
            if !loss.is_finite() || !auxiliary.is_finite() {
                summed.loss = loss;
                summed.auxiliary = (auxiliary != 0.0).then_some(auxiliary);
                summed.origin = Some(self.origin(batch)?);
                return Ok(summed);
            }
            summed.grads.merge(swept.grads)?;
            summed.records.push(swept.records);
        }
        summed.loss = loss / supervised as f64;
        let mut has_auxiliary = auxiliary != 0.0;
        if let Some(controller) = &self.trainable.controller {
            let pass = self.pass(key);
            if let Some(penalty) = controller.penalty(step, &pass)? {
                auxiliary += penalty.detach().to_dtype(DType::F64)?.to_scalar::<f64>()?;
                has_auxiliary = true;
                let (grads, _) = ops::backward(&penalty, &self.trained, &[])?;
                summed.grads.merge(grads)?;
            }
        }
        summed.auxiliary = has_auxiliary.then_some(auxiliary);
        Ok(summed)
    }

    fn place(&self, step: u64) -> Step {
        Step {
            index: step,
            total: self.plan.total_steps(),
            per_epoch: self.plan.steps_per_epoch(),
            seed: self.keys.seed,
            learning_rate: self.schedule.rate(step),
        }
    }

    /// A gradient of 0 is fine, none at all is not: such a tensor would silently stay what it was.
    fn check_reached(&mut self, grads: &Grads) -> Result<()> {
        if self.reached {
            return Ok(());
        }
        // A tensor without numbers (of rank 0) has nothing to be reached.
        let missed = |param: &&Param| param.elem_count() > 0 && grads.get(param).is_none();
        match self.trained.iter().find(missed) {
            Some(param) => Err(Error::Unreachable {
                param: param.name().to_owned(),
            }),
            None => {
                self.reached = true;
                Ok(())
            }
        }
    }

    /// Where the first number that is not finite appears when `batch` runs once more, without dropout.
    fn origin(&self, batch: &Batch) -> Result<String> {
        let Trainable {
            model,
            params,
            selection,
            ..
        } = &*self.trainable;
        if let Some(name) = find_non_finite_param(params)? {
            return Ok(format!("`{name}` holds such a value"));
        }
        let mut pass = Pass::evaluation(selection.clone()).watching();
        match run(*model, batch, &Ask::Losses, None, &mut pass) {
            Ok(_) => Ok("without dropout every layer is finite".to_owned()),
            Err(adapter::Error::At { path, source })
                if matches!(*source, adapter::Error::NotFinite) =>
            {
                Ok(format!("from `{path}` on"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn give_up(&self, step: Step, what: String, done: Done) -> Result<Done> {
        match self.keys.on_non_finite {
            OnNonFinite::Stop => Err(Error::NonFinite {
                step: step.index,
                what,
            }),
            OnNonFinite::Skip => Ok(Done {
                update: Update::NotFinite,
                ..done
            }),
        }
    }
}

/// [`find_non_finite`] of gradients whose norm is known: a finite one spares the search.
fn find_non_finite_of(grads: &Grads, norm: f64) -> Result<Option<&str>> {
    if norm.is_finite() {
        return Ok(None);
    }
    find_non_finite(grads)
}

fn not_finite(done: &Done, grads: &Grads, origin: Option<String>) -> Result<Option<String>> {
    let origin = origin.map_or(String::new(), |origin| format!(" ({origin})"));
    if !done.loss.is_finite() {
        return Ok(Some(format!("the loss is {}{origin}", done.loss)));
    }
    if let Some(auxiliary) = done.auxiliary.filter(|auxiliary| !auxiliary.is_finite()) {
        return Ok(Some(format!("the auxiliary loss is {auxiliary}{origin}")));
    }
    let name = find_non_finite_of(grads, done.grad_norm)?;
    Ok(name.map(|name| format!("the gradient of `{name}` is not finite")))
}

/// Answers on the first rows of the held-out data in seeded order.
struct HeldOut<'a> {
    model: &'a dyn Model,
    selection: &'a Selection,
    examples: Examples<'a>,
    rows: usize,
    seed: u64,
}

impl Probe for HeldOut<'_> {
    fn losses(&mut self, masks: &[Masks]) -> adapter::Result<Vec<f64>> {
        let other = |what: &str| adapter::Error::Other(what.to_owned());
        let len = std::num::NonZeroUsize::new(self.examples.len());
        let len = len.ok_or_else(|| other(&Error::NoHeldOut.to_string()))?;
        let order = Order {
            seed: self.seed,
            shuffle: true,
            len,
        };
        let rows = order.stream_at(0).take(self.rows.min(len.get()));
        let rows = rows.map(|row| self.examples.get(row));
        let rows = rows.collect::<lowrank_data::Result<Vec<_>>>();
        let rows = rows.map_err(|error| other(&error.to_string()))?;
        let batch = batch(rows.iter().map(Cow::as_ref));
        let batch = batch.map_err(|error| other(&error.to_string()))?;
        if batch.supervised() == 0 {
            return Err(other(
                "the held-out rows that a method scores ranks on have nothing supervised",
            ));
        }
        masked_losses(self.model, &batch, self.selection, masks)
    }
}
