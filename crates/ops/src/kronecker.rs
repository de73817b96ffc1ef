//! The product with a Kronecker product, which is never formed.
//!
//! A row of x is read as a matrix X `[m, n]`. Then kron(W1, W2) x is W1 X W2^T, read as a row again: two small products.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Before, Matrix, matmul_here};
use crate::khatri_rao::dims2;
use crate::linear::with_last;
use crate::rows::{expect_dims, rows};
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Result, composed, data, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// The second factor of a Kronecker product.
#[derive(Debug, Clone, Copy)]
pub enum Second<'a> {
    /// `[k, n]`.
    Whole(&'a Tensor),
    /// A B with `a` `[k, r]`, `b` `[r, n]`, which is not formed either.
    Product {
        /// A.
        a: &'a Tensor,
        /// B.
        b: &'a Tensor,
    },
}

/// scale * x kron(W1, W2)^T: `x` (.., m n), `first` `[l, m]`, `second` `[k, n]` -> (.., l k).
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn kronecker(x: &Tensor, first: &Tensor, second: Second<'_>, scale: f64) -> Result<Tensor> {
    const OP: &str = "kronecker";
    let (_, n_in) = rows(OP, "x", x)?;
    let (l, m) = dims2(OP, "the first factor", first)?;
    let (inner, left) = match second {
        Second::Whole(whole) => (whole, None),
        Second::Product { a, b } => (b, Some(a)),
    };
    let (r, n) = dims2(OP, "the second factor", inner)?;
    if m * n != n_in {
        expect_dims(OP, "x", x, with_last(x.dims(), m * n).dims())?;
    }
    same_dtype(OP, x, &[("the first factor", first), ("the second", inner)])?;
    let mut k = r;
    if let Some(a) = left {
        (k, _) = dims2(OP, "A", a)?;
        expect_dims(OP, "A", a, &[k, r])?;
        same_dtype(OP, x, &[("A", a)])?;
    }
    if composed::replaces(OP, x)? {
        return composed::kronecker(x, first, second, scale);
    }
    let mut inputs = vec![x.contiguous()?, first.contiguous()?, inner.contiguous()?];
    if let Some(a) = left {
        inputs.push(a.contiguous()?);
    }
    let op = Kronecker {
        l,
        m,
        n,
        r,
        k,
        scale,
    };
    with_float!(OP, x.dtype(), T => {
        let shape = with_last(x.dims(), l * k);
        let numbers = inputs.iter().map(data::<T>).collect::<Result<Vec<_>>>()?;
        let mut y = unwritten(shape.elem_count());
        let factors = Factors {
            first: &numbers[1],
            inner: &numbers[2],
            left: numbers.get(3).map(|a| &**a),
        };
        y.par_chunks_mut(CHUNK * l * k)
            .zip(numbers[0].par_chunks(CHUNK * n_in))
            .try_for_each(|(y, x)| op.forward(factors, x, y))?;
        drop(numbers);
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let [y] = tape::record(OP, &inputs, [(y, shape)], op)?;
        Ok(y)
    })
}

/// How many rows of x a thread works on at once: what lies between the products stays in its cache.
const CHUNK: usize = 32;

struct Kronecker {
    l: usize,
    m: usize,
    n: usize,
    r: usize,
    k: usize,
    scale: f64,
}

/// The numbers of the factors.
#[derive(Clone, Copy)]
struct Factors<'a, T> {
    /// W1 `[l, m]`.
    first: &'a [T],
    /// W2, or its B `[r, n]`.
    inner: &'a [T],
    /// Its A `[k, r]`.
    left: Option<&'a [T]>,
}

/// Gradients of the factors.
struct Slopes<T> {
    first: Vec<T>,
    inner: Vec<T>,
    left: Vec<T>,
}

impl Kronecker {
    /// scale X^T W1^T of all rows, where X is x B^T: (`[rows r, m]`, `[rows r, l]`), both with m and l last.
    fn middle<T: Float>(&self, factors: Factors<'_, T>, x: &[T]) -> Result<(Vec<T>, Vec<T>)> {
        let &Self { l, m, n, r, .. } = self;
        let rows = x.len() / (m * n);
        let mut h = unwritten(rows * m * r);
        let inner = Matrix::new(factors.inner, r, n)?.transposed();
        let x = Matrix::new(x, rows * m, n)?;
        matmul_here(Before::Ignored, T::ONE, x, inner, &mut h)?;
        let h = swapped(&h, m, r);
        let mut z = unwritten(rows * r * l);
        let (left, first) = (
            Matrix::new(&h, rows * r, m)?,
            Matrix::new(factors.first, l, m)?.transposed(),
        );
        let scale = T::from_f64(self.scale);
        matmul_here(Before::Ignored, scale, left, first, &mut z)?;
        Ok((h, z))
    }

    fn forward<T: Float>(&self, factors: Factors<'_, T>, x: &[T], y: &mut [T]) -> Result<()> {
        let &Self { l, r, k, .. } = self;
        let (_, z) = self.middle(factors, x)?;
        match factors.left {
            None => swap(&z, r, l, y),
            Some(a) => {
                let z = swapped(&z, r, l);
                let (z, a) = (Matrix::new(&z, z.len() / r, r)?, Matrix::new(a, k, r)?);
                matmul_here(Before::Ignored, T::ONE, z, a.transposed(), y)?;
            }
        }
        Ok(())
    }

