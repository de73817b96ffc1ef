//! The loss of classification and of language modelling.

use crate::float::with_float;
use crate::rows::{exp_and_sum, for_rows, map_rows, max, sum};
use crate::simd::{Level, vectorised};
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, leveled, unwritten};
use candle_core::{Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// `-log softmax(logits)[target]` of every row: `logits` `[n, vocab]`, one target a row -> `[n]`.
///
/// # Errors
/// If the shapes do not fit, a target is not below `vocab`, or the dtype is neither f32 nor f64.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    smoothed_cross_entropy(logits, targets, 0.0)
}

/// [`cross_entropy`] with labels that are smoothed: of every row (1 - `smoothing`) times the loss of its target, and
/// `smoothing` times the mean loss of all `vocab` classes, as transformers' label smoother has it.
///
/// # Errors
/// As [`cross_entropy`], and if `smoothing` is not in [0, 1).
pub fn smoothed_cross_entropy(logits: &Tensor, targets: &[u32], smoothing: f64) -> Result<Tensor> {
    let vocab = match logits.dims() {
        [rows, vocab] if *rows == targets.len() && *vocab > 0 => *vocab,
        dims => {
            return Err(Error::Shape {
                op: "cross_entropy",
                what: "logits",
                got: dims.to_vec(),
                expected: format!("[{}, vocab] with vocab > 0", targets.len()),
            });
        }
    };
    if let Some(target) = targets.iter().find(|target| **target as usize >= vocab) {
        return Err(Error::Index {
            op: "cross_entropy",
            index: *target as usize,
            len: vocab,
        });
    }
    check_smoothing(smoothing)?;
    if composed::replaces("cross_entropy", logits)? {
        return composed::smoothed_cross_entropy(logits, targets, smoothing);
    }
    let (logits, targets) = (logits.contiguous()?, targets.to_vec());
    with_float!("cross_entropy", logits.dtype(), T => {
        let (losses, log_sums) = losses::<T>(&data(&logits)?, vocab, &targets, smoothing);
        let losses = [(losses, Shape::from(targets.len()))];
        let op = CrossEntropy { targets, log_sums, vocab, smoothing };
        let [losses] = tape::record("cross_entropy", &[&logits], losses, op)?;
        Ok(losses)
    })
}

/// Refuses what is no share of a label.
///
/// # Errors
/// If `smoothing` is not in [0, 1).
pub fn check_smoothing(smoothing: f64) -> Result<()> {
    if (0.0..1.0).contains(&smoothing) {
        return Ok(());
    }
    Err(Error::Argument {
        op: "cross_entropy",
        what: format!("the label smoothing is {smoothing}, expected a number from 0 to below 1"),
    })
}

/// The loss of every row, and log(sum(exp(logits))).
fn losses<T: Float>(
    logits: &[T],
    vocab: usize,
    targets: &[u32],
    smoothing: f64,
) -> (Vec<T>, Vec<f64>) {
    let log_sums = map_rows(targets.len(), vocab, |row| {
        let row = &logits[row * vocab..][..vocab];
        vectorised!({
            let max = max(row);
            max.to_f64() + sum(row, |x| Float::exp(x - max).to_f64()).ln()
        })
    });
    let target = |(row, target): (usize, &u32)| {
        let logits = &logits[row * vocab..][..vocab];
        let own = logits[*target as usize].to_f64();
        T::from_f64(log_sums[row] - aim(own, logits, smoothing))
    };
    (targets.iter().enumerate().map(target).collect(), log_sums)
}

/// What the loss of a row asks to be as large as log(sum(exp(logits))): its target's logit, or with smoothed labels the
/// mean of the logits with the labels' weights.
fn aim<T: Float>(own: f64, logits: &[T], smoothing: f64) -> f64 {
    if smoothing == 0.0 {
        return own;
    }
    let total = vectorised!({ sum(logits, |x| x.to_f64()) });
    (1.0 - smoothing) * own + smoothing * total / logits.len() as f64
}

/// The loss of every row of `logits` [targets, vocab], and a factor: that times what then stands in the row's place is
/// its gradient, softmax(logits) minus the row's label: 1 at the target, or as [`smoothed_cross_entropy`] spreads it. For
/// operations that have the loss inside, and something to multiply that is smaller than the logits.
///
/// # Panics
/// If the lengths do not fit or a target is not below `vocab`: callers have checked.
#[must_use]
pub fn losses_and_slopes<T: Float>(
    logits: &mut [T],
    vocab: usize,
    targets: &[u32],
    smoothing: f64,
) -> Vec<(T, T)> {
    assert_eq!(
        logits.len(),
        targets.len() * vocab,
        "a row for every target"
    );
    logits
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, target)| {
            let target = *target as usize;
            let own = aim(row[target].to_f64(), row, smoothing);
            let (mut largest, mut total) = (T::ZERO, 0.0);
            exponentials(Level::used(), row, &mut largest, &mut total);
            row[target] -= T::from_f64((1.0 - smoothing) * total);
            if smoothing > 0.0 {
                let spread = T::from_f64(smoothing * total / vocab as f64);
                row.iter_mut().for_each(|slope| *slope -= spread);
            }
            let loss = T::from_f64(largest.to_f64() + total.ln() - own);
            (loss, T::from_f64(1.0 / total))
        })
        .collect()
}

leveled! {
    /// Puts exp(x - max) in place of every number; tells the maximum and the sum.
    fn exponentials<T: Float>(row: &mut [T], largest: &mut T, total: &mut f64) {
        *largest = max(row);
        *total = exp_and_sum(row, *largest);
    }
}

struct CrossEntropy {
    targets: Vec<u32>,
    /// log(sum(exp(logits))) of every row.
    log_sums: Vec<f64>,
    vocab: usize,
    smoothing: f64,
}

impl<T: Float> Backward<T> for CrossEntropy {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (vocab, x) = (self.vocab, inputs.data(0)?);
        let mut logits_grad = unwritten::<T>(x.len());
        for_rows(&mut logits_grad, vocab, |row, out| {
            let log_sum = T::from_f64(self.log_sums[row]);
            vectorised!({
                for (out, x) in out.iter_mut().zip(&x[row * vocab..][..vocab]) {
                    *out = Float::exp(*x - log_sum) * g[row];
                }
            });
            out[self.targets[row] as usize] -= g[row] * T::from_f64(1.0 - self.smoothing);
            if self.smoothing > 0.0 {
                let spread = g[row] * T::from_f64(self.smoothing / vocab as f64);
                out.iter_mut().for_each(|out| *out -= spread);
            }
        });
        inputs.add(0, Arc::new(logits_grad));
        Ok(())
    }
}
