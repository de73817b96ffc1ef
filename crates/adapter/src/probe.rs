//! Losses under many masks at once, each as if the model ran for it alone.
//!
//! Sets of masks that agree on the gates of the first blocks share what these blocks compute: with a set for each rank
//! of the model, that is about half of the work. Where a set is the only one left, it runs on side by side with its
//! neighbours, as further rows of the batch. Both are exact: a row's result depends on nothing but the row.

use crate::gate::GateId;
use crate::model::{Ask, Batch, Model};
use crate::pass::{Carries, Masks, Pass, Selection};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::BTreeSet;

/// As many tokens keep the machine busy; more would only take memory.
const TOKENS: usize = 8192;

/// The mean loss of `batch` (padded, not packed) under each set of masks, without a graph; the mean is over supervised
/// tokens and summed in f64. A gate that a set leaves out is as it is.
///
/// # Errors
/// If nothing in the batch is supervised, or the model refuses something.
pub fn masked_losses(
    model: &dyn Model,
    batch: &Batch,
    selection: &Selection,
    masks: &[Masks],
) -> Result<Vec<f64>> {
    let targets = batch.supervised();
    if targets == 0 {
        return Err(Error::Other(
            "nothing is supervised in the rows that a method scores ranks on".into(),
        ));
    }
    let Some(first) = masks.first() else {
        return Ok(Vec::new());
    };
    let mut probe = Probing {
        model,
        batch,
        selection,
        masks,
        targets,
        asked: Vec::new(),
        losses: vec![f64::NAN; masks.len()],
    };
    rayon::scope(|_| {
        probe.asked = probe.discover(first)?;
        let all: Vec<usize> = (0..masks.len()).collect();
        probe.split(0, &State::default(), &all)
    })?;
    Ok(probe.losses)
}

struct Probing<'a> {
    model: &'a dyn Model,
    batch: &'a Batch,
    selection: &'a Selection,
    masks: &'a [Masks],
    targets: usize,
    /// The gates that each stage asks: the embedding, the blocks, the head.
    asked: Vec<BTreeSet<GateId>>,
    losses: Vec<f64>,
}

/// What enters a stage; no hidden state enters the embedding.
#[derive(Clone, Default)]
struct State {
    h: Option<Tensor>,
    carries: Carries,
}

