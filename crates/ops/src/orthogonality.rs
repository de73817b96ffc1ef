//! How far the rows or columns of matrices are from being orthonormal.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Before, Matrix, matmul_here};
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, unwritten};
use candle_core::{Shape, Tensor, WithDType as _};
use rayon::prelude::*;
use std::sync::Arc;

/// A matrix M, and which of its sides is to be orthonormal.
#[derive(Debug, Clone, Copy)]
pub enum Frame<'a> {
    /// G = M M^T: `[r, n]`.
    Rows(&'a Tensor),
    /// G = M^T M: `[n, r]`.
    Columns(&'a Tensor),
}

/// How far a matrix G is from the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deviation {
    /// ||G - I||_F, whose gradient at 0 is taken to be 0.
    Norm,
    /// ||G - I||_F squared.
    Square,
}

/// The sum over all matrices of how far each is from having orthonormal rows or columns: a scalar. r may be 0.
///
/// # Errors
/// If there are no matrices, one is no matrix, a dtype is neither f32 nor f64, or they differ.
pub fn orthogonality(frames: &[Frame<'_>], deviation: Deviation) -> Result<Tensor> {
    const OP: &str = "orthogonality";
    let tensor = |frame: &Frame<'_>| match *frame {
        Frame::Rows(tensor) | Frame::Columns(tensor) => tensor.clone(),
    };
    let tensors: Vec<Tensor> = frames.iter().map(tensor).collect();
    let Some(first) = tensors.first() else {
        return Err(Error::Argument {
            op: OP,
            what: "there are no matrices".into(),
        });
    };
    for tensor in &tensors {
        if tensor.rank() != 2 {
            return Err(Error::Shape {
                op: OP,
                what: "a matrix",
                got: tensor.dims().to_vec(),
                expected: "two dimensions".into(),
            });
        }
        same_dtype(OP, first, &[("a matrix", tensor)])?;
    }
    if composed::replaces(OP, first)? {
        return composed::orthogonality(frames, deviation);
    }
    let tensors = tensors.iter().map(Tensor::contiguous);
    let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    with_float!(OP, first.dtype(), T => {
        let numbers = tensors.iter().map(data::<T>).collect::<Result<Vec<_>>>()?;
        let measured = frames.par_iter().zip(&numbers).map(|(frame, numbers)| {
            Measured::of(Side::of(frame)?, numbers, deviation)
        });
        let measured = measured.collect::<Result<Vec<_>>>()?;
        drop(numbers);
        let sum: f64 = measured.iter().map(|measured| measured.deviation).sum();
        let inputs: Vec<&Tensor> = tensors.iter().collect();
        let sum = [(vec![T::from_f64(sum)], Shape::from(()))];
        let [sum] = tape::record(OP, &inputs, sum, Orthogonality(measured))?;
        Ok(sum)
    })
}

/// A frame without its numbers.
#[derive(Debug, Clone, Copy)]
enum Side {
    /// `[r, n]`.
    Rows(usize, usize),
    /// `[n, r]`.
    Columns(usize, usize),
}

impl Side {
    fn of(frame: &Frame<'_>) -> Result<Self> {
        Ok(match frame {
            Frame::Rows(tensor) => {
                let (r, n) = tensor.dims2()?;
                Self::Rows(r, n)
            }
            Frame::Columns(tensor) => {
                let (n, r) = tensor.dims2()?;
                Self::Columns(n, r)
            }
        })
    }
}

/// A matrix and its distance, for the way back.
struct Measured<T> {
    side: Side,
    deviation: f64,
    /// What G - I is multiplied by in the gradient.
    slope: f64,
    /// G - I `[r, r]`.
    excess: Vec<T>,
}

impl<T: Float> Measured<T> {
    fn of(side: Side, numbers: &[T], deviation: Deviation) -> Result<Self> {
        let (r, first) = match side {
            Side::Rows(r, n) => (r, Matrix::new(numbers, r, n)?),
            Side::Columns(n, r) => (r, Matrix::new(numbers, n, r)?.transposed()),
        };
        let mut excess = unwritten(r * r);
        if r > 0 {
            let second = first.transposed();
            matmul_here(Before::Ignored, T::ONE, first, second, &mut excess)?;
        }
        for diagonal in excess.iter_mut().step_by(r + 1) {
            *diagonal -= T::ONE;
        }
        let square: f64 = excess.iter().map(|excess| excess.to_f64().powi(2)).sum();
        let (deviation, slope) = match deviation {
            Deviation::Square => (square, 4.0),
            Deviation::Norm if square > 0.0 => (square.sqrt(), 2.0 / square.sqrt()),
            Deviation::Norm => (0.0, 0.0),
        };
        Ok(Self {
            side,
            deviation,
            slope,
            excess,
        })
    }

    /// factor * slope * (G - I) M, or M (G - I).
    fn gradient(&self, numbers: &[T], factor: f64) -> Result<Vec<T>> {
        let mut gradient = unwritten(numbers.len());
        let factor = T::from_f64(factor * self.slope);
        let (left, right) = match self.side {
            Side::Rows(r, n) => (
                Matrix::new(&self.excess, r, r)?,
                Matrix::new(numbers, r, n)?,
            ),
            Side::Columns(n, r) => (
                Matrix::new(numbers, n, r)?,
                Matrix::new(&self.excess, r, r)?,
            ),
        };
        if !numbers.is_empty() {
            matmul_here(Before::Ignored, factor, left, right, &mut gradient)?;
        }
        Ok(gradient)
    }
}

struct Orthogonality<T>(Vec<Measured<T>>);

impl<T: Float> Backward<T> for Orthogonality<T> {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let factor = grad[0].to_f64();
        let numbers = (0..inputs.len()).map(|i| inputs.data(i));
        let numbers = numbers.collect::<Result<Vec<_>>>()?;
        let gradients = self.0.par_iter().zip(&numbers);
        let gradients = gradients.map(|(measured, numbers)| measured.gradient(numbers, factor));
        let gradients = gradients.collect::<Result<Vec<_>>>()?;
        drop(numbers);
        for (i, gradient) in gradients.into_iter().enumerate() {
            if inputs.wanted(i) {
                inputs.add(i, Arc::new(gradient));
            }
        }
        Ok(())
    }
}
