//! What can go wrong in a tensor function.

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a tensor function refused its arguments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused: usually a device or an allocation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor does not have the shape that the function documents.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The function.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The shape it has.
        got: Vec<usize>,
        /// The shape it must have, in words.
        expected: String,
    },
    /// An index (a token, a target) lies outside its table.
    #[error("{op}: index {index} is out of range, the table has {len} rows")]
    Index {
        /// The function.
        op: &'static str,
        /// The offending index.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// Only f32 and f64 take part in differentiable functions.
    #[error("{op}: dtype {dtype} is not supported, expected f32 or f64")]
    DType {
        /// The function.
        op: &'static str,
        /// The dtype as candle names it.
        dtype: &'static str,
    },
    /// An argument is outside its range.
    #[error("{op}: {what}")]
    Argument {
        /// The function.
        op: &'static str,
        /// What is wrong with which argument.
        what: String,
    },
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => Self::msg(other),
        }
    }
}
