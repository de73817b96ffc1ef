//! Folding adapters into their base, writing them as plain low-rank updates, and measuring what that changed.
//!
//! [`fold`] gives the tensors of a stand-alone model; [`compare`] runs the adapted and the folded model on the same
//! tokens and says how far apart they are.
//!
//! ```
//! use lowrank_adapter::Selection;
//! use lowrank_conformance::toy::{Head, Toy};
//! use lowrank_merge::{compare, fold, probe_tokens};
//! let mut model = Toy::new(candle_core::DType::F32, Head::Own)?;
//! let base = Selection::none();
//! let folded = fold(&mut model, &base, None)?;
//! assert!(folded.exact && !folded.untied);
//! let tokens = probe_tokens(lowrank_conformance::toy::VOCABULARY);
//! let distance = compare((&model, &base), (&model, &base), &tokens)?;
//! assert_eq!((distance.max_abs_logit_diff, distance.kl, distance.tokens), (0.0, 0.0, 118));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compare;
mod error;
mod fold;
mod plain;

pub use compare::{Comparison, compare, compare_classes, probe_tokens};
pub use error::{Error, Result};
pub use fold::{Folded, fold};
pub use plain::{PlainSite, plain};
