//! What can go wrong, from any crate below.

use std::path::{Path, PathBuf};

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of the toolkit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An adapter could not be attached or run.
    #[error(transparent)]
    Adapter(Box<lowrank_adapter::Error>),
    /// Rows could not be read.
    #[error(transparent)]
    Data(Box<lowrank_data::Error>),
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] lowrank_format::Error),
    /// A frozen weight could not be read.
    #[error(transparent)]
    Frozen(#[from] lowrank_frozen::Error),
    /// Adapters could not be folded.
    #[error(transparent)]
    Merge(Box<lowrank_merge::Error>),
    /// The model could not be built.
    #[error(transparent)]
    Model(Box<lowrank_models::Error>),
    /// A run could not be read, started or finished.
    #[error(transparent)]
    Train(Box<lowrank_train::Error>),
    /// Something in an adapter folder or a run file's `[adapter]` table, with the file.
    #[error("{}: {source}", path.display())]
    In {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<lowrank_adapter::Error>,
    },
    /// What is no path was taken for a repository of the hub, and that could not be opened either.
    #[error("{source} (nothing here is called `{}`)", path.display())]
    NotHere {
        /// What was given.
        path: PathBuf,
        /// Why the hub did not do.
        source: Box<lowrank_format::Error>,
    },
    /// A value of a run file leads to something that cannot be used.
    #[error("{}: `{key}`: {source}", path.display())]
    Key {
        /// The run file.
        path: PathBuf,
        /// The key whose value it is.
        key: &'static str,
        /// What is wrong with what it names.
        source: Box<Error>,
    },
    /// The command line or the run file asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// This program could use a GPU, and none answers.
    #[error("no GPU can be used: {what}")]
    NoGpu {
        /// What CUDA says.
        what: String,
    },
    /// A row that the model cannot read.
    #[error(
        "a row of {files} has {longest} tokens, more than the model's limit of {limit} (`max_position_embeddings`); \
         lower the maximal length to {limit} to cut such rows"
    )]
    TooLong {
        /// The files as they were given.
        files: String,
        /// The tokens of the longest row.
        longest: usize,
        /// What the model reads.
        limit: usize,
    },
    /// A row whose answer cannot be asked for.
    #[error("row {row} (counted from 0): {what}")]
    Question {
        /// The row, from 0.
        row: usize,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// A conversation that leaves no room for an answer.
    #[error(
        "the conversation has {tokens} tokens and the model reads at most {limit} (`max_position_embeddings`), which leaves \
         no room to answer"
    )]
    ChatTooLong {
        /// The tokens of the conversation.
        tokens: usize,
        /// How many tokens the model reads.
        limit: usize,
    },
    /// A text whose vector says nothing.
    #[error(
        "the embedding of row {} is not finite: the model or an adapter (or its weight) makes numbers that are not", row + 1
    )]
    NotFinite {
        /// The row, from 0.
        row: usize,
    },
    /// An adapter that was trained on another base.
    #[error("{}: {what}", path.display())]
    OtherBase {
        /// The adapter folder.
        path: PathBuf,
        /// What differs, and what to do.
        what: String,
    },
}

impl From<lowrank_adapter::Error> for Error {
    fn from(error: lowrank_adapter::Error) -> Self {
        Self::Adapter(Box::new(error))
    }
}

impl From<lowrank_data::Error> for Error {
    fn from(error: lowrank_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<lowrank_merge::Error> for Error {
    fn from(error: lowrank_merge::Error) -> Self {
        Self::Merge(Box::new(error))
    }
}

impl From<lowrank_models::Error> for Error {
    fn from(error: lowrank_models::Error) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<lowrank_train::Error> for Error {
    fn from(error: lowrank_train::Error) -> Self {
        Self::Train(Box::new(error))
    }
}

impl Error {
    /// For `map_err`: names the file or folder.
    pub(crate) fn within(path: impl Into<PathBuf>) -> impl Fn(lowrank_adapter::Error) -> Self {
        let path = path.into();
        move |source| Self::In {
            path: path.clone(),
            source: Box::new(source),
        }
    }

    /// For `map_err`: names the run file and its key.
    pub(crate) fn under(path: &Path, key: &'static str) -> impl Fn(Self) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Key {
            path: path.clone(),
            key,
            source: Box::new(source),
        }
    }

    /// True if the command line or the run file is wrong, rather than the world.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Train(error) => error.is_usage(),
            Self::Model(error) => error.is_usage(),
            Self::Data(error) => matches!(
                **error,
                lowrank_data::Error::EmptyStop
                    | lowrank_data::Error::TooFewToSplit { .. }
                    | lowrank_data::Error::WeightTooSmall { .. }
                    | lowrank_data::Error::EpochTooLong
            ),
            Self::Key { source, .. } => source.is_usage(),
            _ => false,
        }
    }
}
