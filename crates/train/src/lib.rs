//! Training: the run file, the loop, the optimiser, schedules, evaluation, metrics and checkpoints.
//!
//! [`RunFile`] says what to do, [`RunFolder`] holds where, [`Trainable`] is what is trained, and [`train`] does it,
//! reporting to a [`Progress`]. A run that was killed at any moment and is resumed ends with the same bits as one that
//! was not. The parts can be used alone: [`Trainer`] makes single steps, [`loss`], [`choices`] and [`logits`] evaluate.
//!
//! Nothing here knows a model or a family of adapters by name.
//!
//! ```
//! use lowrank_train::{RunFile, Schedule};
//! use std::path::Path;
//!
//! let text = r#"
//!     model.source = "tiny"
//!     data.train = ["train.jsonl"]
//!     output.dir = "runs/first"
//!     [train]
//!     steps = 4
//!     schedule = "linear"
//! "#;
//! let sets = ["train.learning_rate=0.1".to_owned()];
//! let run = RunFile::parse(text, Path::new("run.toml"), &sets)?;
//! let (base, curve) = (run.train.learning_rate, run.train.schedule);
//! let schedule = Schedule { base, curve, warmup: run.train.warmup.steps(4), total: 4, least: 0.0 };
//! assert_eq!(schedule.rate(3), 0.05);
//!
//! let wrong = ["train.bacth_size=4".to_owned()];
//! let error = RunFile::parse(text, Path::new("run.toml"), &wrong).unwrap_err();
//! assert_eq!(error.to_string(), "--set: unknown key `train.bacth_size`, did you mean `train.batch_size`?");
//! # Ok::<(), lowrank_train::Error>(())
//! ```

mod append;
mod best;
mod checkpoint;
mod choices;
mod classify;
mod clip;
mod content;
mod error;
mod evaluate;
mod events;
mod interval;
mod keys;
mod log;
mod metrics;
mod optimizer;
mod place;
mod reference;
mod resolved;
mod rows;
mod run;
mod run_file;
mod run_folder;
mod schedule;
pub mod task_metrics;
mod trainer;

pub use best::{Best, Judging, Metric};
pub use checkpoint::{Checkpoint, Record};
pub use choices::{Prediction, choices};
pub use classify::{Answer, Classified, classify};
pub use clip::{clip_factor, find_non_finite, global_norm};
pub use error::{Change, Error, Result};
pub use evaluate::{Evaluation, batch, logits, loss, packed};
pub use interval::wilson;
pub use metrics::{EvalLine, Metrics, StepLine, peak_rss_mb, rss_mb};
pub use optimizer::{AdamW, Ages, Algorithm, Chosen, Group, LoraFa, Optimizer, Sgd, Updated};
pub use place::Place;
pub use reference::{KEYS, Key, reference};
pub use rows::Rows;
pub use run::{Progress, Started, Summary, train};
pub use run_file::{
    AdapterKeys, CacheKey, DataKeys, Held, ModelKeys, OnNonFinite, OutputKeys, RunFile, TaskKeys,
    TrainFiles, TrainKeys,
};
pub use run_folder::{Mode, RunFolder};
pub use schedule::{Curve, Schedule, Warmup};
pub use trainer::{Done, Summed, Trainable, Trainer, Update};
