//! What can go wrong when a model is built.

use std::fmt;

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part of the model refused.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapter::Error),
    /// A weight is missing, misshapen, unreadable or stored in a form that is not supported.
    #[error(transparent)]
    Frozen(#[from] lowrank_frozen::Error),
    /// A tensor function refused.
    #[error(transparent)]
    Ops(#[from] lowrank_ops::Error),
    /// A kind of model that nobody knows.
    #[error("{origin}: unknown `model_type` {value}; supported: {supported}{}", Suggest(.suggestion))]
    UnknownModel {
        /// The configuration file.
        origin: String,
        /// The value of the field.
        value: String,
        /// A known kind that is near.
        suggestion: Option<String>,
        /// What can be loaded, comma-separated.
        supported: &'static str,
    },
    /// A field that must be there.
    #[error("{origin}: `{field}` is missing")]
    MissingField {
        /// The configuration file.
        origin: String,
        /// The field.
        field: String,
    },
    /// A field with a value that makes no sense.
    #[error("{origin}: `{field}` is {value}, expected {expected}")]
    Field {
        /// The configuration file.
        origin: String,
        /// The field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// A field with a value that makes sense but is not implemented.
    #[error("{origin}: `{field}` = {value} is not yet supported; supported: {supported}")]
    NotYet {
        /// The configuration file.
        origin: String,
        /// The field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// The values that work.
        supported: &'static str,
    },
    /// A field that nobody knows, with a value that may change what the model computes.
    #[error("{origin}: unknown field `{field}` with the value {value}{}", Suggest(.suggestion))]
    UnknownField {
        /// The configuration file.
        origin: String,
        /// The field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// A known field that is near.
        suggestion: Option<String>,
    },
    /// Weights cannot be held in this dtype.
    #[error("weights cannot be held in {dtype}; use dtype = \"f32\"")]
    Precision {
        /// What was asked for.
        dtype: &'static str,
    },
    /// The checkpoint holds a tensor that the model has no place for.
    #[error("{origin}: tensor `{name}` is used by no part of the model that config.json describes")]
    Unused {
        /// The checkpoint.
        origin: String,
        /// The tensor.
        name: String,
    },
    /// A weight holds a NaN or an infinity.
    #[error("{origin}: tensor `{name}` holds a value that is not finite in {dtype}")]
    NotFinite {
        /// The checkpoint.
        origin: String,
        /// The tensor.
        name: String,
        /// The dtype that the model holds it in.
        dtype: &'static str,
    },
    /// A checkpoint without the head that predicts tokens, of a kind of model whose checkpoints may lack it.
    #[error(
        "{origin}: there is no `{module}`, the head that predicts tokens: this checkpoint was saved without one, for \
         embeddings or to train a classifier"
    )]
    NoHead {
        /// The checkpoint.
        origin: String,
        /// The module.
        module: &'static str,
    },
    /// A text without a token, which cannot be continued.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// A text that leaves no room for another token.
    #[error(
        "the prompt has {tokens} tokens and the model reads at most {limit} (`max_position_embeddings`), which leaves no \
         room to continue it; shorten it"
    )]
    PromptTooLong {
        /// The tokens of the prompt.
        tokens: usize,
        /// How many tokens the model reads.
        limit: usize,
    },
    /// Logits that say nothing about the next token.
    #[error(
        "the logit of token {token} is {value}: the model or an adapter (or its weight) makes numbers that are not finite"
    )]
    Logit {
        /// The first token of such a logit.
        token: usize,
        /// The logit.
        value: f64,
    },
}

impl Error {
    /// True if what was asked of the model is wrong, rather than the model.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::EmptyPrompt | Self::PromptTooLong { .. })
    }
}

struct Suggest<'a>(&'a Option<String>);

impl fmt::Display for Suggest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(word) => write!(f, ", did you mean `{word}`?"),
            None => Ok(()),
        }
    }
}
