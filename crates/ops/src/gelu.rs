//! The Gaussian error linear unit, and the form of it that is made of a hyperbolic tangent.

use crate::float::with_float;
use crate::gauss::Gauss;
use crate::leveled;
use crate::rows::{GRAIN, put};
use crate::simd::Level;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;

/// x times the share of a standard normal distribution below x, which is x (1 + erf(x / sqrt(2))) / 2.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if composed::replaces("gelu", x)? {
        return composed::gelu(x);
    }
    with_float!("gelu", x.dtype(), T => activation::<T, Exact>("gelu", x))
}

/// [`gelu`] with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) in place of the error function: what models were trained with
/// whose activation is `gelu_new` or `gelu_pytorch_tanh`.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if composed::replaces("gelu_tanh", x)? {
        return composed::gelu_tanh(x);
    }
    with_float!("gelu_tanh", x.dtype(), T => activation::<T, Tanh>("gelu_tanh", x))
}

/// A function of single numbers, as loops for each level.
trait Curve<T: Float>: Send + Sync + 'static {
    /// Writes the function of every number.
    fn values(level: Level, x: &[T], y: &mut [T]);

    /// Puts the function's slope at every number of `x`, times that of `g`, in place of `into`, or adds it where
    /// `begun`.
    fn slopes(level: Level, x: &[T], g: &[T], into: &mut [T], begun: bool);
}

struct Exact;
struct Tanh;

impl<T: Gauss> Curve<T> for Exact {
    fn values(level: Level, x: &[T], y: &mut [T]) {
        exact_values(level, x, y);
    }

    fn slopes(level: Level, x: &[T], g: &[T], into: &mut [T], begun: bool) {
        exact_slopes(level, x, g, into, begun);
    }
}

impl<T: Gauss> Curve<T> for Tanh {
    fn values(level: Level, x: &[T], y: &mut [T]) {
        tanh_values(level, x, y);
    }

    fn slopes(level: Level, x: &[T], g: &[T], into: &mut [T], begun: bool) {
        tanh_slopes(level, x, g, into, begun);
    }
}

leveled! {
    fn exact_values<T: Gauss>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x * x.share().0;
        }
    }
}

leveled! {
    fn exact_slopes<T: Gauss>(x: &[T], g: &[T], into: &mut [T], begun: bool) {
        for (into, (x, g)) in into.iter_mut().zip(x.iter().zip(g)) {
            let (share, density) = x.share();
            put(into, *g * (share + *x * density), begun);
        }
    }
}

leveled! {
    fn tanh_values<T: Float>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x * sigmoid(*x).0;
        }
    }
}

leveled! {
    fn tanh_slopes<T: Float>(x: &[T], g: &[T], into: &mut [T], begun: bool) {
        for (into, (x, g)) in into.iter_mut().zip(x.iter().zip(g)) {
            let (share, slope) = sigmoid(*x);
            put(into, *g * (share + *x * slope), begun);
        }
    }
}

/// ((1 + tanh(u)) / 2, its derivative), where u = sqrt(2 / pi) (x + 0.044715 x^3): the logistic function of 2 u.
#[inline(always)]
fn sigmoid<T: Float>(x: T) -> (T, T) {
    const OUTER: f64 = 1.595_769_121_605_731; // 2 sqrt(2 / pi)
    const INNER: f64 = 0.044_715;
    // Beyond 30 the first is 0 or 1 and the second 0, in f64 too; x^3 could overflow there.
    let edge = T::from_f64(30.0);
    let size = if x < T::ZERO { -x } else { x };
    let size = if size > edge { edge } else { size };
    let (outer, inner) = (T::from_f64(OUTER), T::from_f64(INNER));
    let square = inner * size * size;
    let power = Float::exp(-(outer * size * (T::ONE + square)));
    let above = T::ONE / (T::ONE + power);
    let below = power * above;
    let steepness = outer * (T::ONE + square + square + square);
    let share = if x < T::ZERO { below } else { above };
    (share, above * below * steepness)
}

