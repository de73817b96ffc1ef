//! Dropout whose mask depends on its key alone.

use crate::float::with_float;
use crate::rng::{Key, Stream};
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data};
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Sets numbers to 0 with probability `p` and divides the others by 1 - p. The same key drops the same places;
/// `p` = 0 returns `x` itself.
///
/// # Errors
/// If `p` is not a probability, or the dtype is neither f32 nor f64.
pub fn dropout(x: &Tensor, p: f64, key: Key) -> Result<Tensor> {
    let dropout = Dropout::new(p, key)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    if composed::replaces("dropout", x)? {
        return composed::dropout(x, p, key);
    }
    let x = x.contiguous()?;
    with_float!("dropout", x.dtype(), T => {
        let mut y = data::<T>(&x)?.to_vec();
        dropout.apply(&mut y);
        let [y] = tape::record("dropout", &[&x], [(y, x.shape().clone())], dropout)?;
        Ok(y)
    })
}

/// What [`dropout`] does, for operations that have it inside.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    p: f64,
    key: Key,
}

impl Dropout {
    /// Drops with probability `p`, the places being those of `key`.
    ///
    /// # Errors
    /// If `p` is not a probability.
    pub fn new(p: f64, key: Key) -> Result<Self> {
        if (0.0..=1.0).contains(&p) {
            return Ok(Self { p, key });
        }
        let what = format!("p is {p}, expected a number from 0 to 1");
        Err(Error::Argument {
            op: "dropout",
            what,
        })
    }

    /// [`dropout`] of a tensor.
    ///
    /// # Errors
    /// As there.
    pub fn of(self, x: &Tensor) -> Result<Tensor> {
        dropout(x, self.p, self.key)
    }

    /// What is left of a tensor, composed.
    ///
    /// # Errors
    /// If candle refuses the tensor.
    pub fn composed(self, x: &Tensor) -> Result<Tensor> {
        composed::dropout(x, self.p, self.key)
    }

    /// Drops in place. Applied to a gradient it is its own backward.
    pub fn apply<T: Float>(self, numbers: &mut [T]) {
        drop_out(numbers, self.p, self.key);
    }

    /// [`apply`](Self::apply) to numbers that begin at place `first` of a tensor, on this thread.
    pub(crate) fn apply_from<T: Float>(self, first: usize, numbers: &mut [T]) {
        let bounds = Bounds::new(self.p);
        let mut stream = self.key.stream();
        stream.seek((first / 2) as u64);
        let (head, rest) = numbers.split_at_mut((first % 2).min(numbers.len()));
        for number in head {
            bounds.apply(number, stream.bits() >> 32);
        }
        bounds.apply_all(rest, &mut stream);
    }
}

/// What is dropped, and what the rest is multiplied by.
struct Bounds<T> {
    /// 32 bits below it drop.
    bound: u64,
    factor: T,
}

impl<T: Float> Bounds<T> {
    fn new(p: f64) -> Self {
        Self {
            bound: (p * (1u64 << 32) as f64) as u64,
            factor: T::from_f64(1.0 / (1.0 - p)),
        }
    }

    fn apply(&self, number: &mut T, bits: u64) {
        *number = if bits < self.bound {
            T::ZERO
        } else {
            *number * self.factor
        };
    }

    /// By the next bits of a stream, 32 for each number.
    fn apply_all(&self, numbers: &mut [T], stream: &mut Stream) {
        for pair in numbers.chunks_mut(2) {
            let bits = stream.bits();
            let bits = [bits & u64::from(u32::MAX), bits >> 32];
            for (number, bits) in pair.iter_mut().zip(bits) {
                self.apply(number, bits);
            }
        }
    }
}

/// What [`dropout`] multiplies each of `len` numbers by: 0 or 1 / (1 - p).
pub(crate) fn mask<T: Float>(len: usize, p: f64, key: Key) -> Vec<T> {
    let mut mask = vec![T::ONE; len];
    drop_out(&mut mask, p, key);
    mask
}

/// Element i has the i-th 32 bits of the stream, so that blocks can be drawn apart, and drawn again for the
/// backward pass instead of being kept.
fn drop_out<T: Float>(numbers: &mut [T], p: f64, key: Key) {
    const BLOCK: usize = 4096;
    let bounds = Bounds::new(p);
    numbers
        .par_chunks_mut(BLOCK)
        .enumerate()
        .for_each(|(block, numbers)| {
            let mut stream = key.stream();
            stream.seek((block * BLOCK / 2) as u64);
            bounds.apply_all(numbers, &mut stream);
        });
}

impl<T: Float> Backward<T> for Dropout {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let mut x_grad = grad.to_vec();
        self.apply(&mut x_grad);
        inputs.add(0, Arc::new(x_grad));
        Ok(())
    }
}
