//! lowrank: parameter-efficient fine-tuning, from a folder to a folder.
//!
//! This crate joins the others: it opens a base model, attaches adapters that it finds in files, runs a run file,
//! evaluates, generates and inspects, and says what the families can do. Programs that need one piece depend on that
//! piece alone; they are re-exported here.
//!
//! ```no_run
//! use lowrank::models::Precision;
//! use lowrank::{Base, StrictBase, load_adapter};
//!
//! let mut base = Base::open("models/SmolLM2-135M-Instruct", Precision::AsStored)?;
//! let folder = "runs/quick/adapter".as_ref();
//! let adapter = load_adapter(&mut base, "default", folder, StrictBase::No)?;
//! println!("{} parameters at {} sites", adapter.trainable_parameters(), adapter.sites.len());
//! # Ok::<(), lowrank::Error>(())
//! ```
//!
//! ```
//! let source: lowrank::AdapterSource = "style=runs/style/adapter@0.5".parse()?;
//! assert_eq!((source.name.as_deref(), source.weight), (Some("style"), 0.5));
//! # Ok::<(), String>(())
//! ```

mod adapters;
mod answers;
mod base;
mod card;
mod chat;
mod device;
mod embed;
mod error;
mod export;
mod families;
mod generate;
mod hub;
mod inspect;
mod merged;
mod paths;
mod plan;
mod rows;
mod run;

pub use adapters::{
    AdapterSource, Reading, StrictBase, adapter_classes, load_adapter, save_adapter,
};
pub use answers::{Answered, answers};
pub use base::{Base, BaseFiles, precision};
pub use chat::{Chat, Turn};
pub use device::device;
pub use embed::{Embedded, Pooling, Scale, embed};
pub use error::{Error, Result};
pub use export::{ExportedSite, Plain, export_lora};
pub use families::{Capabilities, Merges, ToLora, families};
pub use generate::{Generated, Generation, Generator, Prompt};
pub use inspect::{Inspection, SiteSummary, TensorSummary, inspect};
pub use merged::{Written, merge_into};
pub use paths::real as real_path;
pub use plan::{MemoryEstimate, PlannedFile, PlannedSite, Rendered, RunPlan, plan};
pub use rows::{open_data, open_texts};
pub use run::{Trained, train};

pub use lowrank_adapter as adapter;
pub use lowrank_data as data;
pub use lowrank_format as format;
pub use lowrank_frozen as frozen;
pub use lowrank_merge as merge;
pub use lowrank_models as models;
pub use lowrank_ops as ops;
pub use lowrank_registry as registry;
pub use lowrank_report as report;
pub use lowrank_train as training;
