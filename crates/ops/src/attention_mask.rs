//! Who may see whom in attention, and which keys need not be looked at.

use crate::Float;
use std::ops::Range;

/// Who may see whom. Segments number the texts that share a row; 0 is padding.
///
/// The last query of a row is the last key of that row. A query sees itself and, unless it is padding, the keys
/// of its segment before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionMask {
    /// The segment of each query, [batch * tokens].
    pub query_segments: Vec<u32>,
    /// The segment of each key, [batch * keys].
    pub key_segments: Vec<u32>,
    /// The number of rows.
    pub batch: usize,
}

impl AttentionMask {
    /// The numbers of queries and of keys in a row.
    fn lengths(&self) -> (usize, usize) {
        let of_row = |segments: &[u32]| segments.len() / self.batch;
        (of_row(&self.query_segments), of_row(&self.key_segments))
    }

    /// Divides the queries of a row so that none looks at keys of segments that lie beside its own.
    pub(crate) fn blocks(&self, row: usize) -> Vec<Block> {
        let (tokens, keys) = self.lengths();
        let row_keys = &self.key_segments[row * keys..][..keys];
        let mut blocks = Vec::new();
        let mut first = 0;
        for run in self.query_segments[row * tokens..][..tokens].chunk_by(|one, other| one == other)
        {
            for queries in run.chunks(BLOCK) {
                let (own, segment) = (keys - tokens + first, queries[0]);
                let visible = |other: &u32| *other == segment && segment != 0;
                let start = row_keys[..own].iter().position(visible).unwrap_or(own);
                blocks.push(Block {
                    first,
                    count: queries.len(),
                    keys: start..own + queries.len(),
                });
                first += queries.len();
            }
        }
        blocks
    }

    /// Writes minus infinity over a query's scores of the keys of its block that it may not see.
    pub(crate) fn hide<T: Float>(&self, row: usize, token: usize, block: &Block, scores: &mut [T]) {
        let (tokens, keys) = self.lengths();
        let own = keys - tokens + token - block.keys.start;
        let hidden = T::from_f64(f64::NEG_INFINITY);
        let segment = self.query_segments[row * tokens + token];
        let (before, after) = scores.split_at_mut(own);
        after[1..].fill(hidden);
        let others = &self.key_segments[row * keys + block.keys.start..];
        for (score, other) in before.iter_mut().zip(others) {
            *score = if *other == segment && segment != 0 {
                *score
            } else {
                hidden
            };
        }
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
    /// From the first key that one of them may see to the last query's own.
    pub keys: Range<usize>,
}

impl Block {
    /// How many scores it has.
    pub fn size(&self) -> usize {
        self.count * self.keys.len()
    }
}
