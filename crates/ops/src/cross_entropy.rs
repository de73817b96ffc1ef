//! The loss of classification and of language modelling.

use crate::float::with_float;
use crate::rows::{for_rows, map_rows, max, sum, tensor};
use crate::{Error, Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// `-log softmax(logits)[target]` of every row: `logits` `[n, vocab]`, one target a row -> `[n]`.
///
/// # Errors
/// If the shapes do not fit, a target is not below `vocab`, or the dtype is neither f32 nor f64.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
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
    let (logits, targets) = (logits.contiguous()?, targets.to_vec());
    Ok(with_float!("cross_entropy", logits.dtype(), T => {
        let op = CrossEntropy::<T> { targets, log_sums: OnceLock::new(), dtype: PhantomData };
        logits.apply_op1(op)
    })?)
}

struct CrossEntropy<T> {
    targets: Vec<u32>,
    /// log(sum(exp(logits))) of every row.
    log_sums: OnceLock<Vec<f64>>,
    dtype: PhantomData<T>,
}

impl<T: Float> CustomOp1 for CrossEntropy<T> {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, vocab) = layout.shape().dims2()?;
        let logits = argument::<T>(logits, layout)?;
        let log_sums = map_rows(rows, vocab, |row| {
            let row = &logits[row * vocab..][..vocab];
            let max = max(row);
            max.to_f64() + sum(row, |x| Float::exp(x - max).to_f64()).ln()
        });
        let target = |row: usize| logits[row * vocab + self.targets[row] as usize].to_f64();
        let losses = (0..rows)
            .map(|row| T::from_f64(log_sums[row] - target(row)))
            .collect();
        // An op instance runs forward once, so the cell is empty.
        self.log_sums.get_or_init(|| log_sums);
        Ok((T::storage(losses), Shape::from(rows)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let (_, vocab) = logits.dims2()?;
        let log_sums = self.log_sums.get().expect("set by the forward pass");
        let grad = grad.contiguous()?;
        let (x, g) = (data::<T>(logits)?, data::<T>(&grad)?);
        let (x, g) = (&*x, &*g);
        let mut logits_grad = vec![T::ZERO; x.len()];
        for_rows(&mut logits_grad, vocab, |row, out| {
            for (out, x) in out.iter_mut().zip(&x[row * vocab..][..vocab]) {
                *out = Float::exp(T::from_f64(x.to_f64() - log_sums[row])) * g[row];
            }
            out[self.targets[row] as usize] -= g[row];
        });
        Ok(Some(tensor(logits_grad, logits)?))
    }
}
