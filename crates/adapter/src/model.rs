//! A model is its blocks, so that the trainer can cut the graph between them and a probe can start in the middle.

use crate::kv_cache::KvCache;
use crate::linear::{Embedding, Linear, Norm};
use crate::{Error, Pass, Result};
use candle_core::Tensor;
use lowrank_ops::AttentionMask;
use std::sync::Arc;

/// A label that supervises nothing.
pub const UNSUPERVISED: i32 = -100;

/// The rectangle of tokens that a pass works on, row-major `[rows, length]`, padded on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Number of sequences.
    pub rows: usize,
    /// Length of each, padding included.
    pub length: usize,
    /// Token ids; 0 where padded.
    pub ids: Vec<u32>,
    /// 0 is padding; tokens attend only to their own segment.
    pub segments: Vec<u32>,
    /// Rotary positions; they restart with each segment.
    pub positions: Vec<u32>,
}

impl Tokens {
    /// Unsupervised texts that end together: shorter ones have padding before them, so that each is in one piece and the
    /// next tokens follow all of them at the same place.
    #[must_use]
    pub fn ending_together(texts: &[&[u32]]) -> Self {
        let length = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let mut tokens = Self {
            rows: texts.len(),
            length,
            ids: Vec::new(),
            segments: Vec::new(),
            positions: Vec::new(),
        };
        for text in texts {
            let padding = length - text.len();
            for numbers in [&mut tokens.ids, &mut tokens.segments, &mut tokens.positions] {
                numbers.extend(std::iter::repeat_n(0, padding));
            }
            tokens.ids.extend(*text);
            tokens.segments.extend(std::iter::repeat_n(1, text.len()));
            tokens.positions.extend(0..text.len() as u32);
        }
        tokens
    }

    /// How many tokens are not padding.
    #[must_use]
    pub fn count(&self) -> usize {
        self.segments
            .iter()
            .filter(|&&segment| segment != 0)
            .count()
    }

    /// Where each segment lies, padding left out: its first token's flat index and its length, in order.
    pub(crate) fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs = Vec::with_capacity(self.rows);
        for (row, segments) in self.segments.chunks(self.length.max(1)).enumerate() {
            let mut start = row * self.length;
            for run in segments.chunk_by(|a, b| a == b) {
                if run[0] != 0 {
                    runs.push((start, run.len()));
                }
                start += run.len();
            }
        }
        runs
    }
}

/// Tokens and what supervises them.
#[derive(Debug, Clone)]
pub struct Batch {
    tokens: Arc<Tokens>,
    labels: Vec<i32>,
    types: Option<Vec<u32>>,
    row_labels: Option<Vec<Option<f64>>>,
}

impl Batch {
    /// `labels[i]` supervises the prediction *of* token i (made at i - 1); [`UNSUPERVISED`] supervises nothing.
    ///
    /// # Errors
    /// If the vectors do not all have `rows * length` entries.
    pub fn new(tokens: Tokens, labels: Vec<i32>) -> Result<Self> {
        let size = tokens.rows * tokens.length;
        for (what, len) in [
            ("ids", tokens.ids.len()),
            ("segments", tokens.segments.len()),
            ("positions", tokens.positions.len()),
            ("labels", labels.len()),
        ] {
            if len != size || size == 0 {
                return Err(Error::Other(format!(
                    "a batch of {} x {} tokens has {len} {what}",
                    tokens.rows, tokens.length
                )));
            }
        }
        Ok(Self {
            tokens: Arc::new(tokens),
            labels,
            types: None,
            row_labels: None,
        })
    }

    /// With the type of every token, `rows * length` of them: 1 in the second text of a pair. Encoders read them.
    ///
    /// # Errors
    /// If there are not as many types as tokens.
    pub fn with_types(self, types: Vec<u32>) -> Result<Self> {
        let tokens = self.labels.len();
        if types.len() != tokens {
            let what = format!("a batch of {tokens} tokens has {} types", types.len());
            return Err(Error::Other(what));
        }
        let types = Some(types);
        Ok(Self { types, ..self })
    }

