//! Root mean square normalisation.

use crate::add::pass_on;
use crate::float::{same_dtype, with_float};
use crate::rows::{column_sums, dot, expect_dims, for_rows, map_rows, put, rows, zip};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// x / sqrt(mean(x^2) + eps) * weight on every row: `x` `(.., n)`, `weight` `[n]`. The mean is taken in f64.
///
/// # Errors
/// If the shapes do not fit, a dtype is neither f32 nor f64, they differ, or `eps` is negative or not finite.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check("rms_norm", x, weight, eps)?;
    if composed::replaces("rms_norm", x)? {
        return composed::rms_norm(x, weight, eps);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    with_float!("rms_norm", x.dtype(), T => {
        let (y, inverse) = normed::<T>(&data(&x)?, &data(&weight)?, eps);
        let op = RmsNorm { inverse, summed: false };
        let [y] = tape::record("rms_norm", &[&x, &weight], [(y, x.shape().clone())], op)?;
        Ok(y)
    })
}

/// What a residual and the next norm compute: (x + y, [`rms_norm`] of that sum).
///
/// # Errors
/// As [`rms_norm`], and if `y` has another shape or dtype than `x`.
pub fn add_rms_norm(x: &Tensor, y: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    check("add_rms_norm", x, weight, eps)?;
    expect_dims("add_rms_norm", "y", y, x.dims())?;
    same_dtype("add_rms_norm", x, &[("y", y)])?;
    if composed::replaces("add_rms_norm", x)? {
        return composed::add_rms_norm(x, y, weight, eps);
    }
    let (x, y, weight) = (x.contiguous()?, y.contiguous()?, weight.contiguous()?);
    with_float!("add_rms_norm", x.dtype(), T => {
        let sums = zip(&data::<T>(&x)?, &data::<T>(&y)?, |x, y| x + y);
        let (normed, inverse) = normed::<T>(&sums, &data(&weight)?, eps);
        let outputs = [(sums, x.shape().clone()), (normed, x.shape().clone())];
        let op = RmsNorm { inverse, summed: true };
        let [sum, normed] = tape::record("add_rms_norm", &[&x, &weight, &y], outputs, op)?;
        Ok((sum, normed))
    })
}

fn check(op: &'static str, x: &Tensor, weight: &Tensor, eps: f64) -> Result<()> {
    let (_, n) = rows(op, "x", x)?;
    expect_dims(op, "the weight", weight, &[n])?;
    same_dtype(op, x, &[("the weight", weight)])?;
    check_eps(op, eps)
}

/// Refuses what cannot be added to a variance.
pub(crate) fn check_eps(op: &'static str, eps: f64) -> Result<()> {
    if eps >= 0.0 && eps.is_finite() {
        return Ok(());
    }
    let what = format!("eps is {eps}, expected a number of at least 0");
    Err(Error::Argument { op, what })
}

/// The normed rows, and 1 / sqrt(mean(x^2) + eps) of each.
fn normed<T: Float>(x: &[T], weight: &[T], eps: f64) -> (Vec<T>, Vec<f64>) {
    let n = weight.len();
    let inverse = map_rows(x.len() / n, n, |row| {
        let x = &x[row * n..][..n];
        vectorised!(1.0 / (dot(x, x) / n as f64 + eps).sqrt())
    });
    let mut y = unwritten(x.len());
    for_rows(&mut y, n, |row, y| {
        let (x, inverse) = (&x[row * n..][..n], T::from_f64(inverse[row]));
        vectorised!({
            for (y, (x, weight)) in y.iter_mut().zip(x.iter().zip(weight)) {
                *y = *x * inverse * *weight;
            }
        });
    });
    (y, inverse)
}

struct RmsNorm {
    inverse: Vec<f64>,
    /// Whether inputs are x, the weight and y, and outputs the sum and the norm; else x, the weight, and the norm.
    summed: bool,
}

/// What was normed: x, or x + y, which is added again rather than kept.
struct Source<'a, T> {
    x: &'a [T],
    y: Option<&'a [T]>,
}

