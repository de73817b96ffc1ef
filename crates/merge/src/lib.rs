//! Folding adapters into their base, and measuring what that changed.
//!
//! [`fold`] gives the tensors of a stand-alone model; [`compare`] runs the adapted and the folded model on the same
//! tokens and says how far apart they are.

mod compare;
mod error;
mod fold;

pub use compare::{Comparison, compare, probe_tokens};
pub use error::{Error, Result};
pub use fold::{Folded, fold};
