//! Who may see whom in attention, and which keys need not be looked at.

use crate::Float;
use std::num::NonZeroUsize;
use std::ops::Range;

/// How far a query sees among the tokens of its own segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Itself and all tokens before it, as decoders read.
    #[default]
    Before,
    /// Of itself and the tokens before it the last so many: a sliding window.
    Window(NonZeroUsize),
    /// Every token, as encoders read.
    All,
}

/// Who may see whom. Segments number the texts that share a row; 0 is padding.
///
/// The last query of a row is the last key of that row. A query sees itself and, unless it is padding, the other keys of
/// its segment, as far as it reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionMask {
    /// The segment of each query, [batch * tokens].
    pub query_segments: Vec<u32>,
    /// The segment of each key, [batch * keys].
    pub key_segments: Vec<u32>,
    /// The number of rows.
    pub batch: usize,
    /// How far every query sees.
    pub reach: Reach,
}

impl AttentionMask {
    /// The same segments with another reach.
    #[must_use]
    pub fn reaching(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// The numbers of queries and of keys in a row.
    fn lengths(&self) -> (usize, usize) {
        let of_row = |segments: &[u32]| segments.len() / self.batch;
        (of_row(&self.query_segments), of_row(&self.key_segments))
    }

    /// From the first key of a row that a query sees to the last, its own among them. Between them it sees the keys of its
    /// own segment.
    pub(crate) fn seen(&self, row: usize, token: usize) -> Range<usize> {
        let (tokens, keys) = self.lengths();
        let (own, segment) = (
            keys - tokens + token,
            self.query_segments[row * tokens + token],
        );
        let alone = own..own + 1;
        if segment == 0 {
            return alone;
        }
        let row_keys = &self.key_segments[row * keys..][..keys];
        let visible = |key: &usize| row_keys[*key] == segment;
        let first = || (0..own).find(visible).unwrap_or(own);
        match self.reach {
            Reach::Before => first()..own + 1,
            Reach::Window(count) => {
                // Keys are counted rather than places, for a cache may hold padding between them.
                let others = (0..own).rev().filter(visible).take(count.get() - 1);
                others.last().unwrap_or(own)..own + 1
            }
            Reach::All => first()..(own + 1..keys).rev().find(visible).unwrap_or(own) + 1,
        }
    }

    /// Divides the queries of a row so that none looks at keys of segments that lie beside its own.
    pub(crate) fn blocks(&self, row: usize) -> Vec<Block> {
        let (tokens, _) = self.lengths();
        let mut blocks = Vec::new();
        let mut first = 0;
        for run in self.query_segments[row * tokens..][..tokens].chunk_by(|one, other| one == other)
        {
            for queries in run.chunks(BLOCK) {
                let last = self.seen(row, first + queries.len() - 1);
                blocks.push(Block {
                    first,
                    count: queries.len(),
                    keys: self.seen(row, first).start..last.end,
                });
                first += queries.len();
            }
        }
        blocks
    }

    /// Writes minus infinity over a query's scores of the keys of its block that it may not see.
    pub(crate) fn hide<T: Float>(&self, row: usize, token: usize, block: &Block, scores: &mut [T]) {
        let (tokens, keys) = self.lengths();
        let hidden = T::from_f64(f64::NEG_INFINITY);
        let segment = self.query_segments[row * tokens + token];
        let first = block.keys.start;
        let own = keys - tokens + token - first;
        // What a block begins with is seen by its first query, and so by all of it unless a window ends.
        let seen = match self.reach {
            Reach::Before => 0..own + 1,
            Reach::All => 0..scores.len(),
            Reach::Window(_) => self.seen(row, token).start - first..own + 1,
        };
        scores[..seen.start].fill(hidden);
        scores[seen.end..].fill(hidden);
        let others = &self.key_segments[row * keys + first..][seen.clone()];
        let kept = scores[own];
        for (score, other) in scores[seen].iter_mut().zip(others) {
            *score = if *other == segment && segment != 0 {
                *score
            } else {
                hidden
            };
        }
        scores[own] = kept;
    }
}

/// How many queries are worked on together at most.
const BLOCK: usize = 32;

/// Queries of one segment that are worked on together, and the keys that they may see.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// The first query.
    pub first: usize,
    /// How many queries.
    pub count: usize,
    /// From the first key that one of them may see to the last.
    pub keys: Range<usize>,
}

impl Block {
    /// How many scores it has.
    pub fn size(&self) -> usize {
        self.count * self.keys.len()
    }
}
