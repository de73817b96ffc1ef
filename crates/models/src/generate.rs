//! A text, continued token by token: the prompt runs once, then one token at a time over the cache.

use crate::sample::likeliest_single;
use crate::{Error, Result, Sampling};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Ask, Batch, KvCache, Model, Pass, Selection, run};
use std::num::NonZeroUsize;

/// For how many new tokens room is reserved at most.
const LARGEST_ROOM: usize = 4096;

/// Where a continuation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many tokens are written at most.
    pub max_new_tokens: NonZeroUsize,
    /// How many tokens the model reads, prompt and continuation together (`max_position_embeddings`).
    pub positions: usize,
    /// The tokens that end a text.
    pub end_tokens: Vec<u32>,
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The text came to its end: an end token, or a stop string.
    Stop,
    /// As many tokens were written as were asked for, or as the model can read.
    Length,
}

impl Finish {
    /// Its word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// The tokens that a model writes after a prompt, one at a call of `next`. The end token is not among them. After an error
/// there is nothing more.
///
/// No graph is built, and logits are computed of the last position only.
pub struct Continuation<'a> {
    model: &'a dyn Model,
    selection: Selection,
    sampling: Sampling,
    limits: Limits,
    cache: KvCache,
    /// What the model has not read yet: the prompt, then the last token.
    unread: Vec<u32>,
    /// How many tokens were chosen.
    written: usize,
    finish: Option<Finish>,
}

impl<'a> Continuation<'a> {
    /// Nothing is computed before the first token is asked for.
    ///
    /// # Errors
    /// If the prompt has no token, or as many as the model reads.
    pub fn new(
        model: &'a dyn Model,
        selection: Selection,
        prompt: &[u32],
        sampling: Sampling,
        limits: Limits,
    ) -> Result<Self> {
        let cache = KvCache::with_capacity(room(prompt.len(), &limits));
        Self::after(model, selection, cache, prompt, sampling, limits)
    }

    /// The same with a cache that holds a beginning of the prompt already, as the model and the selection read it: only
    /// what it does not hold is read, but always the last token.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn after(
        model: &'a dyn Model,
        selection: Selection,
        mut cache: KvCache,
        prompt: &[u32],
        sampling: Sampling,
        limits: Limits,
    ) -> Result<Self> {
        refuse(prompt, &limits)?;
        cache.truncate(prompt.len() - 1);
        Ok(Self {
            model,
            selection,
            sampling,
            unread: prompt[cache.len()..].to_vec(),
            cache,
            limits,
            written: 0,
            finish: None,
        })
    }

    /// What the model has read: the prompt and the new tokens, but not the last of them.
    #[must_use]
    pub fn into_cache(self) -> KvCache {
        self.cache
    }

    /// Why it ended; none while it goes on, and after an error.
    #[must_use]
    pub const fn finish(&self) -> Option<Finish> {
        self.finish
    }

    fn step(&mut self) -> Result<Option<u32>> {
        let full = self.cache.len() + self.unread.len() >= self.limits.positions;
        if full || self.written >= self.limits.max_new_tokens.get() {
            self.finish = Some(Finish::Length);
            return Ok(None);
        }
        let batch = Batch::sequence(&self.unread, self.cache.len() as u32)?;
        let last = Ask::Logits(vec![self.unread.len() as u32 - 1]);
        let mut pass = Pass::evaluation(self.selection.clone());
        let cache = Some(&mut self.cache);
        let logits = run(self.model, &batch, &last, cache, &mut pass)?;
        let token = choose(&self.sampling, &logits, 0, self.written as u64)?;
        self.written += 1;
        self.unread = vec![token];
        if self.limits.end_tokens.contains(&token) {
            self.finish = Some(Finish::Stop);
            return Ok(None);
        }
        Ok(Some(token))
    }
}

/// Refuses a prompt that cannot be continued.
pub(crate) fn refuse(prompt: &[u32], limits: &Limits) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if prompt.len() >= limits.positions {
        return Err(Error::PromptTooLong {
            tokens: prompt.len(),
            limit: limits.positions,
        });
    }
    Ok(())
}

/// For how many tokens a cache gets room. A limit that is far away is no reason to reserve memory.
pub(crate) fn room(prompt: usize, limits: &Limits) -> usize {
    let new = limits.max_new_tokens.get().min(LARGEST_ROOM);
    (prompt + new).min(limits.positions)
}

/// The token that a row of logits `[rows, vocab]` chooses.
pub(crate) fn choose(sampling: &Sampling, logits: &Tensor, row: usize, index: u64) -> Result<u32> {
    let row = logits.get(row).and_then(|row| row.to_device(&Device::Cpu));
    let row = row.map_err(lowrank_ops::Error::from)?;
    if row.dtype() == DType::F32 && sampling.temperature.get() == 0.0 {
        // Most of the time there is one finite maximum, which needs no numbers in f64.
        let numbers = lowrank_ops::data::<f32>(&row)?;
        if let Some(token) = likeliest_single(&numbers) {
            return Ok(token);
        }
    }
    let numbers = || row.to_dtype(DType::F64)?.to_vec1::<f64>();
    let numbers = numbers().map_err(lowrank_ops::Error::from)?;
    sampling.choose(&numbers, index)
}

impl Iterator for Continuation<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish.is_some() || self.unread.is_empty() {
            return None;
        }
        let next = self.step().transpose();
        if let Some(Err(_)) = next {
            self.unread.clear();
        }
        next
    }
}
