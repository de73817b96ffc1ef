//! Text to tokens and back, with the library's surprises taken out.

use crate::chat::{ChatDigest, ChatTemplate};
use crate::error::{Error, Result};
use crate::guard;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tokenizers::{ModelWrapper, PostProcessor as _, TruncationParams, truncate_encodings};

/// Files that hold tokenizers in forms that are not read.
const OTHER_FORMATS: [&str; 6] = [
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
];

/// Whether special tokens take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Encoding adds the tokenizer's own template; decoding shows special tokens.
    Add,
    /// Encoding adds nothing; decoding leaves special tokens out.
    Omit,
}

/// A text or a pair of texts in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templated {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The type of each.
    pub types: Vec<u32>,
    /// Whether a text lost its right end.
    pub truncated: bool,
}

/// A `tokenizer.json`. Truncation and padding that such a file may ask for are switched off: rows are cut and padded
/// here, where it is counted.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    chat: Option<Arc<Result<ChatTemplate, String>>>,
    digest: [u8; 32],
}

/// Tokens, and the bytes of the text that each of them stands for.
pub(crate) type Located = (Vec<u32>, Vec<(usize, usize)>);

impl Tokenizer {
    /// Reads a tokenizer file.
    ///
    /// # Errors
    /// If the file cannot be read, is not a tokenizer, or splits text at random (BPE dropout).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads what a tokenizer file would hold; `origin` is where it comes from, for messages.
    ///
    /// # Errors
    /// As [`Tokenizer::from_file`].
    pub fn from_bytes(bytes: &[u8], origin: impl AsRef<Path>) -> Result<Self> {
        let refuse = |message: String| Error::Tokenizer {
            path: origin.as_ref().to_owned(),
            message,
        };
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|message| refuse(format!("not a tokenizer file: {message}")))?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && let Some(dropout) = model.dropout
            && dropout != 0.0
        {
            return Err(refuse(format!(
                "`model.dropout` is {dropout}: tokens drawn at random are not supported, set it to null"
            )));
        }
        inner
            .with_truncation(None)
            .map_err(|error| refuse(error.to_string()))?;
        inner.with_padding(None);
        let vocab_size = inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1);
        let digest = Sha256::digest(bytes).into();
        let tokenizer = Self {
            inner,
            vocab_size,
            chat: None,
            digest,
        };
        // A template may name tokens that the file does not define: the library would panic at the first text.
        tokenizer
            .encode("", Special::Add)
            .map_err(|error| refuse(error.to_string()))?;
        Ok(tokenizer)
    }

    /// Reads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// As [`Tokenizer::from_file`]; a folder that has only other forms of a tokenizer is told how to convert them.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("tokenizer.json");
        if path.exists() {
            return Self::from_file(path);
        }
        let found = OTHER_FORMATS
            .into_iter()
            .filter(|name| folder.join(name).exists());
        Err(Error::NoTokenizer {
            folder: folder.to_owned(),
            found: found.map(str::to_owned).collect(),
        })
    }

    /// The tokens of a text. Special tokens written in the text are recognised in either case.
    ///
    /// # Errors
    /// If the tokenizer has no token for a piece of the text and none for unknown ones.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        guarded(|| self.inner.encode_fast(text, special == Special::Add))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|message| Error::Tokenize { message })
    }

    /// With the template that writes rows of messages, or why there is none: the first such row is told, and others need
    /// none.
    #[must_use]
    pub fn with_chat_template(mut self, template: Result<ChatTemplate, String>) -> Self {
        self.chat = Some(Arc::new(template));
        self
    }

    /// That template, or why there is none.
    pub(crate) fn chat_template(&self) -> Result<&ChatTemplate, String> {
        match self.chat.as_deref() {
            Some(template) => template.as_ref().map_err(Clone::clone),
            None => Err("the tokenizer comes without a chat template".to_owned()),
        }
    }

    /// The tokens of a text, nothing added, with their places.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_located(&self, text: &str) -> Result<Located> {
        guarded(|| self.inner.encode(text, false))
            .map(|encoding| (encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
            .map_err(|message| Error::Tokenize { message })
    }

    /// A text, or two, in the tokenizer's own template, at most `max_length` tokens long: the longer text loses its right end
    /// first, special tokens are kept.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and if the special tokens alone are longer.
    pub fn encode_template(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: usize,
    ) -> Result<Templated> {
        let special = self.special_tokens(pair.is_some());
        let room = max_length.checked_sub(special).ok_or_else(|| {
            let message = format!("{special} special tokens are more than {max_length}");
            Error::Tokenize { message }
        })?;
        let params = TruncationParams {
            max_length: room,
            ..TruncationParams::default()
        };
        let encoded = guarded(|| {
            let first = self.inner.encode_fast(text, false)?;
            let second = pair.map(|pair| self.inner.encode_fast(pair, false));
            let mut second = second.transpose()?;
            let mut length = first.len();
            if let Some(second) = &mut second {
                length += second.len();
                // Templates number their own; without one the second text is still the second.
                second.set_type_ids(vec![1; second.len()]);
            }
            let (first, second) = truncate_encodings(first, second, &params)?;
            Ok((self.inner.post_process(first, second, true)?, length > room))
        });
        let (encoding, truncated) = encoded.map_err(|message| Error::Tokenize { message })?;
        Ok(Templated {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
            truncated,
        })
    }

    /// How many tokens the template adds to a text, or to a pair.
    pub(crate) fn special_tokens(&self, is_pair: bool) -> usize {
        let processor = self.inner.get_post_processor();
        processor.map_or(0, |processor| processor.added_tokens(is_pair))
    }

    /// The text of tokens. Tokens that do not exist leave no trace.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32], special: Special) -> Result<String> {
        guarded(|| self.inner.decode(ids, special == Special::Omit))
            .map_err(|message| Error::Tokenize { message })
    }

    /// The text that each token adds after the one before it, special tokens shown; for people. A character that is
    /// split over tokens shows as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_tokens(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut texts = Vec::with_capacity(ids.len());
        for (i, _) in ids.iter().enumerate() {
            let alone = self.decode(&ids[i..=i], Special::Add)?;
            if i == 0 {
                texts.push(alone);
                continue;
            }
            // Decoders treat the first token apart (they drop its space), so it is read in company.
            let before = self.decode(&ids[i - 1..i], Special::Add)?;
            let both = self.decode(&ids[i - 1..=i], Special::Add)?;
            texts.push(
                both.strip_prefix(before.as_str())
                    .map_or(alone, str::to_owned),
            );
        }
        Ok(texts)
    }

    /// The special token that is written like this, if there is one. Decoding without special tokens never shows it.
    #[must_use]
    pub fn special_token(&self, text: &str) -> Option<u32> {
        let added = self.inner.get_added_vocabulary();
        let special = added.is_special_token(text);
        special.then(|| self.inner.token_to_id(text)).flatten()
    }

    /// The SHA-256 of the file, and of what its chat template is made of, if there is one, with the date that it tells.
    pub(crate) fn digest(&self) -> ([u8; 32], Option<ChatDigest>) {
        let chat = self.chat_template().ok().map(ChatTemplate::digest);
        (self.digest, chat)
    }

    /// The size of a table that has every token: the largest token plus one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Calls the library. It panics on some files that lie (a template's token that is not defined), which is an error here.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match guard::guarded(call) {
        Some(result) => result.map_err(|error| error.to_string()),
        None => Err(
            "the file contradicts itself, for example a special token that is not defined"
                .to_owned(),
        ),
    }
}
