//! The gated activation of LLaMA's feed-forward block.

use crate::float::{same_dtype, with_float};
use crate::rows::{expect_dims, tensor, zip};
use crate::{Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// silu(gate) * up, where silu(z) = z / (1 + exp(-z)); both of the same shape.
///
/// # Errors
/// If the shapes differ, or a dtype is neither f32 nor f64, or they differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    expect_dims("swiglu", "up", up, gate.dims())?;
    same_dtype("swiglu", gate, &[("up", up)])?;
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    Ok(with_float!("swiglu", gate.dtype(), T => gate.apply_op2(&up, Swiglu::<T>(PhantomData)))?)
}

struct Swiglu<T>(PhantomData<T>);

#[inline(always)]
fn sigmoid<T: Float>(z: T) -> T {
    T::ONE / (T::ONE + Float::exp(-z))
}

impl<T: Float> CustomOp2 for Swiglu<T> {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let gate = argument::<T>(gate, gate_layout)?;
        let up = argument::<T>(up, up_layout)?;
        let y = zip(gate, up, |gate, up| gate * sigmoid(gate) * up);
        Ok((T::storage(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (g, gates, ups) = (data::<T>(&grad)?, data::<T>(gate)?, data::<T>(up)?);
        let gate_grad = if gate.track_op() {
            let mut slopes = zip(&g, &ups, |g, up| g * up);
            slopes
                .par_chunks_mut(4096)
                .zip(gates.par_chunks(4096))
                .for_each(|(slopes, gates)| {
                    for (slope, gate) in slopes.iter_mut().zip(gates) {
                        let s = sigmoid(*gate);
                        *slope *= s * (T::ONE + *gate * (T::ONE - s));
                    }
                });
            Some(tensor(slopes, gate)?)
        } else {
            None
        };
        let up_grad = if up.track_op() {
            let slopes = zip(&gates, &g, |gate, g| g * gate * sigmoid(gate));
            Some(tensor(slopes, up)?)
        } else {
            None
        };
        Ok((gate_grad, up_grad))
    }
}
