//! What can go wrong with adapters.

use std::fmt;

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an adapter could not be configured, attached, run or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor function refused.
    #[error(transparent)]
    Ops(#[from] lowrank_ops::Error),
    /// A frozen weight refused.
    #[error(transparent)]
    Frozen(#[from] lowrank_frozen::Error),
    /// Something failed at a site.
    #[error("{path}: {source}")]
    At {
        /// The module's path.
        path: String,
        /// What failed there.
        source: Box<Error>,
    },
    /// A configuration key that nobody knows.
    #[error("unknown key `{key}`{}", Suggest(.suggestion))]
    UnknownKey {
        /// The key.
        key: String,
        /// A known key that is near.
        suggestion: Option<String>,
    },
    /// A key that is known, with a value that we do not implement.
    #[error("`{key} = {value}` is not yet supported{}", Only(.only))]
    NotYet {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The only value that works, if there is one.
        only: Option<String>,
    },
    /// A value out of range or of the wrong type.
    #[error("{what}")]
    Config {
        /// What is wrong, with key and value.
        what: String,
    },
    /// The rank exceeds the smaller side of a matrix.
    #[error("r = {rank} is larger than the matrix [{n_out}, {n_in}] allows; use at most {max}", max = n_out.min(n_in))]
    RankTooLarge {
        /// The rank asked for.
        rank: usize,
        /// Rows of the matrix.
        n_out: usize,
        /// Columns of the matrix.
        n_in: usize,
    },
    /// No module of the model matches.
    #[error("{what} matches no module of the model; it has modules named {}", .known.join(", "))]
    NoTarget {
        /// The specification that matched nothing.
        what: String,
        /// The last components of the linear modules' paths.
        known: Vec<String>,
    },
    /// A saved adapter lacks a tensor.
    #[error("tensor `{name}` is missing from the adapter")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A saved adapter holds a tensor that its configuration does not use.
    #[error(
        "tensor `{name}` of the adapter is used by no module (its configuration targets {targets})"
    )]
    UnusedTensor {
        /// The tensor.
        name: String,
        /// How many modules are targeted.
        targets: String,
    },
    /// A saved tensor has the wrong shape.
    #[error(
        "tensor `{name}` has shape {got:?}, expected {expected:?} from the configuration and the base model"
    )]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A saved tensor holds integers where numbers are expected, or the other way round.
    #[error("tensor `{name}` is {got}, expected {expected}")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its dtype.
        got: &'static str,
        /// The dtype that is declared.
        expected: &'static str,
    },
    /// An adapter that is selected but was never attached, or attached twice.
    #[error("adapter `{name}`: {what}")]
    Adapter {
        /// The adapter's name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A trained weight that several selected adapters replace.
    #[error(
        "`{name}` is replaced by a selected adapter, which needs that adapter alone with weight 1: {selection}"
    )]
    Replaced {
        /// The weight.
        name: String,
        /// What is selected.
        selection: String,
    },
    /// A layer gives an infinity or a NaN, and the pass [watches](crate::Pass::watching).
    #[error("the output is not finite")]
    NotFinite,
    /// Anything a model or a controller has to say.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Adds the module's path, once.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        match self {
            Self::At { .. } => self,
            source => Self::At {
                path: path.to_owned(),
                source: Box::new(source),
            },
        }
    }

    pub(crate) fn config(what: impl Into<String>) -> Self {
        Self::Config { what: what.into() }
    }
}

struct Suggest<'a>(&'a Option<String>);

impl fmt::Display for Suggest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |word| write!(f, ", did you mean `{word}`?"))
    }
}

struct Only<'a>(&'a Option<String>);

impl fmt::Display for Only<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |only| write!(f, " (only {only} is)"))
    }
}

/// The known word that is nearest to `word`, if it is near at all.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 4))
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}
