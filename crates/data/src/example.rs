//! Rows as tokens: what a model reads, and which predictions count.

use crate::chat_mask::{Writer, covered};
use crate::chat_row::Chat;
use crate::error::{Error, Problem};
use crate::row::{Asked, Kind, Row};
use crate::tokenizer::{Special, Tokenizer};
use std::num::NonZeroUsize;

/// The label of a token whose prediction does not count.
pub const UNSUPERVISED: i32 = -100;

/// One sequence of tokens with its labels, both of the same length.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Example {
    /// The tokens.
    pub ids: Vec<u32>,
    /// `labels[i]` is what must be predicted at place i (from the tokens before it), or [`UNSUPERVISED`].
    pub labels: Vec<i32>,
    /// The type of each token, 1 in the second text of a pair; none if all are 0.
    pub types: Vec<u32>,
    /// What the row is, where that is what is learnt: the index of a class, or the value of a regression.
    pub label: Option<f64>,
    /// Whether the row was longer and lost its right end.
    pub truncated: bool,
}

impl Example {
    /// How many predictions count: of tokens, the first of which has nothing before it and never does, and of the row.
    #[must_use]
    pub fn supervised(&self) -> usize {
        let counts = |label: &&i32| **label != UNSUPERVISED;
        let tokens = self.labels.iter().skip(1).filter(counts).count();
        tokens + usize::from(self.label.is_some())
    }

    fn cut(&mut self, max_length: usize) {
        self.truncated = self.ids.len() > max_length;
        self.ids.truncate(max_length);
        self.labels.truncate(max_length);
        self.types.truncate(max_length);
    }
}

/// A question with its possible continuations, without the end token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceExample {
    /// The tokens that all choices share.
    pub prompt: Vec<u32>,
    /// The tokens of each choice after the prompt. Cut like a row's right end: a choice may be empty if `truncated`.
    pub choices: Vec<Vec<u32>>,
    /// The right choice, if the row says so.
    pub gold: Option<usize>,
    /// The length of each choice's text in UTF-8 bytes.
    pub choice_bytes: Vec<usize>,
    /// Whether the prompt or a choice lost its right end.
    pub truncated: bool,
}

impl ChoiceExample {
    /// The most tokens that the prompt and a choice have together.
    #[must_use]
    pub fn longest(&self) -> usize {
        let longest = self.choices.iter().map(Vec::len).max();
        self.prompt.len() + longest.unwrap_or(0)
    }
}

/// What an evaluation compares a model's answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// Nothing but the labels.
    None,
    /// The row is a multiple choice.
    Choices(ChoiceExample),
    /// The expected final answer of a generation.
    Answer(String),
}

/// What rows are turned to tokens with.
pub(crate) struct Encoder<'a> {
    pub tokenizer: Option<&'a Tokenizer>,
    pub end_token: Option<u32>,
    pub max_length: NonZeroUsize,
    pub vocab: usize,
}