    /// With what supervises whole rows, one a row: the index of a class, or the value of a regression. A classifier's
    /// losses are of these rows.
    ///
    /// # Errors
    /// If there are not as many labels as rows.
    pub fn with_row_labels(self, labels: Vec<Option<f64>>) -> Result<Self> {
        let rows = self.tokens.rows;
        if labels.len() != rows {
            let what = format!("a batch of {rows} rows has {} labels of rows", labels.len());
            return Err(Error::Other(what));
        }
        let row_labels = Some(labels);
        Ok(Self { row_labels, ..self })
    }

    /// Tokens that nothing supervises.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn unsupervised(tokens: Tokens) -> Result<Self> {
        let labels = vec![UNSUPERVISED; tokens.ids.len()];
        Self::new(tokens, labels)
    }

    /// One unsupervised sequence that starts at `position`, for generation and for logits.
    ///
    /// # Errors
    /// If `ids` is empty.
    pub fn sequence(ids: &[u32], position: u32) -> Result<Self> {
        let length = ids.len();
        let tokens = Tokens {
            rows: 1,
            length,
            ids: ids.to_vec(),
            segments: vec![1; length],
            positions: (position..).take(length).collect(),
        };
        Self::unsupervised(tokens)
    }

    /// The same rows several times over.
    pub(crate) fn repeated(&self, copies: usize) -> Result<Self> {
        let Tokens {
            rows,
            length,
            ids,
            segments,
            positions,
        } = &*self.tokens;
        let tokens = Tokens {
            rows: rows * copies,
            length: *length,
            ids: ids.repeat(copies),
            segments: segments.repeat(copies),
            positions: positions.repeat(copies),
        };
        Ok(Self {
            types: self.types.as_ref().map(|types| types.repeat(copies)),
            row_labels: self.row_labels.as_ref().map(|rows| rows.repeat(copies)),
            ..Self::new(tokens, self.labels.repeat(copies))?
        })
    }

    /// The tokens.
    #[must_use]
    pub fn tokens(&self) -> &Arc<Tokens> {
        &self.tokens
    }

    /// The type of each token, if there are types; all are 0 otherwise.
    #[must_use]
    pub fn types(&self) -> Option<&[u32]> {
        self.types.as_deref()
    }

    /// What supervises each row, if rows are supervised as a whole.
    #[must_use]
    pub fn row_labels(&self) -> Option<&[Option<f64>]> {
        self.row_labels.as_deref()
    }

    /// The rows that are supervised as a whole, with their labels, in order: what a classifier's losses are of.
    #[must_use]
    pub fn row_targets(&self) -> Vec<(u32, f64)> {
        let rows = (0..).zip(self.row_labels.iter().flatten());
        rows.filter_map(|(row, label)| Some((row, (*label)?)))
            .collect()
    }

    /// How many losses [`Ask::Losses`] gives: those of rows if rows are supervised as a whole, of tokens otherwise.
    #[must_use]
    pub fn supervised(&self) -> usize {
        match &self.row_labels {
            Some(_) => self.row_targets().len(),
            None => self.targets().len(),
        }
    }

    /// Pairs of (flat position that predicts, target), row-major, where every token is predicted in its own place, as
    /// encoders predict those that are masked.
    #[must_use]
    pub fn targets_in_place(&self) -> Vec<(u32, u32)> {
        let labels = (0..).zip(&self.labels).zip(&self.tokens.segments);
        labels
            .filter(|((_, label), segment)| **label >= 0 && **segment != 0)
            .map(|((at, label), _)| (at, *label as u32))
            .collect()
    }

    /// Pairs of (flat position that predicts, target), row-major: token i is predicted at i - 1 of its row, and only
    /// within its own segment.
    #[must_use]
    pub fn targets(&self) -> Vec<(u32, u32)> {
        let Tokens {
            length, segments, ..
        } = &*self.tokens;
        let supervised = |&at: &usize| {
            at % length != 0
                && segments[at] == segments[at - 1]
                && segments[at] != 0
                && self.labels[at] >= 0
        };
        (0..self.labels.len())
            .filter(supervised)
            .map(|at| (at as u32 - 1, self.labels[at] as u32))
            .collect()
    }
}

