//! A matrix that is the product, number by number, of two low-rank ones.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Before, Matrix, matmul, matmul_onto};
use crate::khatri_rao::dims2;
use crate::rows::{expect_dims, zip};
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::{Shape, Tensor, WithDType as _};
use std::sync::Arc;

/// scale * (A1 B1) (A2 B2), number by number: `a1` `[n_out, r]`, `b1` `[r, n_in]`, `a2` `[n_out, s]`, `b2` `[s, n_in]` ->
/// `[n_out, n_in]`. The two products are not kept for the backward pass; it makes them again.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn hadamard(
    (a1, b1): (&Tensor, &Tensor),
    (a2, b2): (&Tensor, &Tensor),
    scale: f64,
) -> Result<Tensor> {
    const OP: &str = "hadamard";
    let ((n_out, r), (_, n_in)) = (dims2(OP, "A1", a1)?, dims2(OP, "B1", b1)?);
    let (_, s) = dims2(OP, "A2", a2)?;
    expect_dims(OP, "B1", b1, &[r, n_in])?;
    expect_dims(OP, "A2", a2, &[n_out, s])?;
    expect_dims(OP, "B2", b2, &[s, n_in])?;
    same_dtype(OP, a1, &[("B1", b1), ("A2", a2), ("B2", b2)])?;
    if composed::replaces(OP, a1)? {
        return composed::hadamard((a1, b1), (a2, b2), scale);
    }
    let inputs = [a1, b1, a2, b2].map(Tensor::contiguous);
    let [a1, b1, a2, b2] = inputs;
    let (a1, b1, a2, b2) = (a1?, b1?, a2?, b2?);
    with_float!(OP, a1.dtype(), T => {
        let op = Hadamard { n_out, n_in, ranks: [r, s], scale };
        let (first, second) = (
            op.product(&data::<T>(&a1)?, &data::<T>(&b1)?, r)?,
            op.product(&data::<T>(&a2)?, &data::<T>(&b2)?, s)?,
        );
        let scale = T::from_f64(scale);
        let y = zip(&first, &second, |x, y| scale * (x * y));
        let y = [(y, Shape::from((n_out, n_in)))];
        let [y] = tape::record(OP, &[&a1, &b1, &a2, &b2], y, op)?;
        Ok(y)
    })
}

struct Hadamard {
    n_out: usize,
    n_in: usize,
    ranks: [usize; 2],
    scale: f64,
}

impl Hadamard {
    /// A B `[n_out, n_in]`.
    fn product<T: Float>(&self, a: &[T], b: &[T], rank: usize) -> Result<Vec<T>> {
        let mut product = unwritten(self.n_out * self.n_in);
        let (a, b) = (
            Matrix::new(a, self.n_out, rank)?,
            Matrix::new(b, rank, self.n_in)?,
        );
        matmul(a, b, &mut product)?;
        Ok(product)
    }
}

impl<T: Float> Backward<T> for Hadamard {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let &Self {
            n_out,
            n_in,
            ranks,
            scale,
        } = self;
        let scale = T::from_f64(scale);
        for (of, other) in [(0, 1), (1, 0)] {
            let (at_a, at_b) = (2 * of, 2 * of + 1);
            if !(inputs.wanted(at_a) || inputs.wanted(at_b)) {
                continue;
            }
            let (a, b) = (inputs.data(2 * other)?, inputs.data(2 * other + 1)?);
            let held = self.product(&a, &b, ranks[other])?;
            let slopes = zip(grad, &held, |grad, held| grad * held);
            drop(held);
            let slopes = Matrix::new(&slopes, n_out, n_in)?;
            let (a, b) = (inputs.data(at_a)?, inputs.data(at_b)?);
            let a = Matrix::new(&a, n_out, ranks[of])?;
            let b = Matrix::new(&b, ranks[of], n_in)?;
            for (at, left, right) in [
                (at_a, slopes, b.transposed()),
                (at_b, a.transposed(), slopes),
            ] {
                if inputs.wanted(at) {
                    inputs.accumulate(at, |into, begun| {
                        let before = if begun {
                            Before::Added
                        } else {
                            Before::Ignored
                        };
                        matmul_onto(before, scale, left, right, into)
                    })?;
                }
            }
        }
        Ok(())
    }
}
