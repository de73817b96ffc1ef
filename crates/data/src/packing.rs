//! Rows joined into sequences.
//!
//! Within an epoch each row goes, in the stream's order, into the first sequence with room for it that is still open; at
//! most [`OPEN`] are, and where a row fits in none the oldest makes way for a new one. An epoch ends with all of them
//! closed, so that every epoch holds every row once. Sequences come in the order in which they were begun.

use crate::examples::Examples;
use crate::groups::Lengths;
use std::collections::VecDeque;
use std::num::NonZeroUsize;

/// The rows of one sequence, in their order: one alone where nothing is packed.
pub type Sequence = Vec<usize>;

/// How many sequences wait for a row that fits. Of rows of 5 to 512 tokens, evenly spread, 1 fills sequences of 512 to 75 %,
/// 64 to 94 %, 256 to 96 %; short rows fill them to 98 % with 4 already.
const OPEN: usize = 64;

/// What packing depends on: the length of every row, and of a full sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    lengths: Lengths,
    max_length: NonZeroUsize,
}

/// A sequence that may still grow.
struct Open {
    rows: Sequence,
    /// In tokens.
    room: usize,
}

impl Packing {
    /// For sequences of at most `max_length` tokens. A row that is longer has one of its own.
    #[must_use]
    pub fn new<'a>(examples: impl Into<Examples<'a>>, max_length: NonZeroUsize) -> Self {
        Self {
            lengths: Lengths::new(examples),
            max_length,
        }
    }

    /// The sequences that these rows make, in the order in which they are to be used.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn pack(&self, rows: impl IntoIterator<Item = usize>) -> Vec<Sequence> {
        let mut closed = Vec::new();
        let mut open: VecDeque<Open> = VecDeque::with_capacity(OPEN);
        for row in rows {
            let length = self.lengths.of(row);
            if let Some(sequence) = open.iter_mut().find(|sequence| length <= sequence.room) {
                sequence.rows.push(row);
                sequence.room -= length;
                continue;
            }
            if open.len() == OPEN {
                closed.extend(open.pop_front().map(|sequence| sequence.rows));
            }
            open.push_back(Open {
                rows: vec![row],
                room: self.max_length.get().saturating_sub(length),
            });
        }
        closed.extend(open.into_iter().map(|sequence| sequence.rows));
        closed
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.lengths.rows()
    }
}
