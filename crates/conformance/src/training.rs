//! A short training run by plain gradient descent: enough to drive a controller.

use crate::case::{Case, NAME, SEED, share};
use crate::compare::{Verdict, require};
use crate::toy::{Toy, batch};
use candle_core::{DType, Tensor};
use lowrank_adapter::{
    Ask, Attached, Batch, Masks, Memory, Pass, Probe, Result, Revival, Selection, Step, run, sweep,
};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{Grads, backward, sum_all};

/// How many steps a run has.
pub(crate) const STEPS: u64 = 12;

const LEARNING_RATE: f64 = 0.1;
const MICRO_BATCHES: u32 = 2;

/// A model, its adapter, and how it trains.
pub(crate) struct Run {
    pub toy: Toy,
    pub attached: Attached,
    memory: Memory,
}

/// What a step did.
pub(crate) struct Taken {
    /// The losses of its tokens, before the update.
    pub losses: Tensor,
    /// Every parameter after the update, before the controller's turn.
    pub updated: Vec<Tensor>,
    pub revivals: Vec<Revival>,
}

impl Run {
    pub fn new(case: &Case, memory: Memory) -> Verdict<Self> {
        let (toy, mut attached) = case.fresh(DType::F32)?;
        if let Some(controller) = &mut attached.controller {
            controller.begin(STEPS)?;
        }
        Ok(Self {
            toy,
            attached,
            memory,
        })
    }

    /// Step `index`, from 1.
    pub fn step(&mut self, index: u64) -> Verdict<Taken> {
        let step = Step {
            index,
            total: STEPS,
            per_epoch: 4,
            seed: SEED,
            learning_rate: LEARNING_RATE,
        };
        let trained = self.attached.trained();
        let mut grads = Grads::default();
        let (mut losses, mut records) = (Vec::new(), Vec::new());
        for micro in 0..MICRO_BATCHES {
            let batch = batch(100 * index + u64::from(micro), &[&[5], &[3, 4]])?;
            let key = Key::new(SEED, Purpose::Dropout).step(index).micro(micro);
            let mut pass = Pass::training_pass(Selection::one(NAME), key);
            let mut share = share(&batch);
            share.token /= f64::from(MICRO_BATCHES);
            share.auxiliary /= f64::from(MICRO_BATCHES);
            let swept = sweep(&self.toy, &batch, &mut pass, &trained, share, self.memory)?;
            grads.merge(swept.grads)?;
            losses.push(swept.losses);
            records.push(swept.records);
        }
        if let Some(controller) = &mut self.attached.controller {
            let key = Key::new(SEED, Purpose::Dropout).step(index);
            let pass = Pass::training_pass(Selection::one(NAME), key);
            if let Some(penalty) = controller.penalty(step, &pass)? {
                grads.merge(backward(&penalty, &trained, &[])?.0)?;
            }
            for records in &records {
                controller.observe(step, records)?;
            }
            controller.after_backward(step, &mut grads)?;
        }
        for (param, grad) in grads.iter() {
            param.set(&(param.snapshot()? - (grad * LEARNING_RATE)?)?)?;
        }
        let updated = self.attached.params.iter();
        let updated = updated
            .map(|param| Ok(param.snapshot()?))
            .collect::<Verdict<_>>()?;
        let mut revivals = Vec::new();
        if let Some(controller) = &mut self.attached.controller {
            let mut probe = HeldOut {
                toy: &self.toy,
                batch: batch(99, &[&[6], &[5], &[2, 2]])?,
            };
            revivals = controller.after_update(step, &grads, &mut probe)?.revivals;
        }
        Ok(Taken {
            losses: Tensor::cat(&losses, 0)?,
            updated,
            revivals,
        })
    }

    /// Which slots of each gate live.
    pub fn live(&self) -> Verdict<Vec<Vec<bool>>> {
        let gates = self.attached.gates.iter();
        Ok(gates.map(|gate| gate.live()).collect::<Result<_>>()?)
    }

    /// How many slots the controller says may live.
    pub fn budget(&self) -> Verdict<usize> {
        let Some(controller) = &self.attached.controller else {
            return Err(crate::compare::Broken::new("gates without a controller"));
        };
        let budget = controller.budget();
        require(budget.is_some(), || {
            "the controller states no budget, expected the number of slots that may live".into()
        })?;
        Ok(budget.unwrap_or_default())
    }
}

/// A probe over one fixed batch.
struct HeldOut<'a> {
    toy: &'a Toy,
    batch: Batch,
}

impl Probe for HeldOut<'_> {
    fn losses(&mut self, masks: &[Masks]) -> Result<Vec<f64>> {
        let mean = |masks: &Masks| -> Result<f64> {
            let mut pass = Pass::evaluation(Selection::one(NAME)).with_masks(masks.clone());
            let losses = run(self.toy, &self.batch, &Ask::Losses, None, &mut pass)?;
            let sum = sum_all(&losses)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            Ok(sum / losses.elem_count() as f64)
        };
        masks.iter().map(mean).collect()
    }
}