impl<T: Float> Source<'_, T> {
    fn row(&self, at: Range<usize>) -> Cow<'_, [T]> {
        let x = &self.x[at.clone()];
        match self.y {
            None => Cow::Borrowed(x),
            Some(y) => x.iter().zip(&y[at]).map(|(x, y)| *x + *y).collect(),
        }
    }
}

impl RmsNorm {
    /// dx = inverse * g * w - x * inverse^3 * mean(g * w * x), and what arrives at the sum itself.
    fn slope<T: Float>(
        &self,
        source: &Source<'_, T>,
        w: &[T],
        g: &[T],
        passed: Option<&[T]>,
        into: &mut [T],
        begun: bool,
    ) {
        let n = w.len();
        for_rows(into, n, |row, into| {
            let x = source.row(row * n..(row + 1) * n);
            let (x, g) = (&*x, &g[row * n..][..n]);
            vectorised!({
                let mut lanes = [0f64; 8];
                let ((x8, x_rest), (g8, g_rest), (w8, w_rest)) =
                    (x.as_chunks::<8>(), g.as_chunks::<8>(), w.as_chunks::<8>());
                for (x, (g, w)) in x8.iter().zip(g8.iter().zip(w8)) {
                    for i in 0..8 {
                        lanes[i] += (g[i] * w[i]).to_f64() * x[i].to_f64();
                    }
                }
                let mut total = lanes.iter().sum::<f64>();
                for (x, (g, w)) in x_rest.iter().zip(g_rest.iter().zip(w_rest)) {
                    total += (*g * *w).to_f64() * x.to_f64();
                }
                let pull = T::from_f64(self.inverse[row].powi(3) * total / n as f64);
                let inverse = T::from_f64(self.inverse[row]);
                let own = x.iter().zip(g.iter().zip(w));
                match passed {
                    Some(passed) => {
                        let passed = &passed[row * n..][..n];
                        for (into, ((x, (g, w)), passed)) in into.iter_mut().zip(own.zip(passed)) {
                            put(into, *g * *w * inverse - *x * pull + *passed, begun);
                        }
                    }
                    None => {
                        for (into, (x, (g, w))) in into.iter_mut().zip(own) {
                            put(into, *g * *w * inverse - *x * pull, begun);
                        }
                    }
                }
            });
        });
    }

    fn weight_slope<T: Float>(&self, source: &Source<'_, T>, g: &[T], n: usize) -> Vec<T> {
        column_sums(self.inverse.len(), n, |row, columns, sums| {
            let at = row * n + columns.start..row * n + columns.end;
            let (x, g) = (source.row(at.clone()), &g[at]);
            for (sum, (x, g)) in sums.iter_mut().zip(x.iter().zip(g)) {
                *sum += g.to_f64() * x.to_f64() * self.inverse[row];
            }
        })
    }
}

impl<T: Float> Backward<T> for RmsNorm {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let (passed, normed) = if self.summed {
            (grads[0].as_ref(), 1)
        } else {
            (None, 0)
        };
        let Some(g) = &grads[normed] else {
            if self.summed {
                pass_on(grads, 0, inputs, &[0, 2]);
            }
            return Ok(());
        };
        let (x, w) = (inputs.data(0)?, inputs.data(1)?);
        let y = self.summed.then(|| inputs.data(2)).transpose()?;
        let source = Source {
            x: &x,
            y: y.as_deref(),
        };
        if inputs.wanted(1) {
            inputs.add(1, Arc::new(self.weight_slope(&source, g, w.len())));
        }
        if self.summed && inputs.wanted(2) {
            let mut slope = unwritten(g.len());
            let passed = passed.map(|passed| passed.as_slice());
            self.slope(&source, &w, g, passed, &mut slope, false);
            pass_on(&[Some(Arc::new(slope))], 0, inputs, &[0, 2]);
        } else if inputs.wanted(0) {
            inputs.accumulate(0, |into, begun| {
                self.slope(
                    &source,
                    &w,
                    g,
                    passed.map(|passed| passed.as_slice()),
                    into,
                    begun,
                );
                Ok(())
            })?;
        }
        Ok(())
    }
}
