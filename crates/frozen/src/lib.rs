//! Frozen weights: the base of every adapter, whatever it is stored in, with a gradient to the input only.

mod error;
mod weights;

pub use error::{Error, Result};
pub use weights::{TensorInfo, Weights};
