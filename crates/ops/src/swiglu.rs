//! The gated activation of LLaMA's feed-forward block.

use crate::float::{same_dtype, with_float};
use crate::rows::{GRAIN, expect_dims, put, zip};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// silu(gate) * up, where silu(z) = z / (1 + exp(-z)); both of the same shape.
///
/// # Errors
/// If the shapes differ, or a dtype is neither f32 nor f64, or they differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    expect_dims("swiglu", "up", up, gate.dims())?;
    same_dtype("swiglu", gate, &[("up", up)])?;
    if composed::replaces("swiglu", gate)? {
        return composed::swiglu(gate, up);
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    with_float!("swiglu", gate.dtype(), T => {
        let y = zip(&data::<T>(&gate)?, &data::<T>(&up)?, |gate, up| gate * sigmoid(gate) * up);
        let [y] = tape::record("swiglu", &[&gate, &up], [(y, gate.shape().clone())], Swiglu)?;
        Ok(y)
    })
}

struct Swiglu;

#[inline(always)]
fn sigmoid<T: Float>(z: T) -> T {
    T::ONE / (T::ONE + Float::exp(-z))
}

impl<T: Float> Backward<T> for Swiglu {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (gates, ups) = (inputs.data(0)?, inputs.data(1)?);
        // Both gradients in one pass; the one that nobody wants is dropped.
        let mut up_grad = unwritten::<T>(g.len());
        let mut write = |gate_grad: &mut [T], begun: bool| {
            gate_grad
                .par_chunks_mut(GRAIN)
                .zip(up_grad.par_chunks_mut(GRAIN))
                .zip(g.par_chunks(GRAIN))
                .zip(gates.par_chunks(GRAIN).zip(ups.par_chunks(GRAIN)))
                .for_each(|(((gate_grad, up_grad), g), (gates, ups))| {
                    vectorised!({
                        let outputs = gate_grad.iter_mut().zip(up_grad);
                        let known = g.iter().zip(gates.iter().zip(ups));
                        for ((gate_grad, up_grad), (g, (gate, up))) in outputs.zip(known) {
                            let s = sigmoid(*gate);
                            let slope = *g * *up * s * (T::ONE + *gate * (T::ONE - s));
                            put(gate_grad, slope, begun);
                            *up_grad = *g * *gate * s;
                        }
                    });
                });
        };
        if inputs.wanted(0) {
            inputs.accumulate(0, |into, begun| {
                write(into, begun);
                Ok(())
            })?;
        } else {
            write(&mut unwritten(g.len()), false);
        }
        if inputs.wanted(1) {
            inputs.add(1, Arc::new(up_grad));
        }
        Ok(())
    }
}
