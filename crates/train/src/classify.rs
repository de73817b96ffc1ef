//! What a classifier knows: the class, or the value, that it gives each row.

use crate::choices::best;
use crate::error::Result;
use crate::evaluate::{Evaluation, Sum, batch};
use crate::task_metrics::{of_classes, of_values};
use candle_core::DType;
use lowrank_adapter::{Ask, Model, Pass, Selection, run};
use lowrank_data::Examples;
use serde::Serialize;
use std::borrow::Cow;
use std::num::NonZeroUsize;

/// What a model gives a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Classified {
    /// The row, from 0.
    pub index: usize,
    /// A logit a class, or the value of a regression alone.
    pub scores: Vec<f64>,
    /// The class of the highest logit, the first of several, or the value; none if no logit is a number.
    pub prediction: Option<Answer>,
    /// What the row's label says, if it has one.
    pub answer: Option<Answer>,
    /// Whether they are the same class; none for a regression.
    pub correct: Option<bool>,
}

/// The class of a row, or its value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// One of several classes, from 0.
    Class(usize),
    /// The value of a regression.
    Value(f64),
}

/// Runs every row through a classifier, rows of similar length side by side, and gives what it makes of them in the order
/// of the rows. The loss is the mean over rows of the cross-entropy, or of the squared error where the model gives a row one
/// number; metrics are over the rows with labels. `before_each` is called before each batch.
///
/// # Errors
/// Whatever the model or `before_each` refuses; a model without a head for classes refuses all.
pub fn classify<'a>(
    model: &dyn Model,
    selection: &Selection,
    examples: impl Into<Examples<'a>>,
    batch_size: NonZeroUsize,
    before_each: &mut dyn FnMut() -> Result<()>,
) -> Result<(Evaluation, Vec<Classified>)> {
    let examples = examples.into();
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&row| examples.tokens(row));
    let mut scores: Vec<Vec<f64>> = vec![Vec::new(); examples.len()];
    let mut labels = vec![None; examples.len()];
    for rows in order.chunks(batch_size.get()) {
        before_each()?;
        let held = rows.iter().map(|&row| examples.get(row));
        let held = held.collect::<lowrank_data::Result<Vec<_>>>()?;
        for (&row, example) in rows.iter().zip(&held) {
            labels[row] = example.label;
        }
        let batch = batch(held.iter().map(Cow::as_ref))?;
        let mut pass = Pass::evaluation(selection.clone());
        let given = run(model, &batch, &Ask::Classes, None, &mut pass)?;
        let given = given.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
        for (&row, numbers) in rows.iter().zip(given) {
            scores[row] = numbers;
        }
    }
    let classified: Vec<Classified> = (0..)
        .zip(scores)
        .zip(labels)
        .map(|((index, scores), label)| Classified::new(index, scores, label))
        .collect();
    let tokens = (0..examples.len()).map(|row| examples.tokens(row) as u64);
    Ok((judge(&classified, tokens.sum()), classified))
}

impl Classified {
    fn new(index: usize, scores: Vec<f64>, label: Option<f64>) -> Self {
        let (prediction, answer) = match scores.as_slice() {
            [value] => (Some(Answer::Value(*value)), label.map(Answer::Value)),
            scores => (
                best(scores.iter().copied()).map(Answer::Class),
                // Labels were read as classes.
                label.map(|label| Answer::Class(label as usize)),
            ),
        };
        let correct = match (scores.len(), answer) {
            (1, _) | (_, None) => None,
            (_, Some(_)) => Some(prediction == answer),
        };
        Self {
            index,
            scores,
            prediction,
            answer,
            correct,
        }
    }

    /// The loss of the row, if it has a label.
    fn loss(&self) -> Option<f64> {
        match self.answer? {
            Answer::Value(value) => Some((self.scores.first()? - value).powi(2)),
            Answer::Class(class) => {
                let logit = self.scores.get(class)?;
                let max = self
                    .scores
                    .iter()
                    .copied()
                    .fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = self.scores.iter().map(|score| (score - max).exp()).sum();
                Some(max + sum.ln() - logit)
            }
        }
    }
}

fn judge(classified: &[Classified], tokens: u64) -> Evaluation {
    let losses: Vec<f64> = classified.iter().filter_map(Classified::loss).collect();
    let mut evaluation = Evaluation {
        examples: classified.len() as u64,
        tokens,
        ..Evaluation::default()
    };
    if losses.is_empty() {
        return evaluation;
    }
    evaluation.loss = Some(losses.iter().sum::<f64>() / losses.len() as f64);
    let labels = classified.first().map_or(0, |row| row.scores.len());
    let (mut classes, mut values) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for row in classified {
        match (row.prediction, row.answer) {
            (Some(Answer::Value(given)), Some(Answer::Value(value))) => {
                values.0.push(given);
                values.1.push(value);
            }
            (given, Some(Answer::Class(class))) => {
                // What is no number is no class: it is counted as one more, which is never right.
                classes.0.push(match given {
                    Some(Answer::Class(given)) => given,
                    _ => labels,
                });
                classes.1.push(class);
            }
            _ => {}
        }
    }
    evaluation.metrics = match labels {
        1 => of_values(&values.0, &values.1),
        labels => of_classes(&classes.0, &classes.1, labels),
    };
    evaluation.accuracy = evaluation.metrics.get("accuracy").copied();
    let mut right = Sum::default();
    for correct in classified.iter().filter_map(|row| row.correct) {
        right.hit(correct);
    }
    evaluation.accuracy_interval = right.interval();
    evaluation
}
