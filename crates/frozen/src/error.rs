//! What can go wrong with frozen weights.

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a frozen weight could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor function refused.
    #[error(transparent)]
    Ops(#[from] lowrank_ops::Error),
    /// A checkpoint lacks a tensor that the model needs.
    #[error("{origin}: tensor `{name}` is missing")]
    Missing {
        /// The checkpoint.
        origin: String,
        /// The tensor.
        name: String,
    },
    /// A tensor does not have the shape that the model's configuration implies.
    #[error("{origin}: tensor `{name}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The checkpoint.
        origin: String,
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A tensor's storage is not supported (yet).
    #[error("{origin}: tensor `{name}` is stored as {dtype}, which is not yet supported; {hint}")]
    DType {
        /// The checkpoint.
        origin: String,
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: String,
        /// What to do.
        hint: &'static str,
    },
    /// Only the shape of a weight is known.
    #[error("the weight [{n_out}, {n_in}] was not loaded, only its shape is known")]
    Absent {
        /// Rows.
        n_out: usize,
        /// Columns.
        n_in: usize,
    },
    /// A reader failed; the message names the file.
    #[error("{0}")]
    Read(String),
}
