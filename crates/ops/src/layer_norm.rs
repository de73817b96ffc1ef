//! Layer normalisation.

use crate::float::{same_dtype, with_float};
use crate::leveled;
use crate::norm::check_eps;
use crate::rows::{expect_dims, put, rows, sum};
use crate::simd::Level;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// (x - mean) / sqrt(variance + eps) * weight + bias on every row: `x` `(.., n)`, `weight` and `bias` `[n]`. The
/// variance divides by n; both are taken in f64.
///
/// # Errors
/// If the shapes do not fit, a dtype is neither f32 nor f64, they differ, or `eps` is negative or not finite.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (count, n) = rows("layer_norm", "x", x)?;
    expect_dims("layer_norm", "the weight", weight, &[n])?;
    expect_dims("layer_norm", "the bias", bias, &[n])?;
    same_dtype(
        "layer_norm",
        x,
        &[("the weight", weight), ("the bias", bias)],
    )?;
    check_eps("layer_norm", eps)?;
    if composed::replaces("layer_norm", x)? {
        return composed::layer_norm(x, weight, bias, eps);
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    with_float!("layer_norm", x.dtype(), T => {
        let (numbers, w, b) = (data::<T>(&x)?, data::<T>(&weight)?, data::<T>(&bias)?);
        let (w, b) = (&*w, &*b);
        let mut y = unwritten(numbers.len());
        let mut moments = vec![Moments::default(); count];
        y.par_chunks_mut(CHUNK * n)
            .zip(moments.par_chunks_mut(CHUNK))
            .zip(numbers.par_chunks(CHUNK * n))
            .for_each(|((y, moments), x)| normalise(Level::used(), x, w, b, eps, moments, y));
        drop(numbers);
        let inputs = [&x, &weight, &bias];
        let y = [(y, x.shape().clone())];
        let [y] = tape::record("layer_norm", &inputs, y, LayerNorm { moments })?;
        Ok(y)
    })
}

/// How many rows a thread works on at once. Their sums are added up in order, so that the bits do not depend on the
/// number of threads.
const CHUNK: usize = 32;

/// What a row is shifted and scaled by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Moments {
    mean: f64,
    /// 1 / sqrt(variance + eps).
    inverse: f64,
}

leveled! {
    fn normalise<T: Float>(
        x: &[T],
        w: &[T],
        b: &[T],
        eps: f64,
        moments: &mut [Moments],
        y: &mut [T],
    ) {
        let n = w.len();
        for (moments, (x, y)) in moments.iter_mut().zip(x.chunks_exact(n).zip(y.chunks_exact_mut(n))) {
            let mean = sum(x, |x| x.to_f64()) / n as f64;
            let variance = sum(x, |x| (x.to_f64() - mean) * (x.to_f64() - mean)) / n as f64;
            let inverse = 1.0 / (variance + eps).sqrt();
            *moments = Moments { mean, inverse };
            let (mean, inverse) = (T::from_f64(mean), T::from_f64(inverse));
            for (y, (x, (w, b))) in y.iter_mut().zip(x.iter().zip(w.iter().zip(b))) {
                *y = (*x - mean) * inverse * *w + *b;
            }
        }
    }
}

leveled! {
    /// dx = inverse * (g w - mean(g w) - z mean(g w z)) with z = (x - mean) * inverse: in place of `into`, or added to it
    /// where `begun`.
    fn x_slopes<T: Float>(
        x: &[T],
        g: &[T],
        w: &[T],
        moments: &[Moments],
        into: &mut [T],
        begun: bool,
    ) {
        let n = w.len();
        let rows = x.chunks_exact(n).zip(g.chunks_exact(n));
        for ((x, g), (moments, into)) in rows.zip(moments.iter().zip(into.chunks_exact_mut(n))) {
            let Moments { mean, inverse } = *moments;
            let (mut all, mut along) = ([0f64; 8], [0f64; 8]);
            let (x8, g8, w8) = (x.as_chunks::<8>(), g.as_chunks::<8>(), w.as_chunks::<8>());
            for (x, (g, w)) in x8.0.iter().zip(g8.0.iter().zip(w8.0)) {
                for i in 0..8 {
                    let product = (g[i] * w[i]).to_f64();
                    all[i] += product;
                    along[i] += product * (x[i].to_f64() - mean);
                }
            }
            let (mut all, mut along) = (all.iter().sum::<f64>(), along.iter().sum::<f64>());
            for (x, (g, w)) in x8.1.iter().zip(g8.1.iter().zip(w8.1)) {
                let product = (*g * *w).to_f64();
                all += product;
                along += product * (x.to_f64() - mean);
            }
            let shift = T::from_f64(all / n as f64 * inverse);
            let pull = T::from_f64(along / n as f64 * inverse * inverse * inverse);
            let (mean, inverse) = (T::from_f64(mean), T::from_f64(inverse));
            for (into, (x, (g, w))) in into.iter_mut().zip(x.iter().zip(g.iter().zip(w))) {
                put(into, *g * *w * inverse - shift - (*x - mean) * pull, begun);
            }
        }
    }
}

