//! The kinds of models there are, by `model_type` of config.json.

use crate::fields::{Fields, shown};
use crate::{Error, Result};
use serde_json::{Map, Value};

/// How the tokens of a text see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Each sees those before it, so that a text can be continued.
    Onward,
    /// Each sees all of them.
    BothWays,
}

/// A kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// BERT, and what is trained like it: MiniLM.
    Bert,
    /// LLaMA, from the first to 3.x.
    Llama,
    /// LLaMA with a sliding window.
    Mistral,
    /// LLaMA with biases of queries, keys and values, and a sliding window if asked for.
    Qwen2,
    /// BERT without types of tokens, with positions behind the padding's.
    Roberta,
    /// RoBERTa in many languages.
    XlmRoberta,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Bert,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Roberta,
        Self::XlmRoberta,
    ];

    /// What transformers calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    /// How its tokens see each other.
    #[must_use]
    pub const fn reading(self) -> Reading {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => Reading::Onward,
            Self::Bert | Self::Roberta | Self::XlmRoberta => Reading::BothWays,
        }
    }

    /// What `model_type` of the object that config.json holds says; `origin` is the file, for messages.
    pub(crate) fn of(config: &Map<String, Value>, origin: &str) -> Result<Self> {
        let mut fields = Fields::new(config, origin);
        let word = fields.word("model_type")?;
        let word = fields.required("model_type", word)?;
        let known = Self::ALL.into_iter().find(|kind| kind.name() == word);
        known.ok_or_else(|| Error::UnknownModel {
            origin: origin.to_owned(),
            value: shown(&word.into()),
            suggestion: lowrank_adapter::nearest(word, Self::ALL.map(Self::name)),
            supported: "bert, llama, mistral, qwen2, roberta, xlm-roberta",
        })
    }
}
