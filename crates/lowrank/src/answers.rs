//! Questions that a model answers by writing, and whether its final answers are the expected ones.

use crate::generate::{Generation, Generator};
use crate::{Error, Result};
use lowrank_adapter::Selection;
use lowrank_data::{Answer, Example, Reference, Special, TextStream, UNSUPERVISED};
use lowrank_models::continue_all;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};

/// What a model wrote after the prompt of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// The row, from 0.
    pub index: usize,
    /// Its final answer, in the form that is compared; none if it gave none.
    pub prediction: Option<String>,
    /// The expected one, in that form.
    pub answer: String,
    /// Whether they are the same.
    pub correct: bool,
    /// All that it wrote, up to a stop string.
    pub text: String,
}

/// Lets a model continue the prompts of rows, `batch_size` side by side, and compares its final answers with the rows'
/// `answer`, or else with their completions: see [`Answer`]. The results are in the order of the rows.
///
/// The prompt of a row is all before its last supervised tokens. A row that was cut inside its prompt is answered as it
/// is left.
///
/// # Errors
/// If a row has no prompt, or none that leaves the model room to answer; if nothing or only a part is left of a completion
/// that is to be compared with; whatever the model refuses.
pub fn answers<'a>(
    generator: &Generator<'_>,
    selection: &Selection,
    rows: impl IntoIterator<Item = (&'a Example, &'a Reference)>,
    generation: &Generation,
    batch_size: NonZeroUsize,
) -> Result<Vec<Answered>> {
    let limits = generator.limits(generation);
    let (mut prompts, mut expected) = (Vec::new(), Vec::new());
    for (row, (example, reference)) in rows.into_iter().enumerate() {
        let completion = completion(example);
        let prompt = &example.ids[..completion.start];
        let refuse = |what: String| Error::Question { row, what };
        if prompt.is_empty() {
            return Err(refuse("there is no prompt to continue".to_owned()));
        }
        if prompt.len() >= limits.positions {
            return Err(refuse(format!(
                "the prompt has {} tokens and the model reads at most {} (`max_position_embeddings`), which leaves no room \
                 to answer; shorten it",
                prompt.len(),
                limits.positions
            )));
        }
        expected.push(match reference {
            Reference::Answer(answer) => Answer::new(answer),
            _ if example.truncated => {
                return Err(refuse(format!(
                    "its completion, which the answer is compared with, was cut at {} tokens; raise --max-length",
                    example.ids.len()
                )));
            }
            _ => {
                let ids = &example.ids[completion];
                Answer::new(&generator.tokenizer().decode(ids, Special::Omit)?)
            }
        });
        prompts.push(prompt);
    }
    let texts = texts(generator, selection, &prompts, generation, batch_size)?;
    let answered = texts.into_iter().zip(expected).enumerate();
    Ok(answered
        .map(|(index, (text, expected))| {
            let prediction = expected.found_in(&text);
            Answered {
                index,
                correct: prediction.as_deref() == Some(expected.as_str()),
                prediction,
                answer: expected.as_str().to_owned(),
                text,
            }
        })
        .collect())
}

/// The last supervised tokens of a row.
fn completion(example: &Example) -> Range<usize> {
    let supervised = |label: &i32| *label != UNSUPERVISED;
    let end = example.labels.iter().rposition(supervised);
    let end = end.map_or(example.labels.len(), |last| last + 1);
    let before = example.labels[..end]
        .iter()
        .rposition(|label| !supervised(label));
    before.map_or(0, |last| last + 1)..end
}

fn texts(
    generator: &Generator<'_>,
    selection: &Selection,
    prompts: &[&[u32]],
    generation: &Generation,
    batch_size: NonZeroUsize,
) -> Result<Vec<String>> {
    let mut streams: Vec<(TextStream<'_>, String)> = Vec::with_capacity(prompts.len());
    for _ in prompts {
        let stream = TextStream::new(generator.tokenizer(), &generation.stop);
        streams.push((stream, String::new()));
    }
    let mut failed = None;
    let mut each = |index: usize, token: u32| {
        let (stream, text) = &mut streams[index];
        match stream.push(token) {
            Ok(piece) => text.push_str(&piece),
            Err(error) => failed = Some(error),
        }
        if stream.stopped() || failed.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    continue_all(
        generator.base().model.as_ref(),
        selection,
        prompts,
        generation.sampling,
        &generator.limits(generation),
        batch_size,
        &mut each,
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let texts = streams.into_iter().map(|(stream, mut text)| {
        text.push_str(&stream.finish()?);
        Ok(text)
    });
    texts.collect()
}