impl Probing<'_> {
    const EMBEDDING: usize = 0;

    fn head(&self) -> usize {
        self.model.blocks() + 1
    }

    /// Runs one stage: the next state, or after the head the losses of all targets.
    fn stage(
        &self,
        stage: usize,
        state: &State,
        batch: &Batch,
        masks: Masks,
    ) -> Result<(State, BTreeSet<GateId>)> {
        let mut pass = Pass::evaluation(self.selection.clone()).with_masks(masks);
        pass.set_tokens(batch.tokens());
        pass.carries.clone_from(&state.carries);
        let h = match &state.h {
            None => self.model.embed(batch, &mut pass)?,
            Some(h) if stage == self.head() => {
                self.model.head(h, batch, &Ask::Losses, &mut pass)?
            }
            Some(h) => self.model.block(stage - 1, h, batch, None, &mut pass)?,
        };
        let next = State {
            h: Some(h),
            carries: pass.carries,
        };
        Ok((next, pass.asked))
    }

    fn discover(&self, masks: &Masks) -> Result<Vec<BTreeSet<GateId>>> {
        let mut state = State::default();
        let mut asked = Vec::new();
        for stage in Self::EMBEDDING..=self.head() {
            let gates;
            (state, gates) = self.stage(stage, &state, self.batch, masks.clone())?;
            asked.push(gates);
        }
        Ok(asked)
    }

    /// All of `sets` have come to this stage alike: runs it once for those that stay so, and the others to the end.
    fn split(&mut self, stage: usize, state: &State, sets: &[usize]) -> Result<()> {
        if stage > self.head() {
            let losses = state.h.as_ref().map(|losses| self.means(losses, 1));
            let mean = losses.transpose()?.and_then(|means| means.first().copied());
            for &set in sets {
                self.losses[set] = mean.unwrap_or(f64::NAN);
            }
            return Ok(());
        }
        let mut classes: Vec<Vec<usize>> = Vec::new();
        for &set in sets {
            let mut like = None;
            for (class, members) in classes.iter().enumerate() {
                if self.agree(stage, members[0], set)? {
                    like = Some(class);
                    break;
                }
            }
            match like {
                Some(class) => classes[class].push(set),
                None => classes.push(vec![set]),
            }
        }
        let (alone, together): (Vec<_>, Vec<_>) =
            classes.into_iter().partition(|class| class.len() == 1);
        let alone: Vec<usize> = alone.into_iter().flatten().collect();
        // What a chain carries may be of any shape, so that it cannot be laid side by side.
        let alike = alone
            .windows(2)
            .all(|pair| self.name_the_same(pair[0], pair[1]));
        let side_by_side = match state.carries.is_empty() && alike {
            true => (TOKENS / self.batch.tokens().ids.len()).max(1),
            false => 1,
        };
        for sets in alone.chunks(side_by_side) {
            self.finish(stage, state, sets)?;
        }
        for class in together {
            let masks = self.masks[class[0]].clone();
            let (next, _) = self.stage(stage, state, self.batch, masks)?;
            self.split(stage + 1, &next, &class)?;
        }
        Ok(())
    }

    /// Whether two sets leave out the same gates.
    fn name_the_same(&self, one: usize, other: usize) -> bool {
        self.masks[one].keys().eq(self.masks[other].keys())
    }

    /// Whether two sets hold the same masks for the gates of a stage.
    fn agree(&self, stage: usize, one: usize, other: usize) -> Result<bool> {
        for gate in &self.asked[stage] {
            let equal = match (self.masks[one].get(gate), self.masks[other].get(gate)) {
                (None, None) => true,
                (Some(one), Some(other)) => {
                    one.id() == other.id()
                        || (one.dims() == other.dims() && numbers(one)? == numbers(other)?)
                }
                _ => false,
            };
            if !equal {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs these sets from a common stage to the end, as rows of one batch.
    fn finish(&mut self, stage: usize, state: &State, sets: &[usize]) -> Result<()> {
        let copies = sets.len();
        let batch = self.batch.repeated(copies)?;
        let repeat = |h: &Tensor| match copies {
            1 => Ok(h.clone()),
            _ => Tensor::cat(&vec![h; copies], 0),
        };
        let mut state = State {
            h: state.h.as_ref().map(repeat).transpose()?,
            carries: state.carries.clone(),
        };
        for stage in stage..=self.head() {
            let masks = self.stacked(stage, sets)?;
            (state, _) = self.stage(stage, &state, &batch, masks)?;
        }
        if let Some(losses) = &state.h {
            let means = self.means(losses, copies)?;
            for (&set, mean) in sets.iter().zip(means) {
                self.losses[set] = mean;
            }
        }
        Ok(())
    }

    /// The masks of a stage for several sets side by side.
    fn stacked(&self, stage: usize, sets: &[usize]) -> Result<Masks> {
        let mut masks = Masks::new();
        for gate in &self.asked[stage] {
            // All name the gate, or none does.
            let given = sets.iter().filter_map(|&set| self.masks[set].get(gate));
            let given: Vec<&Tensor> = given.collect();
            let Some(&first) = given.first() else {
                continue;
            };
            let same = given.iter().all(|mask| mask.id() == first.id());
            let mask = if same {
                first.clone()
            } else {
                let rows = match stage == self.head() {
                    true => self.targets,
                    false => self.batch.tokens().rows,
                };
                let slots = first.dims1()?;
                let mask = Tensor::stack(&given, 0)?.unsqueeze(1)?;
                let mask = mask.broadcast_as((sets.len(), rows, slots))?.contiguous()?;
                let mask = mask.reshape((sets.len() * rows, slots))?;
                match stage == self.head() {
                    true => mask,
                    false => mask.unsqueeze(1)?,
                }
            };
            masks.insert(gate.clone(), mask);
        }
        Ok(masks)
    }

    /// The mean loss of each copy.
    fn means(&self, losses: &Tensor, copies: usize) -> Result<Vec<f64>> {
        let losses = losses.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if losses.len() != copies * self.targets {
            return Err(Error::Other(format!(
                "the head gave {} losses for {copies} x {} targets",
                losses.len(),
                self.targets
            )));
        }
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        Ok(losses.chunks(self.targets).map(mean).collect())
    }
}

fn numbers(mask: &Tensor) -> Result<Vec<f64>> {
    Ok(mask.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
