//! Root mean square normalisation.

use crate::float::{same_dtype, with_float};
use crate::rows::{column_sums, dot, expect_dims, for_rows, map_rows, rows, tensor};
use crate::{Error, Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// x / sqrt(mean(x^2) + eps) * weight on every row: `x` `(.., n)`, `weight` `[n]`. The mean is taken in f64.
///
/// # Errors
/// If the shapes do not fit, a dtype is neither f32 nor f64, they differ, or `eps` is negative or not finite.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (_, n) = rows("rms_norm", "x", x)?;
    expect_dims("rms_norm", "the weight", weight, &[n])?;
    same_dtype("rms_norm", x, &[("the weight", weight)])?;
    if !(eps >= 0.0 && eps.is_finite()) {
        let what = format!("eps is {eps}, expected a number of at least 0");
        return Err(Error::Argument {
            op: "rms_norm",
            what,
        });
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(with_float!("rms_norm", x.dtype(), T => {
        let op = RmsNorm::<T> { eps, inverse: OnceLock::new(), dtype: PhantomData };
        x.apply_op2(&weight, op)
    })?)
}

struct RmsNorm<T> {
    eps: f64,
    /// 1 / sqrt(mean(x^2) + eps) of every row.
    inverse: OnceLock<Vec<f64>>,
    dtype: PhantomData<T>,
}

impl<T: Float> CustomOp2 for RmsNorm<T> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = argument::<T>(x, x_layout)?;
        let weight = argument::<T>(weight, weight_layout)?;
        let n = weight.len();
        let inverse = map_rows(x.len() / n, n, |row| {
            let x = &x[row * n..][..n];
            let squares = dot(x, x);
            1.0 / (squares / n as f64 + self.eps).sqrt()
        });
        let mut y = x.to_vec();
        for_rows(&mut y, n, |row, y| {
            let inverse = T::from_f64(inverse[row]);
            for (y, weight) in y.iter_mut().zip(weight) {
                *y = *y * inverse * *weight;
            }
        });
        // An op instance runs forward once, so the cell is empty.
        self.inverse.get_or_init(|| inverse);
        Ok((T::storage(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let inverse = self.inverse.get().expect("set by the forward pass");
        let grad = grad.contiguous()?;
        let (x_data, w, g) = (data::<T>(x)?, data::<T>(weight)?, data::<T>(&grad)?);
        let (x_data, w, g) = (&*x_data, &*w, &*g);
        let n = w.len();
        let x_grad = if x.track_op() {
            let mut x_grad = vec![T::ZERO; x_data.len()];
            for_rows(&mut x_grad, n, |row, out| {
                let (x, g) = (&x_data[row * n..][..n], &g[row * n..][..n]);
                // dx = inverse * g * w - x * inverse^3 * mean(g * w * x)
                for (out, (g, w)) in out.iter_mut().zip(g.iter().zip(w)) {
                    *out = *g * *w;
                }
                let pull = T::from_f64(inverse[row].powi(3) * dot(out, x) / n as f64);
                let inverse = T::from_f64(inverse[row]);
                for (out, x) in out.iter_mut().zip(x) {
                    *out = *out * inverse - *x * pull;
                }
            });
            Some(tensor(x_grad, x)?)
        } else {
            None
        };
        let weight_grad = if weight.track_op() {
            let sums = column_sums::<T>(inverse.len(), n, |row, columns, sums| {
                let (x, g) = (&x_data[row * n..][columns.clone()], &g[row * n..][columns]);
                for (sum, (x, g)) in sums.iter_mut().zip(x.iter().zip(g)) {
                    *sum += g.to_f64() * x.to_f64() * inverse[row];
                }
            });
            Some(tensor(sums, weight)?)
        } else {
            None
        };
        Ok((x_grad, weight_grad))
    }
}
