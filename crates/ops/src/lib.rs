//! Differentiable tensor functions, parameters, gradients and keyed random numbers.
//!
//! Everything a forward pass reaches lives here and has a backward. Each function checks its shapes once,
//! says them in its documentation, and accepts non-contiguous inputs. Fused operations have a composed twin
//! in [`composed`], which is their oracle in tests.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lowrank_ops as ops;
//! let x = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu)?;
//! let a = Tensor::new(&[[1f32, 0., -1.]], &Device::Cpu)?;
//! let b = Tensor::new(&[[2f32], [-1.]], &Device::Cpu)?;
//! let delta = ops::low_rank(&x, &a, &b, 4.0)?;
//! assert_eq!(delta.to_vec2::<f32>()?, [[-16., 8.]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod composed;
pub mod gemm;
#[doc(hidden)]
pub mod lanes;
pub mod linalg;
pub mod rng;
pub mod simd;
pub mod skinny;
pub mod tape;

mod add;
mod attention;
mod attention_cached;
mod attention_mask;
mod bias;
mod cross_entropy;
mod direct;
mod dropout;
mod error;
mod float;
mod gauss;
mod gelu;
mod grads;
mod hadamard;
mod khatri_rao;
mod kronecker;
mod layer_norm;
mod linear;
mod low_rank;
mod norm;
mod orthogonality;
mod param;
mod reduce;
mod rotary;
mod rows;
mod scale;
mod select;
mod skinny_single;
mod swiglu;

pub(crate) use float::argument;

pub use add::add;
pub use attention::{attention, self_attention, unrotated_attention};
pub use attention_cached::attention_cached;
pub use attention_mask::{AttentionMask, Reach};
pub use bias::add_bias;
pub use cross_entropy::{
    check_smoothing, cross_entropy, losses_and_slopes, smoothed_cross_entropy,
};
pub use dropout::{Dropout, dropout};
pub use error::{Error, Result};
pub use float::{Buffer, Data, Float, data, unwritten};
pub use gelu::{gelu, gelu_tanh};
pub use grads::{Grads, Seed, backward, graph_bytes, leaf};
pub use hadamard::hadamard;
pub use khatri_rao::{khatri_rao, outer_rows};
pub use kronecker::{Second, kronecker};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use low_rank::{add_scaled, low_rank};
pub use norm::{add_rms_norm, rms_norm};
pub use orthogonality::{Deviation, Frame, orthogonality};
pub use param::{Kind, Param, ParamInfo, Tracking};
pub use reduce::{all_finite, norm_squared, row_norms_squared, sum_all};
pub use rotary::{RotaryScaling, RotaryTable, rotary};
pub use scale::scale_columns;
pub use select::{embedding, gather_columns, gather_rows};
pub use swiglu::swiglu;
