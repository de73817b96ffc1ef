//! Rows of similar length side by side, so that little is padded.
//!
//! An epoch is cut into stretches of at most [`BATCHES`] steps. Within a stretch rows are sorted by length, the longest
//! first, and the micro-batches that they make are shuffled: which rows meet depends on chance, what comes when does as well,
//! and micro-batches hold rows that are nearly as long as each other.

use crate::examples::Examples;
use lowrank_ops::rng::Key;
use std::cmp::Reverse;
use std::sync::Arc;

/// Steps in a stretch, as transformers has it.
const BATCHES: u64 = 50;

/// The length of every row, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths(Arc<[usize]>);

impl Lengths {
    /// Of these rows.
    #[must_use]
    pub fn new<'a>(examples: impl Into<Examples<'a>>) -> Self {
        let examples = examples.into();
        let lengths = (0..examples.len()).map(|row| examples.tokens(row));
        Self(lengths.collect())
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.0.len()
    }

    /// The length of a row.
    pub(crate) fn of(&self, row: usize) -> usize {
        self.0[row]
    }
}

/// How rows are grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Groups {
    pub lengths: Lengths,
    /// Rows in a micro-batch, and in a step.
    pub micro_batch: u64,
    pub step: u64,
}

impl Groups {
    /// Orders the rows of an epoch, the first of which has the position `first` in the run. Micro-batches begin where
    /// `first` says, so that an epoch may begin or end within one. Without a key, micro-batches are not shuffled.
    pub fn arrange(&self, rows: &mut [usize], first: u64, key: Option<Key>) {
        let len = rows.len() as u64;
        // Small data sets still have a few stretches.
        let steps = (len / self.step.saturating_mul(4)).clamp(1, BATCHES);
        let stretch = self.step.saturating_mul(steps);
        let mut random = key.map(|key| key.site("groups").stream());
        let mut start = 0;
        while start < len {
            let position = first.saturating_add(start);
            let end = start.saturating_add(stretch - position % stretch).min(len);
            // Both are at most a length.
            let rows = &mut rows[start as usize..end as usize];
            rows.sort_by_key(|&row| Reverse(self.lengths.of(row)));
            let begun = match position % self.micro_batch {
                0 => 0,
                taken => (self.micro_batch - taken).min(end - start),
            };
            let rows = &mut rows[begun as usize..];
            if let Some(random) = &mut random
                && let Ok(size) = usize::try_from(self.micro_batch)
            {
                let whole = rows.len() / size;
                let sorted = rows[..whole * size].to_vec();
                let order = random.permutation(whole);
                for (to, from) in rows.chunks_exact_mut(size).zip(order) {
                    to.copy_from_slice(&sorted[from * size..(from + 1) * size]);
                }
            }
            start = end;
        }
    }
}
