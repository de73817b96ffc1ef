//! Keys and values of the tokens so far, so that a text is continued without computing them again.

use crate::model::Batch;
use crate::{Error, Result};
use candle_core::Tensor;
use lowrank_ops::{AttentionMask, Reach};

/// Keys and values of the tokens so far, detached. One entry a block; blocks that attend twice would need two.
///
/// New ones are written behind the old ones, into room that was reserved or that doubles when it is full.
#[derive(Debug, Default)]
pub struct KvCache {
    /// Keys and values of each block, `[rows, kv_heads, room, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    /// Segments of the cached tokens, a vector a row.
    segments: Vec<Vec<u32>>,
    /// For how many tokens there is room from the start.
    reserved: usize,
}

impl KvCache {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache with room for so many tokens (a row): none of them is moved later.
    #[must_use]
    pub fn with_capacity(tokens: usize) -> Self {
        Self {
            reserved: tokens,
            ..Self::default()
        }
    }

    /// How many tokens (a row) are cached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.first().map_or(0, Vec::len)
    }

    /// True if nothing is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a block's keys and values, `[rows, kv_heads, tokens, head_dim]`, and returns all of them: parts of what the
    /// cache holds, which later tokens leave as they are. A pass that failed is overwritten by the next.
    ///
    /// # Errors
    /// If blocks come out of order or rows differ.
    pub fn append(&mut self, block: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let cached = self.layers.len();
        if block > cached {
            return Err(Error::Other(format!(
                "block {block} came before block {cached}"
            )));
        }
        let (len, reserved) = (self.len(), self.reserved);
        let old = self.layers.get(block);
        let (k_room, k_all) = extended(old.map(|(k, _)| k), k, len, reserved)?;
        let (v_room, v_all) = extended(old.map(|(_, v)| v), v, len, reserved)?;
        match self.layers.get_mut(block) {
            Some(layer) => *layer = (k_room, v_room),
            None => self.layers.push((k_room, v_room)),
        }
        Ok((k_all, v_all))
    }

    /// What the batch's tokens may see: the cached ones and themselves.
    #[must_use]
    pub fn mask(&self, batch: &Batch) -> AttentionMask {
        let tokens = batch.tokens();
        let mut keys = Vec::with_capacity(tokens.rows * (self.len() + tokens.length));
        for (row, segments) in tokens.segments.chunks(tokens.length).enumerate() {
            keys.extend(self.segments.get(row).into_iter().flatten());
            keys.extend(segments);
        }
        AttentionMask {
            query_segments: tokens.segments.clone(),
            key_segments: keys,
            batch: tokens.rows,
            reach: Reach::Before,
        }
    }

    /// The same cache for `rows` continuations of its single row.
    ///
    /// # Errors
    /// If the cache has more than one row.
    pub fn repeat(&self, rows: usize) -> Result<Self> {
        if self.segments.len() != 1 {
            return Err(Error::Other(format!(
                "a cache of {} rows cannot be repeated",
                self.segments.len()
            )));
        }
        let repeat = |t: &Tensor| -> Result<Tensor> {
            let t = t.narrow(2, 0, self.len())?;
            let (_, heads, length, dim) = t.dims4()?;
            Ok(t.expand((rows, heads, length, dim))?.force_contiguous()?)
        };
        let layers = self
            .layers
            .iter()
            .map(|(k, v)| Ok((repeat(k)?, repeat(v)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            segments: vec![self.segments[0].clone(); rows],
            reserved: self.reserved,
        })
    }

    pub(crate) fn advance(&mut self, batch: &Batch) {
        let tokens = batch.tokens();
        self.segments.resize(tokens.rows, Vec::new());
        for (row, segments) in self
            .segments
            .iter_mut()
            .zip(tokens.segments.chunks(tokens.length))
        {
            row.extend(segments);
        }
    }
}

/// `new` behind the first `len` tokens of `old`: the room they lie in, and all of them.
fn extended(
    old: Option<&Tensor>,
    new: &Tensor,
    len: usize,
    reserved: usize,
) -> Result<(Tensor, Tensor)> {
    let new = new.detach();
    let (rows, heads, tokens, dim) = new.dims4()?;
    let total = len + tokens;
    let have = match old {
        Some(old) => {
            let (old_rows, old_heads, have, old_dim) = old.dims4()?;
            if (old_rows, old_heads, old_dim) != (rows, heads, dim) {
                return Err(Error::Other(format!(
                    "the cache has {old_rows} rows of {old_heads} heads of {old_dim} numbers, a token came with {rows} \
                     of {heads} of {dim}"
                )));
            }
            have
        }
        None => 0,
    };
    let room = match old {
        Some(old) if have >= total => old.clone(),
        _ => {
            // Zeros cost no memory before they are written over.
            let room = total.max(2 * have).max(reserved);
            let room = Tensor::zeros((rows, heads, room, dim), new.dtype(), new.device())?;
            if let Some(old) = old {
                room.slice_set(&old.narrow(2, 0, len)?.contiguous()?, 2, 0)?;
            }
            room
        }
    };
    room.slice_set(&new.contiguous()?, 2, len)?;
    let all = room.narrow(2, 0, total)?;
    Ok((room, all))
}