    /// The gradient of some rows of x is put into `into` (or added), those of the factors are returned.
    fn backward<T: Float>(
        &self,
        factors: Factors<'_, T>,
        x: &[T],
        grad: &[T],
        into: Option<(&mut [T], Before)>,
    ) -> Result<Slopes<T>> {
        let &Self { l, m, n, r, k, .. } = self;
        let scale = T::from_f64(self.scale);
        let rows = x.len() / (m * n);
        // Made again: kept, they would be as large as m + l numbers of each rank and row.
        let (h, z) = self.middle(factors, x)?;
        let mut left = Vec::new();
        let slopes = match factors.left {
            None => swapped(grad, l, r),
            Some(a) => {
                let z = swapped(&z, r, l);
                let grad = Matrix::new(grad, rows * l, k)?;
                left = unwritten(k * r);
                let z = Matrix::new(&z, rows * l, r)?;
                matmul_here(Before::Ignored, T::ONE, grad.transposed(), z, &mut left)?;
                let mut slopes = unwritten(rows * l * r);
                let a = Matrix::new(a, k, r)?;
                matmul_here(Before::Ignored, T::ONE, grad, a, &mut slopes)?;
                swapped(&slopes, l, r)
            }
        };
        let slopes = Matrix::new(&slopes, rows * r, l)?;
        let mut first = unwritten(l * m);
        let h = Matrix::new(&h, rows * r, m)?;
        matmul_here(Before::Ignored, scale, slopes.transposed(), h, &mut first)?;
        let mut h_slopes = unwritten(rows * r * m);
        let w = Matrix::new(factors.first, l, m)?;
        matmul_here(Before::Ignored, scale, slopes, w, &mut h_slopes)?;
        let h_slopes = swapped(&h_slopes, r, m);
        let h_slopes = Matrix::new(&h_slopes, rows * m, r)?;
        let mut inner = unwritten(r * n);
        let x = Matrix::new(x, rows * m, n)?;
        matmul_here(
            Before::Ignored,
            T::ONE,
            h_slopes.transposed(),
            x,
            &mut inner,
        )?;
        if let Some((into, before)) = into {
            let w = Matrix::new(factors.inner, r, n)?;
            matmul_here(before, T::ONE, h_slopes, w, into)?;
        }
        Ok(Slopes { first, inner, left })
    }
}

impl<T: Float> Backward<T> for Kronecker {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let &Self { l, m, n, r, k, .. } = self;
        let (x, first, inner) = (inputs.data(0)?, inputs.data(1)?, inputs.data(2)?);
        let left = if inputs.len() > 3 {
            Some(inputs.data(3)?)
        } else {
            None
        };
        let factors = Factors {
            first: &first,
            inner: &inner,
            left: left.as_deref(),
        };
        let known = x
            .par_chunks(CHUNK * m * n)
            .zip(grad.par_chunks(CHUNK * l * k));
        let mut parts: Vec<Slopes<T>> = Vec::new();
        if inputs.wanted(0) {
            inputs.accumulate(0, |into, begun| {
                let before = if begun {
                    Before::Added
                } else {
                    Before::Ignored
                };
                parts = into
                    .par_chunks_mut(CHUNK * m * n)
                    .zip(known)
                    .map(|(into, (x, grad))| {
                        Self::backward(self, factors, x, grad, Some((into, before)))
                    })
                    .collect::<Result<_>>()?;
                Ok(())
            })?;
        } else {
            parts = known
                .map(|(x, grad)| Self::backward(self, factors, x, grad, None))
                .collect::<Result<_>>()?;
        }
        // In order, so that the bits do not depend on the number of threads.
        let mut total = Slopes {
            first: vec![T::ZERO; l * m],
            inner: vec![T::ZERO; r * n],
            left: vec![T::ZERO; if left.is_some() { k * r } else { 0 }],
        };
        for part in &parts {
            for (total, part) in [
                (&mut total.first, &part.first),
                (&mut total.inner, &part.inner),
                (&mut total.left, &part.left),
            ] {
                for (total, part) in total.iter_mut().zip(part) {
                    *total += *part;
                }
            }
        }
        let slopes = [total.first, total.inner, total.left];
        for (i, slopes) in (1..inputs.len()).zip(slopes) {
            if inputs.wanted(i) {
                inputs.add(i, Arc::new(slopes));
            }
        }
        Ok(())
    }
}

/// Every `[rows, columns]` of `x` transposed.
fn swapped<T: Float>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut into = unwritten(x.len());
    swap(x, rows, columns, &mut into);
    into
}

fn swap<T: Float>(x: &[T], rows: usize, columns: usize, into: &mut [T]) {
    let size = rows * columns;
    for (into, x) in into.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
        for (column, into) in into.chunks_exact_mut(rows).enumerate() {
            for (into, x) in into.iter_mut().zip(x[column..].iter().step_by(columns)) {
                *into = *x;
            }
        }
    }
}