leveled! {
    /// Adds the rows' parts of the gradients of the weight and the bias, sum(g z) and sum(g).
    fn add_sums<T: Float>(
        x: &[T],
        g: &[T],
        moments: &[Moments],
        weight: &mut [f64],
        bias: &mut [f64],
    ) {
        let n = weight.len();
        let rows = x.chunks_exact(n).zip(g.chunks_exact(n));
        for ((x, g), Moments { mean, inverse }) in rows.zip(moments) {
            let sums = weight.iter_mut().zip(bias.iter_mut());
            for ((weight, bias), (x, g)) in sums.zip(x.iter().zip(g)) {
                let g = g.to_f64();
                *weight += g * ((x.to_f64() - mean) * inverse);
                *bias += g;
            }
        }
    }
}

struct LayerNorm {
    moments: Vec<Moments>,
}

impl<T: Float> Backward<T> for LayerNorm {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (x, w) = (inputs.data(0)?, inputs.data(1)?);
        let (n, level) = (w.len(), Level::used());
        let [through, sums] = [inputs.wanted(0), inputs.wanted(1) || inputs.wanted(2)];
        let chunks = || {
            let numbers = x.par_chunks(CHUNK * n).zip(g.par_chunks(CHUNK * n));
            numbers.zip(self.moments.par_chunks(CHUNK))
        };
        let own = |x: &[T], g: &[T], moments: &[Moments]| {
            let mut own = vec![0f64; if sums { 2 * n } else { 0 }];
            if sums {
                let (weight, bias) = own.split_at_mut(n);
                add_sums(level, x, g, moments, weight, bias);
            }
            own
        };
        let mut parts: Vec<Vec<f64>> = Vec::new();
        if through {
            let w = &*w;
            inputs.accumulate(0, |into, begun| {
                parts = into
                    .par_chunks_mut(CHUNK * n)
                    .zip(chunks())
                    .map(|(into, ((x, g), moments))| {
                        x_slopes(level, x, g, w, moments, into, begun);
                        own(x, g, moments)
                    })
                    .collect();
                Ok(())
            })?;
        } else {
            parts = chunks()
                .map(|((x, g), moments)| own(x, g, moments))
                .collect();
        }
        if sums {
            let mut total = vec![0f64; 2 * n];
            for part in parts {
                for (total, part) in total.iter_mut().zip(part) {
                    *total += part;
                }
            }
            for (i, total) in [(1, &total[..n]), (2, &total[n..])] {
                if inputs.wanted(i) {
                    let grad = total.iter().map(|x| T::from_f64(*x)).collect();
                    inputs.add(i, Arc::new(grad));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Moments, add_sums, normalise, x_slopes};
    use crate::Float;
    use crate::rng::{Key, Purpose};
    use crate::simd::Level;
    use std::fmt::Debug;

    #[derive(Debug, PartialEq)]
    struct Results<T> {
        moments: Vec<Moments>,
        y: Vec<T>,
        slopes: Vec<T>,
        added: Vec<T>,
        weight: Vec<f64>,
        bias: Vec<f64>,
    }

    fn run<T: Float>(level: Level, rows: usize, x: &[T], g: &[T], w: &[T], b: &[T]) -> Results<T> {
        let n = w.len();
        let nan = T::from_f64(f64::NAN);
        let mut results = Results {
            moments: vec![Moments::default(); rows],
            y: vec![nan; x.len()],
            slopes: vec![nan; x.len()],
            added: vec![T::ONE; x.len()],
            weight: vec![0.5; n],
            bias: vec![-0.5; n],
        };
        let Results {
            moments,
            y,
            slopes,
            added,
            weight,
            bias,
        } = &mut results;
        normalise(level, x, w, b, 0.01, moments, y);
        x_slopes(level, x, g, w, moments, slopes, false);
        x_slopes(level, x, g, w, moments, added, true);
        add_sums(level, x, g, moments, weight, bias);
        results
    }

    /// No level contracts a product and a sum, so each has the bits of the portable one, which the tests of the function
    /// compare with its twin; those that the machine lacks are left out.
    fn check<T: Float + Debug>(tolerance: f64) {
        let mut stream = Key::new(6, Purpose::Test).stream();
        for (rows, n) in [(1, 1), (3, 2), (2, 7), (5, 8), (4, 9), (3, 33), (2, 131)] {
            let mut draw = |count, shift: f64| -> Vec<T> {
                (0..count)
                    .map(|_| T::from_f64(stream.normal() + shift))
                    .collect()
            };
            let (x, g) = (draw(rows * n, 3.0), draw(rows * n, 0.0));
            let (w, b) = (draw(n, 1.0), draw(n, 0.0));
            let portable = run(Level::Portable, rows, &x, &g, &w, &b);
            for (at, y) in portable.y.iter().enumerate() {
                let row = || x[at / n * n..][..n].iter().map(|x| x.to_f64());
                let mean = row().sum::<f64>() / n as f64;
                let variance = row().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                let z = (x[at].to_f64() - mean) / (variance + 0.01).sqrt();
                let expected = z * w[at % n].to_f64() + b[at % n].to_f64();
                assert!((y.to_f64() - expected).abs() <= tolerance, "{y} {expected}");
                let (slope, added) = (portable.slopes[at].to_f64(), portable.added[at].to_f64());
                assert!((added - slope - 1.0).abs() <= tolerance * slope.abs().max(1.0));
            }
            for (_, level) in Level::WORDS {
                if level <= Level::of_machine() {
                    let results = run(level, rows, &x, &g, &w, &b);
                    assert_eq!(results, portable, "{level:?}, {rows} rows of {n}");
                }
            }
        }
    }

    #[test]
    fn the_same_bits_at_every_level() {
        check::<f32>(1e-5);
        check::<f64>(1e-13);
    }
}
