//! Which part of a chat's text the assistant writes, and so learns to write.
//!
//! A template with `{% generation %}` blocks says it. With any other, a turn is what the template adds to the messages before
//! it and the beginning of an answer (`add_generation_prompt`): up to and with what ends the turn, without white space
//! behind that. It counts only if both, the text before it and the turn, stand in the text of the whole chat as they
//! stood when the chat ended there. A template that rewrites earlier messages as a chat goes on (it drops what was thought,
//! or moves the system message) leaves turns that a model is never asked for in this form; those are not supervised.

use crate::chat::{ChatTemplate, GenerationPrompt};
use crate::chat_marks::Marks;
use crate::chat_row::Chat;
use crate::error::{Error, Result};
use minijinja::value::{Serde, Value as Jinja};
use serde_json::Value;
use std::ops::Range;

/// A chat, ready to be written in parts.
pub(crate) struct Writer<'a> {
    template: &'a ChatTemplate,
    chat: &'a Chat,
    messages: Vec<Jinja>,
    tools: Jinja,
}

impl<'a> Writer<'a> {
    pub fn new(template: &'a ChatTemplate, chat: &'a Chat) -> Self {
        Self {
            template,
            chat,
            messages: chat
                .messages
                .iter()
                .map(|m| Jinja::from(Serde(m)))
                .collect(),
            tools: Jinja::from(Serde(&chat.tools)),
        }
    }

    /// The whole chat.
    pub fn text(&self) -> Result<String> {
        self.template
            .text(&self.messages, &self.tools, GenerationPrompt::Omit)
    }

    /// The bytes of `text`, which is the whole chat, that the assistant writes. Turns that begin at `end` or after may be
    /// left out.
    pub fn said(&self, text: &str, end: usize) -> Result<Vec<Range<usize>>> {
        if self.template.is_marked(&self.tools) {
            self.marked(text)
        } else {
            self.compared(text, end)
        }
    }

    fn marked(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let marks = Marks::absent_from(text).ok_or_else(|| {
            self.refuse("the text has every character from U+FDD0 to U+FDEF, two of which mark what is generated")
        })?;
        let marked = self
            .template
            .marked_text(&self.messages, &self.tools, marks)?;
        let (unmarked, spans) = marks.take(&marked);
        if unmarked == text {
            Ok(spans)
        } else {
            Err(self.refuse("it changes what its `{% generation %}` blocks hold, so that their place is not known"))
        }
    }

    fn compared(&self, text: &str, end: usize) -> Result<Vec<Range<usize>>> {
        let mut spans = Vec::new();
        let (mut turns, mut known) = (0, 0);
        for (i, message) in self.chat.messages.iter().enumerate() {
            if message["role"] != "assistant" {
                continue;
            }
            turns += 1;
            let Some(start) = self.start(text, i) else {
                continue;
            };
            known += 1;
            if start >= end {
                break;
            }
            if let Some(stop) = self.stop(text, i).filter(|stop| *stop > start) {
                let turn = &text[start..stop];
                let content = message["content"].as_str().unwrap_or_default();
                spans.push(start..start + self.turn(turn, content).len());
            }
        }
        if turns > 0 && known == 0 {
            return Err(self.refuse(
                "no turn of the assistant stands in the chat as it stood when the chat ended there, so that it is not known \
                 what to learn; mark it by `{% generation %}` blocks in a template of your own (`data.chat_template`)",
            ));
        }
        Ok(spans)
    }

    /// Where in the text message `i` begins, after what stands before any answer.
    fn start(&self, text: &str, i: usize) -> Option<usize> {
        let prompt = self.prefix(i, GenerationPrompt::Add)?;
        if !text.starts_with(&prompt) {
            return None;
        }
        let start = prompt.len();
        if self.prefix(i, GenerationPrompt::Omit)? != prompt {
            return Some(start);
        }
        // The template begins no answer: what two different ones have in common is a header, if it is not only white space.
        let one = self.answered(i, "0")?;
        let other = self.answered(i, "1")?;
        let header = common(one.strip_prefix(&prompt)?, other.strip_prefix(&prompt)?);
        if header.trim().is_empty() {
            Some(start)
        } else {
            text[start..]
                .starts_with(header)
                .then(|| start + header.len())
        }
    }

    /// Where in the text message `i` ends.
    fn stop(&self, text: &str, i: usize) -> Option<usize> {
        if i + 1 == self.messages.len() {
            return Some(text.len());
        }
        let turn = self.prefix(i + 1, GenerationPrompt::Omit)?;
        // Some templates end a whole chat by the end token.
        let shorter = self
            .template
            .end_token()
            .and_then(|end| turn.strip_suffix(end));
        let found = |turn: &&str| text.starts_with(turn);
        [Some(turn.as_str()), shorter]
            .into_iter()
            .flatten()
            .find(found)
            .map(str::len)
    }

    /// A turn without what follows its end.
    fn turn<'t>(&self, turn: &'t str, content: &str) -> &'t str {
        let content = content.trim();
        let ends = |text: &str| match content {
            "" => text.trim().is_empty(),
            content => text.trim_end().ends_with(content),
        };
        // White space alone after the content is how the turn ends.
        if ends(turn) {
            return turn;
        }
        let turn = turn.trim_end();
        let shorter = self
            .template
            .end_token()
            .and_then(|end| turn.strip_suffix(end));
        match shorter {
            // The end token of the whole chat, behind that of the turn.
            Some(shorter) if !ends(shorter) => shorter.trim_end(),
            _ => turn,
        }
    }

    /// The first `count` messages, if the template writes them alone.
    fn prefix(&self, count: usize, prompt: GenerationPrompt) -> Option<String> {
        self.template
            .text(&self.messages[..count], &self.tools, prompt)
            .ok()
    }

    /// The first `count` messages with an answer.
    fn answered(&self, count: usize, content: &str) -> Option<String> {
        let mut messages = self.messages[..count].to_vec();
        let answer: Value = serde_json::json!({"role": "assistant", "content": content});
        messages.push(Jinja::from(Serde(answer)));
        self.template
            .text(&messages, &self.tools, GenerationPrompt::Omit)
            .ok()
    }

    fn refuse(&self, message: &str) -> Error {
        Error::ChatTemplate {
            origin: self.template.origin().to_owned(),
            message: message.to_owned(),
        }
    }
}

/// What two texts begin with.
fn common<'t>(one: &'t str, other: &str) -> &'t str {
    let letters = one.char_indices().zip(other.chars());
    let differ = letters
        .clone()
        .find(|((_, a), b)| a != b)
        .map(|((at, _), _)| at);
    &one[..differ.unwrap_or(one.len().min(other.len()))]
}

/// The tokens that lie in the spans, in whole or in part. `places` are the bytes of each token; one without any is a space
/// that its tokenizer does not count, at its end.
pub(crate) fn covered(places: &[(usize, usize)], spans: &[Range<usize>]) -> Vec<bool> {
    let mut covered = vec![false; places.len()];
    for span in spans {
        let inside = |&(start, end): &(usize, usize)| {
            if start < end {
                start < span.end && end > span.start
            } else {
                span.start < start && start <= span.end
            }
        };
        let first = places.iter().position(inside);
        let last = places.iter().rposition(inside);
        if let (Some(first), Some(last)) = (first, last) {
            covered[first..=last].fill(true);
        }
    }
    covered
}
