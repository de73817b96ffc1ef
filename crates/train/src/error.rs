//! What can go wrong in a run.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a run could not start, go on or be resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run file, or a `--set`, is wrong.
    #[error("{place}: {what}")]
    RunFile {
        /// The file (with line and column where its syntax is wrong), or `--set`.
        place: String,
        /// What is wrong, with key and value, and what was expected.
        what: String,
    },
    /// A run would write into a folder that holds something.
    #[error("output folder {} is not empty: continue its run with `--resume`, replace it with `--overwrite`, or choose another `output.dir`", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A run would replace what no run has made.
    #[error("{} was not made by a run (there is no run.toml beside it), and would be replaced by this one; move it away or choose another `output.dir`", path.display())]
    Foreign {
        /// What would be replaced.
        path: PathBuf,
    },
    /// A run cannot be resumed because what it depends on has changed.
    #[error("cannot resume from {}: {}; restore what it was, or start anew with `--overwrite`", checkpoint.display(), Changes(changes))]
    Changed {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What differs.
        changes: Vec<Change>,
    },
    /// A trained tensor takes no part in the loss.
    #[error("`{param}` is trained but receives no gradient: the loss does not depend on it")]
    Unreachable {
        /// The tensor.
        param: String,
    },
    /// Nothing is trained.
    #[error("nothing is trained: no parameter of the adapter receives gradients")]
    NothingTrained,
    /// A loss or a gradient is infinite or not a number.
    #[error(
        "step {step}: {what}; try a lower `train.learning_rate`, or leave such steps out with `train.on_non_finite = \"skip\"`"
    )]
    NonFinite {
        /// The optimiser step, from 1.
        step: u64,
        /// What is not finite.
        what: String,
    },
    /// A method asks for losses of held-out rows, and there are none.
    #[error(
        "the method scores ranks on held-out rows, and there are none: name some in `data.eval`, or hold some of `data.train` out with `data.eval_fraction`"
    )]
    NoHeldOut,
    /// The best of no evaluations is asked for.
    #[error(
        "`train.load_best`, `train.early_stopping_patience` and a `train.best_metric` compare evaluations, and there are no \
         held-out rows: name some in `data.eval`, or hold some of `data.train` out with `data.eval_fraction`"
    )]
    NothingToJudge,
    /// Evaluations are to be compared by what they do not give.
    #[error(
        "`train.best_metric = \"{name}\"` is no metric of this task, expected one of: {}",
        known.join(", ")
    )]
    NoMetric {
        /// The metric that was asked for.
        name: &'static str,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The run was asked to stop, and has. What it has done is saved.
    #[error("stopped after step {step} of {total}, as asked; go on with `--resume`")]
    Interrupted {
        /// The last step, after which it was saved; 0 if there was nothing to save.
        step: u64,
        /// How many there would have been.
        total: u64,
    },
    /// There are no rows to train on.
    #[error("the training data has no rows")]
    NoRows,
    /// Optimiser settings for a group that no tensor belongs to.
    #[error(
        "`train.groups.{group}` names a group that no trained tensor belongs to; there {}",
        Groups(known)
    )]
    UnknownGroup {
        /// The name.
        group: String,
        /// The groups of the trained tensors.
        known: Vec<String>,
    },
    /// LoRA+ for tensors of which none is such a factor.
    #[error(
        "`train.lora_plus_ratio` raises the learning rate of group `lora_B`, which no trained tensor belongs to; there {}",
        Groups(known)
    )]
    NoFactors {
        /// The groups of the trained tensors.
        known: Vec<String>,
    },
    /// An optimiser of factors for tensors that are none.
    #[error(
        "`train.optimizer = \"{optimizer}\"` trains layers that learn a product of two factors and nothing else, as plain LoRA's do: {what}"
    )]
    Unpaired {
        /// The optimiser's name.
        optimizer: &'static str,
        /// What is not so.
        what: String,
    },
    /// A checkpoint, or what is in it, does not fit.
    #[error("{}: {what}", path.display())]
    Checkpoint {
        /// The checkpoint or the file in it.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot {action} {path}".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The model or an adapter refused.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapter::Error),
    /// The data refused.
    #[error(transparent)]
    Data(#[from] lowrank_data::Error),
    /// A file refused.
    #[error(transparent)]
    Format(#[from] lowrank_format::Error),
    /// A tensor function refused.
    #[error(transparent)]
    Ops(#[from] lowrank_ops::Error),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// One thing that differs between a checkpoint and the run that would continue it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The run file's key.
    pub key: String,
    /// Its value in the checkpoint, as JSON; none if it was not set.
    pub was: Option<String>,
    /// Its value now.
    pub now: Option<String>,
}

impl Error {
    /// True if the command line or the run file is wrong, rather than what happened in the run: exit status 2.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::RunFile { .. }
                | Self::NotEmpty { .. }
                | Self::Foreign { .. }
                | Self::Changed { .. }
                | Self::UnknownGroup { .. }
                | Self::NoFactors { .. }
                | Self::Unpaired { .. }
                | Self::NoHeldOut
                | Self::NothingToJudge
                | Self::NoMetric { .. }
                | Self::NothingTrained
                | Self::Adapter(lowrank_adapter::Error::Config { .. })
                | Self::Data(
                    lowrank_data::Error::PackedEpochs { .. } | lowrank_data::Error::EpochTooLong
                )
        )
    }

    /// For `map_err`: names what was tried, and where; a full disk says so.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::writing(action, path, None)
    }

    /// As [`Self::io`], of what was to be so many bytes long.
    pub(crate) fn writing(
        action: &'static str,
        path: &Path,
        bytes: Option<u64>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| match lowrank_format::Error::no_room(path, bytes, source) {
            Ok(full) => Self::Format(full),
            Err(source) => Self::Io {
                action,
                path: path.to_path_buf(),
                source,
            },
        }
    }
}

struct Changes<'a>(&'a [Change]);

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Change { key, was, now }) in self.0.iter().enumerate() {
            let or_absent = |value: &Option<String>| value.clone().unwrap_or("absent".into());
            let comma = if i == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}`{key}` was {}, now it is {}",
                or_absent(was),
                or_absent(now)
            )?;
        }
        Ok(())
    }
}

struct Groups<'a>(&'a [String]);

impl fmt::Display for Groups<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => write!(f, "is none"),
            [one] => write!(f, "is `{one}`"),
            many => write!(f, "are `{}`", many.join("`, `")),
        }
    }
}
