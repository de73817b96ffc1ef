//! The vocabulary of adapters: what a family is, where it attaches, what a forward pass carries, what a model shows.
//!
//! A family of adapters is one small crate that the rest of the workspace never names. It implements [`Family`] and
//! [`Adapter`]; a tensor that it declares through [`Attach`] is thereby trained, counted, saved, loaded and pruned.
//!
//! Which modules a configuration targets, by PEFT's rules:
//!
//! ```
//! use lowrank_adapter::target::{Matcher, Rules, Targets};
//! let targets = Targets::List(vec!["q_proj".into(), "mlp.up_proj".into()]);
//! let matcher = Matcher::new(Rules {
//!     target_modules: &targets,
//!     exclude_modules: Some(&Targets::Pattern(r".*\.3\..*".into())),
//!     modules_to_save: &[],
//!     layers_to_transform: None,
//!     layers_pattern: None,
//! })?;
//! assert!(matcher.matches("model.layers.2.self_attn.q_proj")?);
//! assert!(!matcher.matches("model.layers.3.self_attn.q_proj")?);
//! assert!(!matcher.matches("model.layers.2.self_attn.kq_proj")?);
//! # Ok::<(), lowrank_adapter::Error>(())
//! ```

mod adapter;
mod attach;
mod attached;
mod config;
mod controller;
mod error;
mod family;
mod gate;
mod kv_cache;
mod linear;
mod model;
mod number;
mod pass;
mod place;
mod probe;
mod site;
mod spec;
mod sweep;
pub mod target;
mod update;

pub use adapter::{Adapter, LowRank, Merge, Merged};
pub use attach::{Attach, Start, attach, detach, train_all};
pub use attached::{Attached, Export, Exported, Pair};
pub use config::{AdapterConfig, BiasMode, Common, PEFT_VERSION, ResidualBase, SEQ_CLS, Source};
pub use controller::{Controller, Outcome, Probe, State, Step};
pub use error::{Error, Result, nearest};
pub use family::{AnyFamily, Attachment, Family};
pub use gate::{GateId, Mask, RankGate, Revival};
pub use kv_cache::KvCache;
pub use linear::{Embedding, Linear, Norm, Weight};
pub use lowrank_frozen::Compute;
pub use lowrank_ops::{AttentionMask, Kind, Param, ParamInfo, Reach, Tracking};
pub use model::{Ask, Batch, Model, Part, Tokens, UNSUPERVISED, causal_mask, run};
pub use number::{
    AboveOne, BelowOne, Finite, Fraction, Negative, NonNegative, Positive, Probability,
};
pub use pass::{Blur, Chain, Masks, Pass, Records, Selection};
pub use place::place;
pub use probe::masked_losses;
pub use site::{Site, SiteId};
pub use spec::{Init, LORA_B, Spec};
pub use sweep::{Footprint, Memory, Share, Swept, footprint, sweep};
pub use update::Update;
