//! Frozen weights: the base of every adapter, whatever it is stored in, with a gradient to the input only.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lowrank_frozen::FrozenLinear;
//! let weight = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu)?;
//! let bias = Tensor::new(&[0.5f32, -0.5], &Device::Cpu)?;
//! let layer = FrozenLinear::new(weight, Some(bias))?;
//! let x = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu)?;
//! assert_eq!(layer.forward(&x)?.to_vec2::<f32>()?, [[14.5, 31.5]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blocks;
mod device;
mod embedding;
mod error;
mod few_rows;
mod few_rows_blocks;
mod head;
mod kernels;
mod linear;
mod nf4;
mod packed;
mod product;
mod recorded;
mod stored;
mod weights;

pub use blocks::BlockType;
pub use embedding::FrozenEmbedding;
pub use error::{Error, Result};
pub use head::logits_at_once;
pub use kernels::{Compute, Direction};
pub use linear::FrozenLinear;
pub use nf4::{Nf4, Scales};
pub use stored::{Encoding, Stored};
pub use weights::{TensorInfo, Weights};
