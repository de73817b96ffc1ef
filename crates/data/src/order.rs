//! Which rows each step takes.
//!
//! Rows form an endless stream of epochs. A place in it is one number, so that a run can be resumed anywhere: the
//! permutation of an epoch depends on the seed and the epoch alone.

use lowrank_ops::rng::{Key, Purpose};
use std::num::NonZeroUsize;

/// An endless stream of epochs over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// What the permutations depend on, beside the epoch.
    pub seed: u64,
    /// Whether epochs are permuted, or repeat the order of the files.
    pub shuffle: bool,
    /// How many rows an epoch has.
    pub len: NonZeroUsize,
}

impl Order {
    /// The stream from a position on: 0 is the first row of the first epoch.
    #[must_use]
    pub fn stream_at(self, position: u64) -> Stream {
        Stream {
            order: self,
            position,
            epoch: None,
        }
    }

    fn permutation(self, epoch: u64) -> Vec<usize> {
        Key::new(self.seed, Purpose::Shuffle)
            .step(epoch)
            .stream()
            .permutation(self.len.get())
    }
}

/// Rows from a position on, without end. Holds the permutation of one epoch.
#[derive(Debug, Clone)]
pub struct Stream {
    order: Order,
    position: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Stream {
    /// The position of the next row.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The row at any position, in 0..len.
    pub fn row(&mut self, position: u64) -> usize {
        let len = self.order.len.get() as u64;
        // Both fit: the remainder is below a usize.
        let (epoch, place) = (position / len, (position % len) as usize);
        if !self.order.shuffle {
            return place;
        }
        if self.epoch.as_ref().is_none_or(|(held, _)| *held != epoch) {
            self.epoch = Some((epoch, self.order.permutation(epoch)));
        }
        self.epoch.as_ref().map_or(place, |(_, rows)| rows[place])
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

/// The rows of a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The order of rows.
    pub order: Order,
    /// Rows in a micro-batch.
    pub batch_size: NonZeroUsize,
    /// Micro-batches in a step.
    pub accumulate: NonZeroUsize,
    /// Where the run ends.
    pub length: Length,
}

impl Plan {
    /// How many rows a full step takes.
    #[must_use]
    pub fn rows_per_step(&self) -> u64 {
        (self.batch_size.get() as u64).saturating_mul(self.accumulate.get() as u64)
    }

    /// How many steps the run has.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(_) => self.total_rows().div_ceil(self.rows_per_step()),
        }
    }

    /// How many rows all steps take together; saturates.
    #[must_use]
    pub fn total_rows(&self) -> u64 {
        match self.length {
            Length::Steps(steps) => steps.saturating_mul(self.rows_per_step()),
            Length::Epochs(epochs) => epochs.saturating_mul(self.order.len.get() as u64),
        }
    }

    /// The steps that remain after so many are done: the first has number `done + 1`.
    #[must_use]
    pub fn steps_after(&self, done: u64) -> Steps {
        let position = done.saturating_mul(self.rows_per_step());
        Steps {
            plan: *self,
            done,
            stream: self.order.stream_at(position),
        }
    }
}

/// The rows of one optimiser step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRows {
    /// The number of the step, from 1.
    pub step: u64,
    /// The rows of each micro-batch; only a run's last may be shorter.
    pub micro_batches: Vec<Vec<usize>>,
}

/// The steps of a run from one on.
#[derive(Debug, Clone)]
pub struct Steps {
    plan: Plan,
    done: u64,
    stream: Stream,
}

impl Iterator for Steps {
    type Item = StepRows;

    fn next(&mut self) -> Option<StepRows> {
        if self.done >= self.plan.total_steps() {
            return None;
        }
        self.done += 1;
        let batch_size = self.plan.batch_size.get() as u64;
        let end = self.plan.total_rows().min(
            self.stream
                .position()
                .saturating_add(self.plan.rows_per_step()),
        );
        let mut micro_batches = Vec::new();
        while self.stream.position() < end {
            let rows = batch_size.min(end - self.stream.position());
            micro_batches.push(self.stream.by_ref().take(rows as usize).collect());
        }
        Some(StepRows {
            step: self.done,
            micro_batches,
        })
    }
}
