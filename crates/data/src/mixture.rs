//! Epochs that take some files more often than others.

use lowrank_ops::rng::{Key, Purpose};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// How many rows of each of several files an epoch takes.
///
/// Of a file of n rows that gives d to an epoch, every row comes d / n times, rounded down or up. Those that come once more
/// than others are other ones in every epoch, until all have had their turn: over any number of epochs, rows of one file
/// differ by at most one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mixture {
    parts: Arc<[Part]>,
    rows: usize,
    draws: NonZeroUsize,
}

#[derive(Debug, PartialEq, Eq)]
struct Part {
    first_row: usize,
    rows: usize,
    first_draw: usize,
    draws: usize,
    /// The order in which rows have their turn to come once more; empty if it is that of the file.
    turns: Vec<usize>,
}

impl Mixture {
    /// Of files in the order of their rows: how many they have, and how many of these an epoch takes. `seed` decides, unless
    /// `shuffle` is off, in which order rows have their turn to come once more. None if an epoch would take no rows, or more
    /// than can be counted.
    #[must_use]
    pub fn new(files: &[(usize, usize)], seed: u64, shuffle: bool) -> Option<Self> {
        let mut parts = Vec::with_capacity(files.len());
        let (mut rows, mut draws) = (0usize, 0usize);
        for (&(of_file, taken), number) in files.iter().zip(0u32..) {
            let is_even = of_file == 0 || taken.is_multiple_of(of_file);
            let turns = if shuffle && !is_even {
                let key = Key::new(seed, Purpose::Shuffle).micro(number);
                key.site("turns").stream().permutation(of_file)
            } else {
                Vec::new()
            };
            let taken = if of_file == 0 { 0 } else { taken };
            parts.push(Part {
                first_row: rows,
                rows: of_file,
                first_draw: draws,
                draws: taken,
                turns,
            });
            rows = rows.checked_add(of_file)?;
            draws = draws.checked_add(taken)?;
        }
        Some(Self {
            parts: parts.into(),
            rows,
            draws: NonZeroUsize::new(draws)?,
        })
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many rows an epoch takes.
    #[must_use]
    pub fn draws(&self) -> NonZeroUsize {
        self.draws
    }

    /// The row at a place of an epoch, before it is shuffled.
    pub(crate) fn row(&self, epoch: u64, place: usize) -> usize {
        let after = self.parts.partition_point(|part| part.first_draw <= place);
        // Parts without draws begin where the next one does.
        let part = &self.parts[after - 1];
        let place = place - part.first_draw;
        let more = part.draws % part.rows;
        let whole = part.draws - more;
        if place < whole {
            return part.first_row + place % part.rows;
        }
        // Both factors fit 64 bits, their product may not.
        let turn = u128::from(epoch) * more as u128 + (place - whole) as u128;
        let turn = (turn % part.rows as u128) as usize;
        part.first_row + part.turns.get(turn).copied().unwrap_or(turn)
    }
}
