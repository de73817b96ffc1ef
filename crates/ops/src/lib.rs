//! Differentiable tensor functions, parameters, gradients and keyed random numbers.
//!
//! Everything a forward pass reaches lives here and has a backward. Each function checks its shapes once,
//! says them in its documentation, and accepts non-contiguous inputs. Fused operations have a composed twin
//! in `composed`, which is their oracle in tests.
//!
//! ```
//! use lowrank_ops::rng::{Key, Purpose};
//! let key = Key::new(42, Purpose::Test).site("model.layers.0");
//! assert_eq!(key.stream().bits(), key.stream().bits());
//! ```

pub mod gemm;
pub mod rng;

mod error;
mod float;
mod grads;
mod param;

pub use error::{Error, Result};
pub use float::{Data, Float, argument, data};
pub use grads::{Grads, Seed, backward, leaf};
pub use param::{Kind, Param, ParamInfo, Tracking};