/// What the head is asked for.
#[derive(Debug, Clone)]
pub enum Ask {
    /// The loss of each of [`Batch::targets`] (of an encoder's [`Batch::targets_in_place`]), or of a classifier's
    /// [`Batch::row_targets`], in that order.
    Losses,
    /// Logits at these flat positions: `[positions, vocab]`.
    Logits(Vec<u32>),
    /// What a classifier makes of each row: `[rows, num_labels]`.
    Classes,
    /// The last hidden state, after the last norm: `[rows, length, hidden]`.
    Hidden,
}

impl Ask {
    /// What a model's head answers to an ask that it has nothing for.
    #[must_use]
    pub fn refused(&self, model: &str) -> Error {
        let (wanted, head) = match self {
            Self::Losses => ("losses", "a head"),
            Self::Logits(_) => ("logits of tokens", "a head that predicts tokens"),
            Self::Classes => ("classes", "a classification head"),
            Self::Hidden => ("hidden states", "a last norm"),
        };
        Error::Other(format!("a {model} without {head} was asked for {wanted}"))
    }
}

/// A part of a model, as `Model::parts` shows it.
#[derive(Debug)]
pub enum Part<'a> {
    /// A linear layer.
    Linear(&'a mut Linear),
    /// The linear layer that makes logits or classes: "all-linear" leaves it out.
    Head(&'a mut Linear),
    /// An embedding.
    Embedding(&'a mut Embedding),
    /// A norm.
    Norm(&'a mut Norm),
}

/// A model that adapters can attach to.
pub trait Model: Send + Sync {
    /// The `model_type` of its config.json: `llama`, `bert`.
    fn model_type(&self) -> &str;

    /// Every part that holds weights, in the order of the forward pass.
    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>));

    /// Tokens to the first hidden state, `[rows, length, hidden]`; the words by [`Embedding::forward_tokens`].
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    fn embed(&self, batch: &Batch, pass: &mut Pass) -> Result<Tensor>;

    /// The number of blocks.
    fn blocks(&self) -> usize;

    /// Block `i`: hidden state to hidden state of the same shape.
    ///
    /// # Errors
    /// If a shape or an operation is refused.
    fn block(
        &self,
        i: usize,
        h: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> Result<Tensor>;

    /// The last hidden state to what is asked.
    ///
    /// # Errors
    /// If a target is not in the vocabulary.
    fn head(&self, h: &Tensor, batch: &Batch, ask: &Ask, pass: &mut Pass) -> Result<Tensor>;
}

/// Runs a whole model: embedding, blocks, head. With a cache, the batch continues what the cache holds.
///
/// # Errors
/// Whatever the model refuses.
pub fn run(
    model: &dyn Model,
    batch: &Batch,
    ask: &Ask,
    kv: Option<&mut KvCache>,
    pass: &mut Pass,
) -> Result<Tensor> {
    // Handing a loop to the pool from outside costs two changes of threads; a pass has hundreds of loops.
    rayon::scope(|_| run_here(model, batch, ask, kv, pass))
}

fn run_here(
    model: &dyn Model,
    batch: &Batch,
    ask: &Ask,
    mut kv: Option<&mut KvCache>,
    pass: &mut Pass,
) -> Result<Tensor> {
    pass.set_tokens(batch.tokens());
    let mut h = embed(model, batch, pass)?;
    for i in 0..model.blocks() {
        h = model.block(i, &h, batch, kv.as_deref_mut(), pass)?;
    }
    if let Some(kv) = kv {
        kv.advance(batch);
    }
    model.head(&h, batch, ask, pass)
}

/// The first hidden state, with the noise of a pass that has any.
pub(crate) fn embed(model: &dyn Model, batch: &Batch, pass: &mut Pass) -> Result<Tensor> {
    let h = model.embed(batch, pass)?;
    pass.check_noise(model.model_type())?;
    Ok(h)
}

/// What tokens may see without a cache: earlier ones of their own segment.
#[must_use]
pub fn causal_mask(batch: &Batch) -> AttentionMask {
    KvCache::new().mask(batch)
}
