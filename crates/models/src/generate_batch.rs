//! Several texts continued side by side: each step is one pass, which reads the weights once for all of them.

use crate::generate::{Finish, Limits, choose, refuse, room};
use crate::{Result, Sampling};
use lowrank_adapter::{Ask, Batch, KvCache, Model, Pass, Selection, Tokens, UNSUPERVISED, run};

/// What was written after one of several prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// The new tokens, without the end token.
    pub ids: Vec<u32>,
    /// Why they end.
    pub finish: Finish,
}

/// Continues prompts of any lengths side by side. Each text is the one that [`crate::Continuation`] writes alone, up to
/// rounding; a text that has ended waits for the others.
///
/// # Errors
/// If a prompt has no token, or as many as the model reads; whatever the model refuses.
pub fn continue_all(
    model: &dyn Model,
    selection: &Selection,
    prompts: &[&[u32]],
    sampling: Sampling,
    limits: &Limits,
) -> Result<Vec<Continued>> {
    for prompt in prompts {
        refuse(prompt, limits)?;
    }
    let Some(longest) = prompts.iter().map(|prompt| prompt.len()).max() else {
        return Ok(Vec::new());
    };
    let mut cache = KvCache::with_capacity(room(longest, limits));
    let mut texts: Vec<Text> = prompts.iter().map(|prompt| Text::new(prompt)).collect();
    let mut batch = beside(prompts, longest)?;
    let mut places: Vec<u32> = (0u32..)
        .zip(prompts)
        .map(|(row, prompt)| row * longest as u32 + prompt.len() as u32 - 1)
        .collect();
    for index in 0u64.. {
        // What was written last, the prompt at first, was not read yet.
        for text in texts.iter_mut().filter(|text| text.finish.is_none()) {
            let full = text.length >= limits.positions;
            if full || text.ids.len() >= limits.max_new_tokens.get() {
                text.finish = Some(Finish::Length);
            }
        }
        let live: Vec<usize> = (0..texts.len())
            .filter(|row| texts[*row].finish.is_none())
            .collect();
        if live.is_empty() {
            break;
        }
        let asked = Ask::Logits(live.iter().map(|row| places[*row]).collect());
        let mut pass = Pass::evaluation(selection.clone());
        let logits = run(model, &batch, &asked, Some(&mut cache), &mut pass)?;
        for (place, row) in live.into_iter().enumerate() {
            let token = choose(&sampling, &logits, place, index)?;
            let text = &mut texts[row];
            if limits.end_tokens.contains(&token) {
                text.finish = Some(Finish::Stop);
            } else {
                text.ids.push(token);
                text.length += 1;
            }
        }
        batch = next(&texts)?;
        places = (0..texts.len() as u32).collect();
    }
    let continued = texts.into_iter().map(|text| Continued {
        ids: text.ids,
        finish: text.finish.unwrap_or(Finish::Length),
    });
    Ok(continued.collect())
}

struct Text {
    ids: Vec<u32>,
    /// How many tokens there are with the prompt.
    length: usize,
    finish: Option<Finish>,
}

impl Text {
    const fn new(prompt: &[u32]) -> Self {
        Self {
            ids: Vec::new(),
            length: prompt.len(),
            finish: None,
        }
    }
}

/// The prompts, padded to the longest.
fn beside(prompts: &[&[u32]], longest: usize) -> Result<Batch> {
    let mut tokens = Tokens {
        rows: prompts.len(),
        length: longest,
        ids: Vec::new(),
        segments: Vec::new(),
        positions: Vec::new(),
    };
    for prompt in prompts {
        let padding = longest - prompt.len();
        tokens.ids.extend_from_slice(prompt);
        tokens.positions.extend(0..prompt.len() as u32);
        tokens.segments.extend(std::iter::repeat_n(1, prompt.len()));
        for numbers in [&mut tokens.ids, &mut tokens.positions, &mut tokens.segments] {
            numbers.extend(std::iter::repeat_n(0, padding));
        }
    }
    let labels = vec![UNSUPERVISED; tokens.ids.len()];
    Ok(Batch::new(tokens, labels)?)
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
    let labels = vec![UNSUPERVISED; texts.len()];
    Ok(Batch::new(tokens, labels)?)
}
