//! The output layer and its loss in one operation, so that the logits of all positions never exist at once.

use crate::Result;
use crate::kernels::Direction;
use crate::product::Factor;
use candle_core::{Shape, Tensor};
use lowrank_ops as ops;
use ops::gemm::Before;
use ops::tape::{self, Backward, Inputs};
use ops::{Float, data, losses_and_slopes, unwritten};
use rayon::prelude::*;
use std::sync::Arc;

/// How many logits exist at once, unless a row has more: 64 MiB of f32.
const LOGITS: usize = 1 << 24;

/// How many rows of `vocab` logits exist at once while [`FrozenLinear::cross_entropy`](crate::FrozenLinear::cross_entropy)
/// computes the losses of so many targets.
#[must_use]
pub fn logits_at_once(targets: usize, vocab: usize) -> usize {
    // Parts of nearly the same height: a last one of few rows would cost as much as a high one.
    let parts = targets.div_ceil((LOGITS / vocab.max(1)).max(1)).max(1);
    targets.div_ceil(parts).max(1)
}

/// `-log softmax(x W^T)[target]` of every row: `x` `[targets, n_in]` -> `[targets]`. The gradient of x is computed along
/// with the losses, while the logits exist, and scaled when theirs arrive. Labels are smoothed as
/// [`ops::smoothed_cross_entropy`] does.
pub(crate) fn cross_entropy<W: Factor>(
    weight: &W,
    x: &Tensor,
    targets: &[u32],
    smoothing: f64,
) -> Result<Tensor> {
    let (vocab, n_in) = weight.dims();
    let tracked = x.track_op();
    let numbers = data::<W::Number>(x)?;
    let height = logits_at_once(targets.len(), vocab);
    let mut logits = unwritten(height * vocab);
    let mut losses = Vec::with_capacity(targets.len());
    let mut factors = Vec::with_capacity(targets.len());
    let mut slopes = unwritten(if tracked { numbers.len() } else { 0 });
    for first in (0..targets.len()).step_by(height) {
        let rows = first..targets.len().min(first + height);
        let logits = &mut logits[..rows.len() * vocab];
        let part = rows.start * n_in..rows.end * n_in;
        weight.product(
            Direction::Forward,
            &numbers[part.clone()],
            rows.len(),
            None,
            Before::Ignored,
            logits,
        )?;
        for (loss, factor) in losses_and_slopes(logits, vocab, &targets[rows.clone()], smoothing) {
            losses.push(loss);
            factors.push(factor);
        }
        if tracked {
            weight.product(
                Direction::Backward,
                logits,
                rows.len(),
                None,
                Before::Ignored,
                &mut slopes[part],
            )?;
        }
    }
    drop(numbers);
    let losses = [(losses, Shape::from(targets.len()))];
    let op = HeadLoss {
        slopes,
        factors,
        n_in,
    };
    let [losses] = tape::record("frozen_cross_entropy", &[x], losses, op)?;
    Ok(losses)
}

struct HeadLoss<T> {
    /// The gradient of x for losses that count once each, but for a factor of each row.
    slopes: Vec<T>,
    factors: Vec<T>,
    n_in: usize,
}

impl<T: Float> Backward<T> for HeadLoss<T> {
    fn backward(
        &self,
        grads: &[Option<Arc<Vec<T>>>],
        inputs: &mut Inputs<'_, T>,
    ) -> ops::Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let mut x_grad = unwritten(self.slopes.len());
        let rows = x_grad
            .par_chunks_mut(self.n_in)
            .zip(self.slopes.par_chunks(self.n_in));
        rows.zip(self.factors.par_iter().zip(grad.as_slice()))
            .for_each(|((into, slopes), (factor, grad))| {
                let factor = *factor * *grad;
                for (into, slope) in into.iter_mut().zip(slopes) {
                    *into = *slope * factor;
                }
            });
        inputs.add(0, Arc::new(x_grad));
        Ok(())
    }
}
