//! Multiple choice: which of several texts a model finds the likeliest after a prompt.

use crate::error::Result;
use crate::evaluate::{Evaluation, Sum, laid_out, numbers};
use lowrank_adapter::{Ask, Batch, KvCache, Model, Pass, Selection, Tokens, run};
use lowrank_data::{ChoiceExample, Example, Padded, UNSUPERVISED};
use serde::Serialize;
use std::borrow::Cow;
use std::num::NonZeroUsize;

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

/// So many batches of questions are sorted by length, and then handed out.
const WINDOW: usize = 4;

/// Scores multiple choices and hands each prediction to `each`, in the order of the rows. The prompts of `batch_size`
/// questions of similar lengths run side by side, once; their choices continue them in batches of that size. The loss is
/// that of the examples: each is the prompt and the right completion with its end token, as the data set made it from the
/// same row. No more than four batches of rows are held. `before_each` is called before each batch of questions.
///
/// # Errors
/// If a row cannot be read, and whatever the model, `each` or `before_each` refuses.
pub fn choices<'a>(
    model: &dyn Model,
    selection: &Selection,
    rows: impl IntoIterator<Item = lowrank_data::Result<(Cow<'a, Example>, &'a ChoiceExample)>>,
    batch_size: NonZeroUsize,
    each: &mut dyn FnMut(Prediction) -> Result<()>,
    before_each: &mut dyn FnMut() -> Result<()>,
) -> Result<Evaluation> {
    let mut rows = rows.into_iter();
    let mut counted = Counted::default();
    loop {
        let some = rows.by_ref().take(batch_size.get().saturating_mul(WINDOW));
        let rows = some.collect::<lowrank_data::Result<Vec<_>>>()?;
        if rows.is_empty() {
            break;
        }
        let asked: Vec<Asked<'_>> = rows
            .iter()
            .map(|(example, question)| Asked::new(example, question))
            .collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| asked[row].prompt.len());
        let mut losses: Vec<Vec<Vec<f64>>> = vec![Vec::new(); rows.len()];
        for some in order.chunks(batch_size.get()) {
            before_each()?;
            let questions: Vec<&Asked<'_>> = some.iter().map(|&row| &asked[row]).collect();
            let found = follow(model, selection, &questions, batch_size)?;
            for (&row, found) in some.iter().zip(found) {
                losses[row] = found;
            }
        }
        for ((example, question), (asked, losses)) in rows.iter().zip(asked.iter().zip(&losses)) {
            counted.tokens += example.ids.len() as u64;
            counted.loss.add(asked.completion_loss(losses));
            each(counted.judge(question, losses))?;
        }
    }
    let Counted {
        examples,
        tokens,
        loss,
        right,
        right_norm,
    } = counted;
    Ok(Evaluation {
        examples: examples as u64,
        tokens,
        supervised_tokens: loss.count,
        loss: loss.mean(),
        accuracy: right.mean(),
        accuracy_interval: right.interval(),
        accuracy_norm: right_norm.mean(),
        accuracy_norm_interval: right_norm.interval(),
        ..Evaluation::default()
    })
}

/// What an evaluation adds up.
#[derive(Default)]
struct Counted {
    examples: usize,
    tokens: u64,
    loss: Sum,
    right: Sum,
    right_norm: Sum,
}

impl Counted {
    /// The next question, given the losses of all that may follow it.
    fn judge(&mut self, question: &ChoiceExample, losses: &[Vec<f64>]) -> Prediction {
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
            self.right.hit(correct);
            self.right_norm.hit(prediction_norm == Some(gold));
        }
        let index = self.examples;
        self.examples += 1;
        Prediction {
            index,
            scores,
            prediction,
            answer: question.gold,
            correct,
        }
    }
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
}

/// The loss of every token that may follow each question.
fn follow(
    model: &dyn Model,
    selection: &Selection,
    questions: &[&Asked<'_>],
    batch_size: NonZeroUsize,
) -> Result<Vec<Vec<Vec<f64>>>> {
    let mut kv = KvCache::new();
    let prompts: Vec<&[u32]> = questions.iter().map(|question| question.prompt).collect();
    let prompts = Batch::unsupervised(Tokens::ending_together(&prompts))?;
    let length = prompts.tokens().length as u32;
    // All prompts end at the right.
    let last = (1..=questions.len() as u32).map(|row| row * length - 1);
    let last = Ask::Logits(last.collect());
    let mut pass = Pass::evaluation(selection.clone());
    let logits = run(model, &prompts, &last, Some(&mut kv), &mut pass)?;
    let mut losses = Vec::with_capacity(questions.len());
    for (row, question) in questions.iter().enumerate() {
        losses.push(first_losses(&numbers(&logits.get(row)?)?, question)?);
    }
    // What is only one token long is scored already.
    let longer: Vec<(usize, usize)> = questions
        .iter()
        .enumerate()
        .flat_map(|(row, question)| (0..question.follow.len()).map(move |at| (row, at)))
        .filter(|&(row, at)| questions[row].follow[at].len() > 1)
        .collect();
    for some in longer.chunks(batch_size.get()) {
        let rows: Vec<(&KvCache, usize)> = some.iter().map(|(row, _)| (&kv, *row)).collect();
        let mut kv = KvCache::beside(&rows, 0)?;
        let batch = continued(questions, some)?;
        let mut pass = Pass::evaluation(selection.clone());
        let all = numbers(&run(model, &batch, &Ask::Losses, Some(&mut kv), &mut pass)?)?;
        let mut all = all.into_iter();
        for &(row, at) in some {
            let length = questions[row].follow[at].len();
            losses[row][at].extend(all.by_ref().take(length - 1));
        }
    }
    Ok(losses)
}

/// The loss of the first token of everything that may follow a question, given the logits at its end.
fn first_losses(logits: &[f64], question: &Asked<'_>) -> Result<Vec<Vec<f64>>> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let log_sum = max + sum.ln();
    let mut losses = Vec::with_capacity(question.follow.len());
    for ids in &question.follow {
        let Some(&id) = ids.first() else {
            losses.push(Vec::new());
            continue;
        };
        let logit = logits.get(id as usize).ok_or(lowrank_ops::Error::Index {
            op: "choices",
            index: id as usize,
            len: logits.len(),
        })?;
        losses.push(vec![log_sum - logit]);
    }
    Ok(losses)
}

/// Continuations of prompts side by side; all but their first tokens are supervised.
fn continued(questions: &[&Asked<'_>], some: &[(usize, usize)]) -> Result<Batch> {
    let examples: Vec<Example> = some
        .iter()
        .map(|&(row, at)| Example {
            ids: questions[row].follow[at].to_vec(),
            // Tokens were checked against a vocabulary, which is far smaller.
            labels: questions[row].follow[at]
                .iter()
                .map(|&id| id as i32)
                .collect(),
            ..Example::default()
        })
        .collect();
    let mut padded = Padded::collate(&examples);
    let rows = padded.positions.chunks_mut(padded.length);
    let rows = rows.zip(padded.segments.chunks(padded.length));
    for ((positions, segments), &(row, _)) in rows.zip(some) {
        let prompt = questions[row].prompt.len() as u32;
        for (position, segment) in positions.iter_mut().zip(segments) {
            if *segment != 0 {
                *position += prompt;
            }
        }
    }
    laid_out(padded)
}
