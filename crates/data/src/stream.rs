//! Text out of tokens that come one at a time: never half a character, and nothing that belongs to a stop string.

use crate::error::{Error, Result};
use crate::{Special, Tokenizer};

/// The strings that end a text. They are no part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStrings(Vec<String>);

impl StopStrings {
    /// # Errors
    /// If one of them is empty.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::EmptyStop);
        }
        Ok(Self(stops))
    }

    /// The strings, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Where `text` ends: before the stop string that is complete first, and the longest of those that are complete at the
    /// same place. None if it has no stop string.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<usize> {
        let found = self.iter().filter_map(|stop| {
            let start = text.find(stop)?;
            Some((start + stop.len(), start))
        });
        found.min().map(|(_, start)| start)
    }

    /// How much of the end of `text` may be the beginning of a stop string, in bytes.
    fn may_begin(&self, text: &str) -> usize {
        let begins = |stop: &str| {
            let mut lengths = stop.char_indices().map(|(length, _)| length);
            lengths.rfind(|&length| text.ends_with(&stop[..length]))
        };
        self.iter().filter_map(begins).max().unwrap_or(0)
    }
}

/// Turns the tokens of a text into pieces of it. Special tokens are left out.
///
/// All pieces together are what [`Tokenizer::decode`] makes of all tokens, cut where [`StopStrings::find`] says.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a StopStrings,
    /// The last tokens whose text is known, and after them those whose text is not: a decoder may treat the first token
    /// apart, so new ones are read in the company of old ones.
    ids: Vec<u32>,
    known: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A text without tokens.
    #[must_use]
    pub const fn new(tokenizer: &'a Tokenizer, stops: &'a StopStrings) -> Self {
        Self {
            tokenizer,
            stops,
            ids: Vec::new(),
            known: 0,
            held: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop string has ended the text. Tokens after it are ignored.
    #[must_use]
    pub const fn stopped(&self) -> bool {
        self.stopped
    }

    /// Adds a token and returns the text that is certain now, which may be none.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the tokens.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.unknown()?;
        // A character whose bytes have not all come shows as U+FFFD.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.ids.drain(..self.known);
        self.known = self.ids.len();
        Ok(self.release(&text))
    }

    /// Ends the text and returns what was still held back.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(mut self) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let text = self.unknown()?;
        let mut last = self.release(&text);
        last.push_str(&self.held);
        Ok(last)
    }

    /// The text that the tokens after the known ones add.
    fn unknown(&self) -> Result<String> {
        let before = self
            .tokenizer
            .decode(&self.ids[..self.known], Special::Omit)?;
        let text = self.tokenizer.decode(&self.ids, Special::Omit)?;
        // Some decoders change their mind about earlier text, which cannot be taken back: only what is longer is new.
        let starts = text.char_indices().map(|(at, _)| at);
        let new = starts.into_iter().find(|&at| at >= before.len());
        Ok(new.map_or_else(String::new, |at| text[at..].to_owned()))
    }

    /// Adds text behind what is held back, and returns what cannot belong to a stop string.
    fn release(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let end = match self.stops.find(&self.held) {
            Some(end) => {
                self.stopped = true;
                self.held.truncate(end);
                end
            }
            None => self.held.len() - self.stops.may_begin(&self.held),
        };
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }
}
