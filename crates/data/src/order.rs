//! Which rows each step takes.
//!
//! Rows form an endless stream of epochs. A place in it is one number, so that a run can be resumed anywhere: the
//! permutation of an epoch depends on the seed and the epoch alone. Packed, a run is a stream of sequences, and its place
//! is the number of sequences taken: they are found again by packing the epochs before.

use crate::error::{Error, Result};
use crate::groups::{Groups, Lengths};
use crate::mixture::Mixture;
use crate::packing::{Packing, Sequence};
use lowrank_ops::rng::{Key, Purpose};
use std::num::NonZeroUsize;
use std::vec;

/// An endless stream of epochs over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// What the permutations depend on, beside the epoch.
    pub seed: u64,
    /// Whether epochs are permuted, or repeat the order of the files.
    pub shuffle: bool,
    /// How many rows an epoch takes: all of them, or as many as a [`Mixture`] says.
    pub len: NonZeroUsize,
}

impl Order {
    /// The stream from a position on: 0 is the first row of the first epoch.
    #[must_use]
    pub fn stream_at(self, position: u64) -> Stream {
        Stream {
            order: self,
            mixture: None,
            groups: None,
            position,
            epoch: None,
        }
    }

    fn key(self, epoch: u64) -> Key {
        Key::new(self.seed, Purpose::Shuffle).step(epoch)
    }
}

/// Rows from a position on, without end. Holds the rows of one epoch, unless they come as they lie.
#[derive(Debug, Clone)]
pub struct Stream {
    order: Order,
    mixture: Option<Mixture>,
    groups: Option<Groups>,
    position: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Stream {
    /// The position of the next row.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The sequences of the epoch that begins here.
    fn epoch(&mut self, packing: &Packing) -> Vec<Sequence> {
        let rows = self.order.len.get();
        packing.pack(self.take(rows))
    }

    /// The row at any position.
    pub fn row(&mut self, position: u64) -> usize {
        let len = self.order.len.get() as u64;
        // Both fit: the remainder is below a usize.
        let (epoch, place) = (position / len, (position % len) as usize);
        if !self.order.shuffle && self.groups.is_none() {
            return self.mixed(epoch, place);
        }
        match &self.epoch {
            Some((held, rows)) if *held == epoch => rows[place],
            _ => {
                let rows = self.rows(epoch);
                let row = rows[place];
                self.epoch = Some((epoch, rows));
                row
            }
        }
    }

    /// The rows of an epoch.
    fn rows(&self, epoch: u64) -> Vec<usize> {
        let len = self.order.len.get();
        let key = self.order.shuffle.then(|| self.order.key(epoch));
        let mut rows = match key {
            Some(key) => key.stream().permutation(len),
            None => (0..len).collect(),
        };
        if self.mixture.is_some() {
            for row in &mut rows {
                *row = self.mixed(epoch, *row);
            }
        }
        if let Some(groups) = &self.groups {
            groups.arrange(&mut rows, epoch.saturating_mul(len as u64), key);
        }
        rows
    }

    fn mixed(&self, epoch: u64, place: usize) -> usize {
        let mixture = self.mixture.as_ref();
        mixture.map_or(place, |mixture| mixture.row(epoch, place))
    }
}

impl Iterator for Stream {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let row = self.row(self.position);
        self.position += 1;
        Some(row)
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many steps, all of the same size.
    Steps(u64),
    /// So many times every row; the last step takes what is left.
    Epochs(u64),
}

/// The most rows that are packed ahead to count the steps of a run.
const COUNTED: u64 = 20_000_000;

/// The rows of a whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    order: Order,
    batch_size: NonZeroUsize,
    accumulate: NonZeroUsize,
    length: Length,
    mixture: Option<Mixture>,
    groups: Option<Groups>,
    packing: Option<Packing>,
    /// Sequences of the first epoch, and of the whole run.
    first_epoch: u64,
    total: u64,
}

impl Plan {
    /// Steps of `accumulate` micro-batches of `batch_size` rows; each row is a sequence of its own.
    #[must_use]
    pub fn new(
        order: Order,
        batch_size: NonZeroUsize,
        accumulate: NonZeroUsize,
        length: Length,
    ) -> Self {
        let first_epoch = order.len.get() as u64;
        let mut plan = Self {
            order,
            batch_size,
            accumulate,
            length,
            mixture: None,
            groups: None,
            packing: None,
            first_epoch,
            total: 0,
        };
        plan.total = match length {
            Length::Steps(steps) => steps.saturating_mul(plan.sequences_per_step()),
            Length::Epochs(epochs) => epochs.saturating_mul(first_epoch),
        };
        plan
    }

    /// The same with epochs that take the rows of some files more often than those of others.
    ///
    /// # Errors
    /// If the order is not of as many rows as an epoch of `mixture` takes.
    pub fn mixed(mut self, mixture: Mixture) -> Result<Self> {
        let (rows, draws) = (self.order.len.get(), mixture.draws().get());
        if rows != draws {
            return Err(Error::MixedRows { rows, draws });
        }
        self.mixture = Some(mixture);
        Ok(self)
    }

    /// The same with rows of similar length side by side, see `data.group_by_length`. Every epoch still takes what it took.
    ///
    /// # Errors
    /// If `lengths` are of another number of rows.
    pub fn grouped(mut self, lengths: Lengths) -> Result<Self> {
        self.check_lengths(lengths.rows())?;
        self.groups = Some(Groups {
            lengths,
            micro_batch: self.batch_size.get() as u64,
            step: self.sequences_per_step(),
        });
        Ok(self)
    }

