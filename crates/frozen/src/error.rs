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
    /// A weight cannot be held in this dtype.
    #[error("FrozenLinear: dtype {dtype} is not supported, expected f32, f64, f16 or bf16")]
    Frozen {
        /// The dtype.
        dtype: &'static str,
    },
    /// Quantised blocks do not make up the matrix that they should.
    #[error(
        "{bytes} bytes of {block} blocks are not a matrix of {} rows and {} columns", dims.0, dims.1
    )]
    Blocks {
        /// The name of the blocks' type.
        block: &'static str,
        /// Rows and columns.
        dims: (usize, usize),
        /// How many bytes there are.
        bytes: usize,
    },
    /// The parts of numbers in NF4 do not fit together.
    #[error("nf4: {what}")]
    Nf4 {
        /// What is wrong, with the numbers.
        what: String,
    },
    /// Numbers cannot be quantised.
    #[error("a NaN, an infinity, or scales whose sum is infinite cannot be quantised")]
    NotFinite,
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

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => Self::wrap(other),
        }
    }
}
