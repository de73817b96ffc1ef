//! From config.json and a checkpoint to a model, whatever its kind.

use crate::classes::Classes;
use crate::fields::Fields;
use crate::kind::{Kind, Reading};
use crate::llama::Wanted;
use crate::quantisation::check_weights;
use crate::{Bert, BertConfig, Llama, LlamaConfig, Precision, Result};
use lowrank_adapter::Model;
use lowrank_frozen::Weights;
use serde_json::{Map, Value};
use std::num::NonZeroUsize;

/// What a program needs to know of a model beside its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// `model_type` of config.json.
    pub model_type: String,
    /// How the tokens of a text see each other.
    pub reading: Reading,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
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
        let kind = Kind::of(config, origin)?;
        let (model_type, reading) = (kind.name().to_owned(), kind.reading());
        Ok(match reading {
            Reading::Onward => {
                let config = LlamaConfig::from_json(config, origin)?;
                Self {
                    model_type,
                    reading,
                    vocab_size: config.vocab_size,
                    hidden_size: config.hidden_size,
                    eos_token_ids: config.eos_token_ids,
                    max_position_embeddings: config.max_position_embeddings,
                }
            }
            Reading::BothWays => {
                let config = BertConfig::from_json(config, origin)?;
                Self {
                    model_type,
                    reading,
                    vocab_size: config.vocab_size,
                    hidden_size: config.hidden_size,
                    max_position_embeddings: config.positions(),
                    eos_token_ids: config.eos_token_ids,
                }
            }
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
/// As [`ModelInfo::from_json`], [`Llama::new`] and [`Bert::new`], and if the configuration speaks of quantised weights and there
/// are none.
pub fn load(
    config: &Map<String, Value>,
    origin: &str,
    weights: &dyn Weights,
    precision: Precision,
    head: Head,
) -> Result<Box<dyn Model>> {
    let kind = Kind::of(config, origin)?;
    if let Head::Classes { num_labels, .. } = head {
        check_problem(&mut Fields::new(config, origin), num_labels)?;
    }
    match kind.reading() {
        Reading::Onward => {
            let llama = LlamaConfig::from_json(config, origin)?;
            let wanted = match head {
                Head::Language => Wanted::Language,
                Head::Classes { num_labels, seed } => {
                    Wanted::Classes(Classes::new(num_labels, seed, config, origin)?)
                }
                Head::None => Wanted::None,
            };
            check_weights(config, origin, weights)?;
            Ok(Box::new(Llama::with_head(
                llama, weights, precision, wanted,
            )?))
        }
        Reading::BothWays => {
            let bert = BertConfig::from_json(config, origin)?;
            check_weights(config, origin, weights)?;
            Ok(Box::new(Bert::new(bert, weights, precision, head)?))
        }
    }
}

/// Refuses losses that are not those of classes, of which a row has one, or of the value of a regression.
fn check_problem(fields: &mut Fields<'_>, num_labels: NonZeroUsize) -> Result<()> {
    const FIELD: &str = "problem_type";
    const CLASSES: &str = "single_label_classification";
    const REGRESSION: &str = "regression";
    let Some(problem) = fields.word(FIELD)? else {
        return Ok(());
    };
    let is_regression = num_labels == NonZeroUsize::MIN;
    match problem {
        CLASSES if !is_regression => Ok(()),
        REGRESSION if is_regression => Ok(()),
        CLASSES | REGRESSION => {
            let expected = match is_regression {
                true => {
                    "`\"regression\"`, for one label is its value; leave the field out or change it"
                        .to_owned()
                }
                false => format!(
                    "`\"{CLASSES}\"`, for there are {num_labels} labels; leave the field out or change it"
                ),
            };
            Err(fields.wrong(FIELD, &problem.into(), expected))
        }
        _ => {
            let supported = "\"single_label_classification\", \"regression\"";
            Err(fields.not_yet(FIELD, &problem.into(), supported))
        }
    }
}