impl Encoder<'_> {
    /// Everything that decides what becomes of a row, as text that differs where a row may.
    pub fn depends_on(&self) -> String {
        // Without `..`, so that nothing new is forgotten here.
        let Self {
            tokenizer,
            end_token,
            max_length,
            vocab,
        } = self;
        let tokenizer = tokenizer.map(Tokenizer::digest);
        format!("{tokenizer:?} {end_token:?} {max_length} {vocab}")
    }

    pub fn encode(&self, kind: Kind, row: &Row) -> Result<(Example, Reference), Problem> {
        let mut reference = Reference::None;
        let mut example = match row {
            Row::Text(text) => {
                let mut ids = self.tokens(kind, "text", text, Special::Add)?;
                self.end(&mut ids);
                Example {
                    labels: ids.iter().map(|&id| label(id)).collect(),
                    ids,
                    ..Example::default()
                }
            }
            Row::Completion {
                prompt,
                completion,
                asked,
            } => {
                let mut ids = self.tokens(kind, "prompt", prompt, Special::Omit)?;
                let mut completion = self.tokens(kind, "completion", completion, Special::Omit)?;
                self.end(&mut completion);
                reference = match asked {
                    Asked::Nothing => Reference::None,
                    Asked::Answer(answer) => Reference::Answer(answer.clone()),
                    Asked::Choices { choices, gold } => {
                        Reference::Choices(self.choices(kind, &ids, choices, *gold)?)
                    }
                };
                let mut labels = vec![UNSUPERVISED; ids.len()];
                labels.extend(completion.iter().map(|&id| label(id)));
                ids.extend(completion);
                Example {
                    ids,
                    labels,
                    ..Example::default()
                }
            }
            Row::Labelled { text, pair, .. } => {
                let example = self.labelled(kind, text, pair.as_deref())?;
                return Ok((example, reference));
            }
            Row::Tokens { ids, labels } => self.as_they_are(ids, labels)?,
            Row::Chat(chat) => self.chat(kind, chat)?,
        };
        if example.ids.is_empty() {
            return Err(Problem::NoTokens);
        }
        example.cut(self.max_length.get());
        Ok((example, reference))
    }

    /// The tokens of a field, all of them in the model's vocabulary.
    fn tokens(
        &self,
        kind: Kind,
        field: &'static str,
        text: &str,
        special: Special,
    ) -> Result<Vec<u32>, Problem> {
        let tokenizer = self.tokenizer.ok_or(Problem::NeedsTokenizer { kind })?;
        let ids = tokenizer
            .encode(text, special)
            .map_err(|error| Problem::Tokenize {
                field,
                message: match error {
                    Error::Tokenize { message } => message,
                    other => other.to_string(),
                },
            })?;
        for (position, &id) in ids.iter().enumerate() {
            self.known(field, position, i64::from(id))?;
        }
        Ok(ids)
    }

    /// A text or a pair in the tokenizer's template, without its label.
    pub fn labelled(&self, kind: Kind, text: &str, pair: Option<&str>) -> Result<Example, Problem> {
        let tokenizer = self.tokenizer.ok_or(Problem::NeedsTokenizer { kind })?;
        let max_length = self.max_length.get();
        let special = tokenizer.special_tokens(pair.is_some());
        if special > max_length {
            return Err(Problem::NoRoom {
                max_length,
                special,
            });
        }
        let encoded = tokenizer.encode_template(text, pair, max_length);
        let encoded = encoded.map_err(|error| Problem::Tokenize {
            field: "text",
            message: match error {
                Error::Tokenize { message } => message,
                other => other.to_string(),
            },
        })?;
        if encoded.ids.is_empty() {
            return Err(Problem::NoTokens);
        }
        for (position, &id) in encoded.ids.iter().enumerate() {
            self.known("text", position, i64::from(id))?;
        }
        let has_types = encoded.types.iter().any(|&kind| kind != 0);
        Ok(Example {
            labels: vec![UNSUPERVISED; encoded.ids.len()],
            ids: encoded.ids,
            types: if has_types { encoded.types } else { Vec::new() },
            truncated: encoded.truncated,
            label: None,
        })
    }

    /// Adds the end token, unless the text or the template already did.
    fn end(&self, ids: &mut Vec<u32>) {
        if self.end_token.is_some() && ids.last().copied() != self.end_token {
            ids.extend(self.end_token);
        }
    }

    fn choices(
        &self,
        kind: Kind,
        prompt: &[u32],
        texts: &[String],
        gold: Option<usize>,
    ) -> Result<ChoiceExample, Problem> {
        if prompt.is_empty() {
            return Err(Problem::EmptyPrompt);
        }
        let max_length = self.max_length.get();
        let mut prompt = prompt.to_vec();
        let mut truncated = prompt.len() > max_length;
        prompt.truncate(max_length);
        let mut choices = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let mut ids = self.tokens(kind, "choices", text, Special::Omit)?;
            if ids.is_empty() {
                return Err(Problem::EmptyChoice { index });
            }
            let room = max_length - prompt.len();
            truncated |= ids.len() > room;
            ids.truncate(room);
            choices.push(ids);
        }
        let choice_bytes = texts.iter().map(String::len).collect();
        Ok(ChoiceExample {
            prompt,
            choices,
            gold,
            choice_bytes,
            truncated,
        })
    }

    /// A chat as one text, of which the assistant's part is supervised.
    fn chat(&self, kind: Kind, chat: &Chat) -> Result<Example, Problem> {
        let tokenizer = self.tokenizer.ok_or(Problem::NeedsTokenizer { kind })?;
        let wrong = |error: Error| Problem::Template {
            message: error.to_string(),
        };
        let template = tokenizer
            .chat_template()
            .map_err(|message| Problem::Template { message })?;
        let writer = Writer::new(template, chat);
        let text = writer.text().map_err(wrong)?;
        let (ids, places) = tokenizer.encode_located(&text).map_err(|error| {
            let message = error.to_string();
            Problem::Tokenize {
                field: kind.field(),
                message,
            }
        })?;
        for (position, &id) in ids.iter().enumerate() {
            self.known(kind.field(), position, i64::from(id))?;
        }
        let kept = &places[..places.len().min(self.max_length.get())];
        let end = kept.last().map_or(0, |(_, end)| *end);
        let said = covered(&places, &writer.said(&text, end).map_err(wrong)?);
        let labels = ids.iter().zip(said);
        let labels = labels.map(|(&id, said)| if said { label(id) } else { UNSUPERVISED });
        Ok(Example {
            labels: labels.collect(),
            ids,
            ..Example::default()
        })
    }

    fn as_they_are(&self, ids: &[i64], labels: &[i64]) -> Result<Example, Problem> {
        if labels.len() != ids.len() {
            return Err(Problem::LabelLength {
                labels: labels.len(),
                input_ids: ids.len(),
            });
        }
        let ids = ids
            .iter()
            .enumerate()
            .map(|(position, &id)| self.known("input_ids", position, id));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let labels = labels.iter().enumerate().map(|(position, &given)| {
            if given == i64::from(UNSUPERVISED) {
                return Ok(UNSUPERVISED);
            }
            let known = self.known("labels", position, given);
            known.map(label).map_err(|_| Problem::LabelRange {
                position,
                label: given,
                vocab: self.vocab,
            })
        });
        Ok(Example {
            labels: labels.collect::<Result<_, _>>()?,
            ids,
            ..Example::default()
        })
    }

    fn known(&self, field: &'static str, position: usize, token: i64) -> Result<u32, Problem> {
        // A label has to fit i32 as well; no vocabulary is that large.
        let known = i32::try_from(token)
            .ok()
            .and_then(|token| u32::try_from(token).ok());
        let known = known.filter(|&token| (token as usize) < self.vocab);
        known.ok_or(Problem::TokenRange {
            field,
            position,
            token,
            vocab: self.vocab,
        })
    }
}

/// A token below 2^31, as every one that `Encoder::known` let through.
fn label(id: u32) -> i32 {
    i32::try_from(id).expect("tokens are checked to be below 2^31")
}