    fn check_lengths(&self, lengths: usize) -> Result<()> {
        let rows = self
            .mixture
            .as_ref()
            .map_or(self.order.len.get(), Mixture::rows);
        if rows != lengths {
            return Err(Error::PackedRows { rows, lengths });
        }
        Ok(())
    }

    /// The rows from a position on, before any is packed.
    fn stream_at(&self, position: u64) -> Stream {
        Stream {
            mixture: self.mixture.clone(),
            groups: self.groups.clone(),
            ..self.order.stream_at(position)
        }
    }

    /// The sequences of an epoch.
    fn pack(&self, packing: &Packing, epoch: u64) -> Vec<Sequence> {
        let position = epoch.saturating_mul(self.order.len.get() as u64);
        self.stream_at(position).epoch(packing)
    }

    /// The same with rows joined into sequences: micro-batches count those. Every epoch is packed anew, so shuffled ones
    /// may differ in how many they have.
    ///
    /// # Errors
    /// If `packing` is of another number of rows, or the run has so many epochs that its steps cannot be counted.
    pub fn packed(mut self, packing: Packing) -> Result<Self> {
        self.check_lengths(packing.rows())?;
        let rows = self.order.len.get();
        self.first_epoch = self.pack(&packing, 0).len() as u64;
        if let Length::Epochs(epochs) = self.length {
            self.total = if self.epochs_are_alike() {
                epochs.saturating_mul(self.first_epoch)
            } else if epochs.saturating_mul(rows as u64) <= COUNTED {
                let sequences = |epoch| self.pack(&packing, epoch).len() as u64;
                (0..epochs).map(sequences).sum()
            } else {
                let limit = COUNTED;
                return Err(Error::PackedEpochs {
                    epochs,
                    rows,
                    limit,
                });
            };
        }
        self.packing = Some(packing);
        Ok(self)
    }

    /// Whether every epoch takes the same rows in the same order.
    fn epochs_are_alike(&self) -> bool {
        !self.order.shuffle && self.mixture.is_none()
    }

    /// How many sequences a full step takes; saturates.
    #[must_use]
    pub fn sequences_per_step(&self) -> u64 {
        (self.batch_size.get() as u64).saturating_mul(self.accumulate.get() as u64)
    }

    /// How many steps the first epoch takes, the one with its end included.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.first_epoch.div_ceil(self.sequences_per_step())
    }

    /// How many steps the run has.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(_) => self.total.div_ceil(self.sequences_per_step()),
        }
    }

    /// How many sequences so many steps take together; saturates.
    #[must_use]
    pub fn sequences_after(&self, steps: u64) -> u64 {
        steps
            .saturating_mul(self.sequences_per_step())
            .min(self.total)
    }

    /// The steps that remain after so many are done: the first has number `done + 1`.
    #[must_use]
    pub fn steps_after(&self, done: u64) -> Steps {
        let taken = self.sequences_after(done);
        let mut steps = Steps {
            plan: self.clone(),
            done,
            taken,
            rows: self.stream_at(taken),
            packed: Vec::new().into_iter(),
        };
        if let Some(packing) = &self.packing
            && done < self.total_steps()
        {
            steps.rows = self.stream_at(0);
            let mut left = match self.epochs_are_alike() {
                true => taken % self.first_epoch,
                false => taken,
            };
            loop {
                let epoch = steps.rows.epoch(packing);
                match left.checked_sub(epoch.len() as u64) {
                    Some(more) => left = more,
                    None => {
                        steps.packed = epoch.into_iter();
                        break;
                    }
                }
            }
            steps.packed.by_ref().take(left as usize).for_each(drop);
        }
        steps
    }
}

/// The rows of one optimiser step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRows {
    /// The number of the step, from 1.
    pub step: u64,
    /// The sequences of each micro-batch; only a run's last may be shorter.
    pub micro_batches: Vec<Vec<Sequence>>,
}

/// The steps of a run from one on.
#[derive(Debug, Clone)]
pub struct Steps {
    plan: Plan,
    done: u64,
    /// Sequences of the steps that are done.
    taken: u64,
    rows: Stream,
    /// What is left of an epoch that was packed.
    packed: vec::IntoIter<Sequence>,
}

impl Steps {
    fn sequence(&mut self) -> Option<Sequence> {
        let Some(packing) = &self.plan.packing else {
            return self.rows.next().map(|row| vec![row]);
        };
        if self.packed.len() == 0 {
            self.packed = self.rows.epoch(packing).into_iter();
        }
        self.packed.next()
    }
}

impl Iterator for Steps {
    type Item = StepRows;

    fn next(&mut self) -> Option<StepRows> {
        if self.done >= self.plan.total_steps() {
            return None;
        }
        self.done += 1;
        let batch_size = self.plan.batch_size.get() as u64;
        let end = self.plan.sequences_after(self.done);
        let mut micro_batches = Vec::new();
        while self.taken < end {
            let count = batch_size.min(end - self.taken);
            micro_batches.push((0..count).map_while(|_| self.sequence()).collect());
            self.taken += count;
        }
        Some(StepRows {
            step: self.done,
            micro_batches,
        })
    }
}
