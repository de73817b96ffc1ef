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

    /// Forgets all but the first `tokens` tokens (a row), so that others may follow those.
    pub fn truncate(&mut self, tokens: usize) {
        for row in &mut self.segments {
            row.truncate(tokens);
        }
    }

    /// Copies rows of caches into a new one, side by side; each is given by its cache and its number there, and may come
    /// several times. All end together: a shorter row has padding before it, and what is padding before every row is left
    /// out. The new cache has room for `room` tokens (a row), or for more.
    ///
    /// # Errors
    /// If there is no such row, or the caches are of different models.
    pub fn beside(rows: &[(&Self, usize)], room: usize) -> Result<Self> {
        let mut segments: Vec<&[u32]> = Vec::with_capacity(rows.len());
        for (cache, row) in rows {
            let row = cache.segments.get(*row).ok_or_else(|| {
                let have = cache.segments.len();
                Error::Other(format!("a cache of {have} rows has no row {row}"))
            })?;
            let padding = row.iter().take_while(|segment| **segment == 0).count();
            segments.push(&row[padding..]);
        }
        let len = segments.iter().map(|row| row.len()).max().unwrap_or(0);
        let blocks = rows.first().map_or(0, |(cache, _)| cache.layers.len());
        let mut layers = Vec::with_capacity(blocks);
        for block in 0..blocks {
            let mut keys = Vec::with_capacity(rows.len());
            let mut values = Vec::with_capacity(rows.len());
            for ((cache, row), kept) in rows.iter().zip(&segments) {
                let (k, v) = cache.layers.get(block).ok_or_else(|| {
                    Error::Other("caches of different models side by side".to_owned())
                })?;
                let part = |t: &Tensor| {
                    let first = cache.len() - kept.len();
                    t.narrow(0, *row, 1)?.narrow(2, first, kept.len())
                };
                keys.push(part(k)?);
                values.push(part(v)?);
            }
            layers.push((ending(&keys, len, room)?, ending(&values, len, room)?));
        }
        let padded = |row: &&[u32]| [&vec![0; len - row.len()], *row].concat();
        Ok(Self {
            layers,
            segments: segments.iter().map(padded).collect(),
            reserved: room,
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

/// Rows `[1, heads, tokens, dim]` of at most `len` tokens side by side, so that all end at `len`.
fn ending(rows: &[Tensor], len: usize, room: usize) -> Result<Tensor> {
    let first = rows.first().expect("a cache without rows has no blocks");
    let (_, heads, _, dim) = first.dims4()?;
    let all = (rows.len(), heads, room.max(len), dim);
    // Zeros cost no memory before they are written over.
    let all = Tensor::zeros(all, first.dtype(), first.device())?;
    for (place, row) in rows.iter().enumerate() {
        let tokens = row.dim(2)?;
        if tokens > 0 {
            let into = all.narrow(0, place, 1)?;
            into.slice_set(&row.contiguous()?, 2, len - tokens)?;
        }
    }
    Ok(all)
}
