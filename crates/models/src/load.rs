//! From config.json and a checkpoint to a model, whatever its kind.

use crate::classes::Classes;
use crate::fields::Fields;
use crate::{Error, Llama, LlamaConfig, Precision, Result};
use lowrank_adapter::Model;
use lowrank_frozen::{Encoding, Weights};
use serde_json::{Map, Value};
use std::num::NonZeroUsize;

/// What a program needs to know of a model beside its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Number of tokens.
    pub vocab_size: usize,
    /// The tokens that end a text, the first of which is appended to examples; empty if the file names none.
    pub eos_token_ids: Vec<u32>,
    /// How many positions a sequence may have.
    pub max_position_embeddings: usize,
}

impl ModelInfo {
    /// Reads and checks the object that config.json holds; `origin` is the file, for messages.
    ///
    /// # Errors
    /// If the kind of model is not supported, or a field is missing, out of range or unknown.
    pub fn from_json(config: &Map<String, Value>, origin: &str) -> Result<Self> {
        let config = LlamaConfig::from_json(config, origin)?;
        Ok(Self {
            model_type: "llama".to_owned(),
            vocab_size: config.vocab_size,
            eos_token_ids: config.eos_token_ids,
            max_position_embeddings: config.max_position_embeddings,
        })
    }

    /// The tokens that end a text that the model writes: config.json's, and those of the object that
    /// generation_config.json holds; `origin` is that file, for messages.
    ///
    /// # Errors
    /// If `eos_token_id` is neither a token id nor a list of them.
    pub fn end_tokens(&self, generation: &Map<String, Value>, origin: &str) -> Result<Vec<u32>> {
        let mut tokens = self.eos_token_ids.clone();
        for token in Fields::new(generation, origin).tokens("eos_token_id")? {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        Ok(tokens)
    }
}

/// What a model is opened to answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Head {
    /// The tokens of a text: the next ones, or an encoder's masked ones.
    #[default]
    Language,
    /// The class of each row, of so many; 1 means the value of a regression.
    Classes {
        /// How many numbers a row is given.
        num_labels: NonZeroUsize,
        /// What the head is drawn from if the checkpoint has none.
        seed: u64,
    },
    /// Nothing but the last hidden state.
    None,
}

/// Builds the model that config.json describes; `origin` is that file, for messages.
///
/// # Errors
/// As [`ModelInfo::from_json`] and [`Llama::new`], and if the configuration speaks of quantised weights and there are none.
pub fn load(
    config: &Map<String, Value>,
    origin: &str,
    weights: &dyn Weights,
    precision: Precision,
    head: Head,
) -> Result<Box<dyn Model>> {
    let llama = LlamaConfig::from_json(config, origin)?;
    let classes = match head {
        Head::Language => None,
        Head::Classes { num_labels, seed } => Some(Classes::new(num_labels, seed, config, origin)?),
        Head::None => {
            return Err(Error::Head {
                head,
                model: "llama",
            });
        }
    };
    if let Some(value) = config.get("quantization_config")
        && !value.is_null()
        && !weights
            .names()
            .into_iter()
            .any(|name| is_nf4(weights, name))
    {
        let expected = format!("null, since {} holds no quantised matrix", weights.origin());
        return Err(Fields::new(config, origin).wrong("quantization_config", value, expected));
    }
    Ok(Box::new(Llama::with_head(
        llama, weights, precision, classes,
    )?))
}

fn is_nf4(weights: &dyn Weights, name: &str) -> bool {
    let info = weights.info(name);
    info.is_some_and(|info| matches!(info.encoding, Encoding::Nf4 { .. }))
}