fn activation<T: Float, C: Curve<T>>(name: &'static str, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let numbers = data::<T>(&x)?;
    let mut y = unwritten(numbers.len());
    y.par_chunks_mut(GRAIN)
        .zip(numbers.par_chunks(GRAIN))
        .for_each(|(y, x)| C::values(Level::used(), x, y));
    drop(numbers);
    let op = Activation(PhantomData::<C>);
    let [y] = tape::record::<T, 1>(name, &[&x], [(y, x.shape().clone())], op)?;
    Ok(y)
}

struct Activation<C>(PhantomData<C>);

impl<T: Float, C: Curve<T>> Backward<T> for Activation<C> {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let x = inputs.data(0)?;
        inputs.accumulate(0, |into, begun| {
            into.par_chunks_mut(GRAIN)
                .zip(x.par_chunks(GRAIN).zip(g.par_chunks(GRAIN)))
                .for_each(|(into, (x, g))| C::slopes(Level::used(), x, g, into, begun));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Curve, Exact, Tanh};
    use crate::Float;
    use crate::gauss::Gauss;
    use crate::rng::{Key, Purpose};
    use crate::simd::Level;
    use std::fmt::Debug;

    /// Values and slopes of a curve, the latter in place of nothing and added to 2.
    fn run<T: Float, C: Curve<T>>(level: Level, x: &[T], g: &[T]) -> [Vec<T>; 3] {
        let two = T::ONE + T::ONE;
        let mut results =
            [T::from_f64(f64::NAN), T::from_f64(f64::NAN), two].map(|start| vec![start; x.len()]);
        let [values, slopes, added] = &mut results;
        C::values(level, x, values);
        C::slopes(level, x, g, slopes, false);
        C::slopes(level, x, g, added, true);
        results
    }

    /// No level contracts a product and a sum, so each has the bits of the portable one; those that the machine lacks
    /// are left out.
    fn check<T: Gauss + Debug, C: Curve<T>>(curve: impl Fn(f64) -> (f64, f64), tolerance: f64) {
        let mut stream = Key::new(5, Purpose::Test).stream();
        for count in [1, 2, 3, 7, 8, 15, 16, 17, 33, 259] {
            let mut draw = |scale: f64| -> Vec<T> {
                (0..count)
                    .map(|_| T::from_f64(scale * stream.normal()))
                    .collect()
            };
            let (x, g) = (draw(3.0), draw(2.0));
            let portable = run::<T, C>(Level::Portable, &x, &g);
            for (at, (x, g)) in x.iter().zip(&g).enumerate() {
                let (value, slope) = curve(x.to_f64());
                let slope = slope * g.to_f64();
                let got = portable.each_ref().map(|numbers| numbers[at].to_f64());
                for (got, expected) in got.into_iter().zip([value, slope, slope + 2.0]) {
                    let off = (got - expected).abs();
                    assert!(
                        off <= tolerance * expected.abs().max(1.0),
                        "{x}: {got} {expected}"
                    );
                }
            }
            for (_, level) in Level::WORDS {
                if level <= Level::of_machine() {
                    assert_eq!(run::<T, C>(level, &x, &g), portable, "{level:?}, {count}");
                }
            }
        }
    }

    #[test]
    fn exact_at_every_level() {
        let curve = |x: f64| {
            let (share, density) = x.share();
            (x * share, share + x * density)
        };
        check::<f32, Exact>(curve, 4e-7);
        check::<f64, Exact>(curve, 1e-15);
    }

    #[test]
    fn tanh_at_every_level() {
        let curve = |x: f64| {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (root * (x + 0.044_715 * x.powi(3))).tanh();
            let slope = root * (1.0 + 3.0 * 0.044_715 * x * x) * (1.0 - tanh * tanh);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * slope)
        };
        check::<f32, Tanh>(curve, 1e-6);
        check::<f64, Tanh>(curve, 1e-14);
    }
}
