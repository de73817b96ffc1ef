//! What can go wrong with an allocation.

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why no decision could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or a probe refused.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapter::Error),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor function refused.
    #[error(transparent)]
    Ops(#[from] lowrank_ops::Error),
    /// A rank without a score.
    #[error("the score of rank {slot} of site {site} is {score}: no ranks can be allocated by it")]
    NotFinite {
        /// The site, in site order.
        site: usize,
        /// The slot.
        slot: usize,
        /// What it is instead of a number.
        score: f64,
    },
    /// Lists that should speak of the same sites or slots.
    #[error("{what}: {got} instead of {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length that fits.
        expected: usize,
    },
    /// A state that another score wrote.
    #[error("the state of the scores does not fit: {what}")]
    State {
        /// What is wrong.
        what: String,
    },
}

impl From<Error> for lowrank_adapter::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Adapter(error) => error,
            Error::Candle(error) => error.into(),
            Error::Ops(error) => error.into(),
            other => Self::Other(other.to_string()),
        }
    }
}
