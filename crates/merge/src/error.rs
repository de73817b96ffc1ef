//! What can go wrong when adapters are folded.

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an adapter could not be folded, or the result not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor function refused.
    #[error(transparent)]
    Ops(#[from] lowrank_ops::Error),
    /// The adapter or the model refused.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapter::Error),
    /// No weight is equal to the adapted layer.
    #[error(
        "{site}: the adapter's update depends on the input, so no merged weight equals it: {why}"
    )]
    InputDependent {
        /// The module.
        site: String,
        /// What of the method makes it so, and what to do.
        why: &'static str,
    },
    /// An update that is no product of two small matrices.
    #[error(
        "{site}: the adapter's update is not of the form s B A, so it has no plain LoRA form; an approximation by a given \
         rank is not yet supported"
    )]
    NotLowRank {
        /// The module.
        site: String,
    },
    /// A merged weight is not finite.
    #[error(
        "{name}: the merged weight has values that are not finite in {dtype}; choose a wider dtype, or another scale of the adapter"
    )]
    NonFinite {
        /// The tensor.
        name: String,
        /// The dtype that it was to be written in.
        dtype: &'static str,
    },
}
