//! What a model knows: losses, choices and logits, batch by batch. Nothing is kept from one batch to the next, and rows
//! are never packed: what is evaluated does not depend on how a run was trained.

use crate::error::Result;
use candle_core::{DType, Tensor};
use lowrank_adapter::{Ask, Batch, KvCache, Model, Pass, Selection, Tokens, run};
use lowrank_data::{ChoiceExample, Example, Examples, Padded, UNSUPERVISED};
use serde::Serialize;
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
    /// The same with scores divided by the choices' lengths in UTF-8 bytes.
    pub accuracy_norm: Option<f64>,
    /// What else the task is judged by, by name.
    pub metrics: BTreeMap<String, f64>,
}

/// What a model makes of a multiple choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The row, from 0.
    pub index: usize,
    /// The sum of the log-probabilities of each choice's tokens, without the end token; negative infinity (null in
    /// JSON) for a choice that was cut to nothing.
    pub scores: Vec<f64>,
    /// The choice with the highest score, the first of several; none if no score is finite.
    pub prediction: Option<usize>,
    /// The right choice, if the row says so.
    pub answer: Option<usize>,
    /// Whether they are the same, if the row says so.
    pub correct: Option<bool>,
}

/// Sums that a mean is made of.
#[derive(Debug, Default)]
struct Sum {
    total: f64,
    count: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.total += other.total;
        self.count += other.count;
    }

    fn hit(&mut self, hit: bool) {
        self.total += f64::from(u8::from(hit));
        self.count += 1;
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.total / self.count as f64)
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

