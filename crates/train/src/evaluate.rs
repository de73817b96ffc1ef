//! What a model knows: losses and logits, batch by batch. Nothing is kept from one batch to the next, and rows
//! are never packed: what is evaluated does not depend on how a run was trained.

use crate::error::Result;
use crate::interval::wilson;
use candle_core::{DType, Tensor};
use lowrank_adapter::{Ask, Batch, Model, Pass, Selection, Tokens, run};
use lowrank_data::{Example, Examples, Padded};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// What an evaluation gave, over all rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluation {
    /// How many rows there were.
    pub examples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// How many predictions count in the loss.
    pub supervised_tokens: u64,
    /// The mean loss of those predictions; none if there are none.
    pub loss: Option<f64>,
    /// The share of rows whose best choice is the right one; none unless rows say which one is.
    pub accuracy: Option<f64>,
    /// Its 95 % confidence interval, as [`wilson`] gives it.
    pub accuracy_interval: Option<(f64, f64)>,
    /// The accuracy with scores divided by the choices' lengths in UTF-8 bytes.
    pub accuracy_norm: Option<f64>,
    /// Its interval.
    pub accuracy_norm_interval: Option<(f64, f64)>,
    /// What else the task is judged by, by name.
    pub metrics: BTreeMap<String, f64>,
}

/// Sums that a mean is made of.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) total: f64,
    pub(crate) count: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, other: Self) {
        self.total += other.total;
        self.count += other.count;
    }

    pub(crate) fn hit(&mut self, hit: bool) {
        self.total += f64::from(u8::from(hit));
        self.count += 1;
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.total / self.count as f64)
    }

    /// Where the true share of hits lies, with 95 % confidence.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        (self.count > 0).then(|| wilson(self.total as u64, self.count))
    }
}

/// The rows as a model reads them.
///
/// # Errors
/// If there is no row, or no row has a token.
pub fn batch<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Result<Batch> {
    laid_out(Padded::collate(examples))
}

/// The rows of each sequence as a model reads them, one behind the other.
///
/// # Errors
/// If there is no row, or no row has a token.
pub fn packed<'a, S>(sequences: impl IntoIterator<Item = S>) -> Result<Batch>
where
    S: IntoIterator<Item = &'a Example>,
{
    laid_out(Padded::pack(sequences))
}

pub(crate) fn laid_out(padded: Padded) -> Result<Batch> {
    let tokens = Tokens {
        rows: padded.rows,
        length: padded.length,
        ids: padded.ids,
        segments: padded.segments,
        positions: padded.positions,
    };
    let mut batch = Batch::new(tokens, padded.labels)?;
    if let Some(types) = padded.types {
        batch = batch.with_types(types)?;
    }
    if let Some(labels) = padded.row_labels {
        batch = batch.with_row_labels(labels)?;
    }
    Ok(batch)
}

/// The loss of every row, in batches of `batch_size` rows. `before_each` is called before each batch.
///
/// # Errors
/// Whatever the model or `before_each` refuses, or if a row cannot be read.
pub fn loss<'a>(
    model: &dyn Model,
    selection: &Selection,
    examples: impl Into<Examples<'a>>,
    batch_size: NonZeroUsize,
    before_each: &mut dyn FnMut() -> Result<()>,
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::default();
    let mut sum = Sum::default();
    let mut rows = examples.into().iter();
    loop {
        let chunk = rows.by_ref().take(batch_size.get());
        let chunk = chunk.collect::<lowrank_data::Result<Vec<Cow<'_, Example>>>>()?;
        if chunk.is_empty() {
            break;
        }
        before_each()?;
        evaluation.examples += chunk.len() as u64;
        evaluation.tokens += chunk.iter().map(|row| row.ids.len() as u64).sum::<u64>();
        if chunk.iter().any(|row| row.supervised() > 0) {
            let rows = chunk.iter().map(Cow::as_ref);
            sum.add(batch_loss(model, selection, &batch(rows)?)?);
        }
    }
    evaluation.supervised_tokens = sum.count;
    evaluation.loss = sum.mean();
    Ok(evaluation)
}

fn batch_loss(model: &dyn Model, selection: &Selection, batch: &Batch) -> Result<Sum> {
    let mut pass = Pass::evaluation(selection.clone());
    let losses = numbers(&run(model, batch, &Ask::Losses, None, &mut pass)?)?;
    Ok(Sum {
        total: losses.iter().sum(),
        count: losses.len() as u64,
    })
}

/// The logits of a row, `[tokens, vocab]`: at each token what predicts the next.
///
/// # Errors
/// If the row is empty, and whatever the model refuses.
pub fn logits(model: &dyn Model, selection: &Selection, ids: &[u32]) -> Result<Tensor> {
    let batch = Batch::sequence(ids, 0)?;
    let ask = Ask::Logits((0u32..).take(ids.len()).collect());
    let mut pass = Pass::evaluation(selection.clone());
    Ok(run(model, &batch, &ask, None, &mut pass)?)
}

/// The numbers of a vector, detached.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?)
}
