//! Several texts continued side by side: each step is one pass, which reads the weights once for all of them.

use crate::generate::{Finish, Limits, choose, refuse, room};
use crate::{Result, Sampling};
use candle_core::Tensor;
use lowrank_adapter::{Ask, Batch, KvCache, Model, Pass, Selection, Tokens, run};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

/// What was written after one of several prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// The new tokens, without the end token.
    pub ids: Vec<u32>,
    /// Why they end.
    pub finish: Finish,
}

/// Continues prompts of any number and any lengths, `side_by_side` at a time, and returns what was written after each, in
/// their order. Each text is the one that [`crate::Continuation`] writes alone, up to rounding. `each` is handed every new
/// token with the number of its prompt, and ends that text by a break, as a stop string does.
///
/// The longest prompts come first, so that those side by side are of similar lengths. Texts that have ended leave, and
/// others take their places, as soon as they are a quarter: rearranging a cache costs a copy of it.
///
/// # Errors
/// If a prompt has no token, or as many as the model reads; whatever the model refuses.
pub fn continue_all(
    model: &dyn Model,
    selection: &Selection,
    prompts: &[&[u32]],
    sampling: Sampling,
    limits: &Limits,
    side_by_side: NonZeroUsize,
    each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Continued>> {
    for prompt in prompts {
        refuse(prompt, limits)?;
    }
    let mut waiting: Vec<usize> = (0..prompts.len()).collect();
    waiting.sort_by_key(|&index| (prompts[index].len(), std::cmp::Reverse(index)));
    let mut desk = Desk {
        model,
        selection,
        sampling,
        limits,
        each,
        cache: KvCache::new(),
        texts: Vec::new(),
    };
    let mut written: Vec<Option<Continued>> = vec![None; prompts.len()];
    loop {
        let live = desk.texts.iter().filter(|text| text.is_live()).count();
        let ended = desk.texts.len() - live;
        if live == 0 || 4 * ended >= side_by_side.get() {
            let free = (side_by_side.get() - live).min(waiting.len());
            let new: Vec<(usize, &[u32])> = waiting
                .drain(waiting.len() - free..)
                .rev()
                .map(|index| (index, prompts[index]))
                .collect();
            for text in desk.rearrange(&new)? {
                written[text.index] = text.finish.map(|finish| Continued {
                    ids: text.ids,
                    finish,
                });
            }
            if desk.texts.is_empty() {
                break;
            }
            // The first tokens of the new ones may be their last.
            continue;
        }
        desk.step()?;
    }
    let written = written
        .into_iter()
        .map(|text| text.expect("every text has ended"));
    Ok(written.collect())
}

/// The texts that are being written, a row of the cache each.
struct Desk<'a> {
    model: &'a dyn Model,
    selection: &'a Selection,
    sampling: Sampling,
    limits: &'a Limits,
    each: &'a mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    cache: KvCache,
    texts: Vec<Text>,
}

/// A text that is being written, or has ended.
struct Text {
    /// Which prompt it follows.
    index: usize,
    ids: Vec<u32>,
    /// How many tokens there are with the prompt.
    length: usize,
    finish: Option<Finish>,
}

impl Text {
    const fn is_live(&self) -> bool {
        self.finish.is_none()
    }
}

impl Desk<'_> {
    /// Texts that have ended leave and are returned; new prompts come and get their first tokens.
    fn rearrange(&mut self, new: &[(usize, &[u32])]) -> Result<Vec<Text>> {
        let (old, old_cache) = (
            std::mem::take(&mut self.texts),
            std::mem::take(&mut self.cache),
        );
        let mut ended = Vec::new();
        let mut rows: Vec<(&KvCache, usize)> = Vec::new();
        for (row, text) in old.into_iter().enumerate() {
            if text.is_live() {
                rows.push((&old_cache, row));
                self.texts.push(text);
            } else {
                ended.push(text);
            }
        }
        let mut new_cache = KvCache::new();
        if !new.is_empty() {
            let prompts: Vec<&[u32]> = new.iter().map(|(_, prompt)| *prompt).collect();
            let batch = Batch::unsupervised(Tokens::ending_together(&prompts))?;
            let length = batch.tokens().length as u32;
            let last = (1..=new.len() as u32).map(|row| row * length - 1).collect();
            let logits = self.logits(&batch, last, &mut new_cache)?;
            for (row, (index, prompt)) in new.iter().enumerate() {
                let mut text = Text {
                    index: *index,
                    ids: Vec::new(),
                    length: prompt.len(),
                    finish: None,
                };
                self.extend(&mut text, &logits, row)?;
                rows.push((&new_cache, row));
                self.texts.push(text);
            }
        }
        let rooms = self.texts.iter().map(|text| room(text.length, self.limits));
        self.cache = KvCache::beside(&rows, rooms.max().unwrap_or(0))?;
        Ok(ended)
    }

    /// Every live text gets a token; what has ended goes on as padding.
    fn step(&mut self) -> Result<()> {
        let batch = next(&self.texts)?;
        let live: Vec<u32> = (0u32..)
            .zip(&self.texts)
            .filter_map(|(row, text)| text.is_live().then_some(row))
            .collect();
        let mut cache = std::mem::take(&mut self.cache);
        let logits = self.logits(&batch, live, &mut cache)?;
        self.cache = cache;
        let mut texts = std::mem::take(&mut self.texts);
        let live = texts.iter_mut().filter(|text| text.is_live());
        for (place, text) in live.enumerate() {
            self.extend(text, &logits, place)?;
        }
        self.texts = texts;
        Ok(())
    }

    fn logits(&self, batch: &Batch, places: Vec<u32>, cache: &mut KvCache) -> Result<Tensor> {
        let mut pass = Pass::evaluation(self.selection.clone());
        let asked = Ask::Logits(places);
        Ok(run(self.model, batch, &asked, Some(cache), &mut pass)?)
    }

    /// Writes the token that a row of logits chooses.
    fn extend(&mut self, text: &mut Text, logits: &Tensor, row: usize) -> Result<()> {
        let token = choose(&self.sampling, logits, row, text.ids.len() as u64)?;
        if self.limits.end_tokens.contains(&token) {
            text.finish = Some(Finish::Stop);
            return Ok(());
        }
        text.ids.push(token);
        text.length += 1;
        let full = text.length >= self.limits.positions
            || text.ids.len() >= self.limits.max_new_tokens.get();
        if (self.each)(text.index, token).is_break() {
            text.finish = Some(Finish::Stop);
        } else if full {
            text.finish = Some(Finish::Length);
        }
        Ok(())
    }
}

/// The last token of every text; padding where it has ended.
fn next(texts: &[Text]) -> Result<Batch> {
    let last = |text: &Text| match (text.finish, text.ids.last()) {
        (None, Some(id)) => (*id, 1, text.length as u32 - 1),
        _ => (0, 0, 0),
    };
    let mut tokens = Tokens {
        rows: texts.len(),
        length: 1,
        ids: Vec::new(),
        segments: Vec::new(),
        positions: Vec::new(),
    };
    for (id, segment, position) in texts.iter().map(last) {
        tokens.ids.push(id);
        tokens.segments.push(segment);
        tokens.positions.push(position);
    }
    Ok(Batch::unsupervised(tokens)?)
}