fn laid_out(padded: Padded) -> Result<Batch> {
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

/// The loss of every row, in batches of `batch_size` rows.
///
/// # Errors
/// Whatever the model refuses, or if a row cannot be read.
pub fn loss<'a>(
    model: &dyn Model,
    selection: &Selection,
    examples: impl Into<Examples<'a>>,
    batch_size: NonZeroUsize,
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

/// Scores multiple choices and hands each prediction to `each`. A question's prompt runs once, its choices continue it
/// in batches of `batch_size`. The loss is that of the examples: each is the prompt and the right completion with its
/// end token, as the data set made it from the same row.
///
/// # Errors
/// Whatever the model or `each` refuses.
pub fn choices<'a>(
    model: &dyn Model,
    selection: &Selection,
    rows: impl IntoIterator<Item = (&'a Example, &'a ChoiceExample)>,
    batch_size: NonZeroUsize,
    each: &mut dyn FnMut(Prediction) -> Result<()>,
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::default();
    let (mut loss, mut right, mut right_norm) = (Sum::default(), Sum::default(), Sum::default());
    for (index, (example, question)) in rows.into_iter().enumerate() {
        evaluation.examples += 1;
        evaluation.tokens += example.ids.len() as u64;
        let asked = Asked::new(example, question);
        let losses = asked.losses(model, selection, batch_size)?;
        loss.add(asked.completion_loss(&losses));

        let scores: Vec<f64> = losses
            .iter()
            .zip(&question.choices)
            .map(|(losses, choice)| match choice.len() {
                // Nothing to be wrong about must not win.
                0 => f64::NEG_INFINITY,
                length => -losses[..length].iter().sum::<f64>(),
            })
            .collect();
        let bytes = question.choice_bytes.iter();
        let normed = scores
            .iter()
            .zip(bytes)
            .map(|(score, &bytes)| score / bytes.max(1) as f64);
        let (prediction, prediction_norm) = (best(scores.iter().copied()), best(normed));
        let correct = question.gold.map(|gold| prediction == Some(gold));
        if let (Some(gold), Some(correct)) = (question.gold, correct) {
            right.hit(correct);
            right_norm.hit(prediction_norm == Some(gold));
        }
        each(Prediction {
            index,
            scores,
            prediction,
            answer: question.gold,
            correct,
        })?;
    }
    evaluation.supervised_tokens = loss.count;
    evaluation.loss = loss.mean();
    evaluation.accuracy = right.mean();
    evaluation.accuracy_norm = right_norm.mean();
    Ok(evaluation)
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

/// The highest of a few numbers, the first of several; none if none is a number.
pub(crate) fn best(scores: impl Iterator<Item = f64>) -> Option<usize> {
    let (mut best, mut highest) = (None, f64::NEG_INFINITY);
    for (index, score) in scores.enumerate() {
        if score > highest {
            (best, highest) = (Some(index), score);
        }
    }
    best
}

/// A prompt and everything that may follow it.
struct Asked<'a> {
    prompt: &'a [u32],
    /// The choices, one of them with the end token of the completion, or else the completion behind them.
    follow: Vec<&'a [u32]>,
    /// Which of them is the completion, and the labels of its tokens; none if it was cut off.
    completion: Option<(usize, &'a [i32])>,
}

impl<'a> Asked<'a> {
    fn new(example: &'a Example, question: &'a ChoiceExample) -> Self {
        let prompt = question.prompt.as_slice();
        let mut follow: Vec<&[u32]> = question.choices.iter().map(Vec::as_slice).collect();
        let completion = example
            .ids
            .strip_prefix(prompt)
            .filter(|completion| !completion.is_empty());
        let completion = completion.map(|completion| {
            let labels = &example.labels[prompt.len()..];
            // The right choice is nearly always the beginning of the completion: they run as one.
            let gold = question
                .gold
                .filter(|&gold| completion.starts_with(follow[gold]));
            let at = gold.unwrap_or_else(|| {
                follow.push(completion);
                follow.len() - 1
            });
            follow[at] = completion;
            (at, labels)
        });
        Self {
            prompt,
            follow,
            completion,
        }
    }

    fn completion_loss(&self, losses: &[Vec<f64>]) -> Sum {
        let mut sum = Sum::default();
        if let Some((at, labels)) = self.completion {
            for (loss, _) in losses[at]
                .iter()
                .zip(labels)
                .filter(|(_, label)| **label != UNSUPERVISED)
            {
                sum.total += loss;
                sum.count += 1;
            }
        }
        sum
    }

    /// The loss of every token that may follow.
    fn losses(
        &self,
        model: &dyn Model,
        selection: &Selection,
        batch_size: NonZeroUsize,
    ) -> Result<Vec<Vec<f64>>> {
        let mut kv = KvCache::new();
        let prompt = Batch::sequence(self.prompt, 0)?;
        let last = Ask::Logits(vec![self.prompt.len() as u32 - 1]);
        let mut pass = Pass::evaluation(selection.clone());
        let logits =
            numbers(&run(model, &prompt, &last, Some(&mut kv), &mut pass)?.flatten_all()?)?;
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max
            + logits
                .iter()
                .map(|logit| (logit - max).exp())
                .sum::<f64>()
                .ln();
        let first = |ids: &[u32]| -> Result<Option<f64>> {
            let Some(&id) = ids.first() else {
                return Ok(None);
            };
            let logit = logits.get(id as usize).ok_or(lowrank_ops::Error::Index {
                op: "choices",
                index: id as usize,
                len: logits.len(),
            })?;
            Ok(Some(log_sum - logit))
        };
        let mut losses: Vec<Vec<f64>> = Vec::with_capacity(self.follow.len());
        for ids in &self.follow {
            losses.push(first(ids)?.into_iter().collect());
        }
        // What is only one token long is scored already.
        let longer: Vec<usize> = (0..self.follow.len())
            .filter(|&i| self.follow[i].len() > 1)
            .collect();
        for rows in longer.chunks(batch_size.get()) {
            let batch = self.continued(rows)?;
            let mut kv = kv.repeat(rows.len())?;
            let mut pass = Pass::evaluation(selection.clone());
            let all = numbers(&run(model, &batch, &Ask::Losses, Some(&mut kv), &mut pass)?)?;
            let mut all = all.into_iter();
            for &row in rows {
                losses[row].extend(all.by_ref().take(self.follow[row].len() - 1));
            }
        }
        Ok(losses)
    }

    /// Continuations of the prompt side by side; all but their first tokens are supervised.
    fn continued(&self, rows: &[usize]) -> Result<Batch> {
        let examples: Vec<Example> = rows
            .iter()
            .map(|&row| Example {
                ids: self.follow[row].to_vec(),
                // Tokens were checked against a vocabulary, which is far smaller.
                labels: self.follow[row].iter().map(|&id| id as i32).collect(),
                ..Example::default()
            })
            .collect();
        let mut padded = Padded::collate(&examples);
        for (position, segment) in padded.positions.iter_mut().zip(&padded.segments) {
            if *segment != 0 {
                *position += self.prompt.len() as u32;
            }
        }
        laid_out(padded)
    }
}

/// The numbers of a vector, detached.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?)
}
