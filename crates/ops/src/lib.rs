//! Differentiable tensor functions, parameters, gradients and keyed random numbers.
//!
//! Everything a forward pass reaches lives here and has a backward. Each function checks its shapes once,
//! says them in its documentation, and accepts non-contiguous inputs. Fused operations have a composed twin
//! in [`composed`], which is their oracle in tests.
//!
//! ```
//! use lowrank_ops as ops;
//! use candle_core::{Device, Tensor};
//! let x = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu)?;
//! let a = Tensor::new(&[[1f32, 0., -1.]], &Device::Cpu)?;
//! let b = Tensor::new(&[[2f32], [-1.]], &Device::Cpu)?;
//! let delta = ops::low_rank(&x, &a, &b, 4.0)?;
//! assert_eq!(delta.to_vec2::<f32>()?, [[-16., 8.]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod rng;

mod error;
mod grads;
mod param;

pub use error::{Error, Result};
pub use grads::{Grads, Seed, backward, leaf};
pub use param::{Kind, Param, ParamInfo, Tracking};
