//! What can go wrong, from any crate below.

use std::path::PathBuf;

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
    Adapter(#[from] lowrank_adapter::Error),
    /// Rows could not be read.
    #[error(transparent)]
    Data(#[from] lowrank_data::Error),
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] lowrank_format::Error),
    /// A frozen weight could not be read.
    #[error(transparent)]
    Frozen(#[from] lowrank_frozen::Error),
    /// Adapters could not be folded.
    #[error(transparent)]
    Merge(#[from] lowrank_merge::Error),
    /// The model could not be built.
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    /// A run could not be read, started or finished.
    #[error(transparent)]
    Train(#[from] lowrank_train::Error),
    /// Something in an adapter folder or a run file's `[adapter]` table, with the file.
    #[error("{}: {source}", path.display())]
    In {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong in it.
        source: lowrank_adapter::Error,
    },
    /// The command line or the run file asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// An adapter that was trained on another base.
    #[error("{}: {what}", path.display())]
    OtherBase {
        /// The adapter folder.
        path: PathBuf,
        /// What differs, and what to do.
        what: String,
    },
}

impl Error {
    /// True if the command line or the run file is wrong, rather than the world.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Train(error) => error.is_usage(),
            _ => false,
        }
    }
}
