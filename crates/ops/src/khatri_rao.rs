//! Products of all pairs of rows, or of columns: two low-rank factors multiplied number by number are a low-rank factor.
//!
//! (A1 B1) (A2 B2), number by number, is [`outer_rows`]`(A1, A2)` times [`khatri_rao`]`(B1, B2)`.

use crate::float::{same_dtype, with_float};
use crate::rows::{expect_dims, for_rows, put};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, unwritten};
use candle_core::{Shape, Tensor};
use std::sync::Arc;

/// Every row of `u` `[r, n]` times every row of `v` `[s, n]`, number by number -> `[r s, n]`; row `i s + j` is of u's row i
/// and v's row j.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn khatri_rao(u: &Tensor, v: &Tensor) -> Result<Tensor> {
    const OP: &str = "khatri_rao";
    let ((r, n), (s, _)) = (dims2(OP, "u", u)?, dims2(OP, "v", v)?);
    expect_dims(OP, "v", v, &[s, n])?;
    same_dtype(OP, u, &[("v", v)])?;
    if composed::replaces(OP, u)? {
        return composed::khatri_rao(u, v);
    }
    let (u, v) = (u.contiguous()?, v.contiguous()?);
    with_float!(OP, u.dtype(), T => {
        let (left, right) = (data::<T>(&u)?, data::<T>(&v)?);
        let mut product = unwritten(r * s * n);
        for_rows(&mut product, n, |row, into| {
            let (left, right) = (&left[row / s * n..][..n], &right[row % s * n..][..n]);
            vectorised!({
                for (into, (left, right)) in into.iter_mut().zip(left.iter().zip(right)) {
                    *into = *left * *right;
                }
            });
        });
        drop((left, right));
        let product = [(product, Shape::from((r * s, n)))];
        let [product] = tape::record(OP, &[&u, &v], product, KhatriRao { r, s, n })?;
        Ok(product)
    })
}

struct KhatriRao {
    r: usize,
    s: usize,
    n: usize,
}

impl<T: Float> Backward<T> for KhatriRao {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let &Self { r, s, n } = self;
        for (of, other, others) in [(0, 1, s), (1, 0, r)] {
            if !inputs.wanted(of) {
                continue;
            }
            let values = inputs.data(other)?;
            // Where the product of this input's row and the other's lies.
            let place = |row: usize, at: usize| if of == 0 { row * s + at } else { at * s + row };
            inputs.accumulate(of, |into, begun| {
                for_rows(into, n, |row, into| {
                    for at in 0..others {
                        let grad = &grad[place(row, at) * n..][..n];
                        let values = &values[at * n..][..n];
                        vectorised!({
                            for (into, (grad, value)) in
                                into.iter_mut().zip(grad.iter().zip(values))
                            {
                                put(into, *grad * *value, begun || at > 0);
                            }
                        });
                    }
                });
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The outer product of each row of `u` `[n, r]` with the same row of `v` `[n, s]` -> `[n, r s]`; column `i s + j` is of
/// u's column i and v's column j.
///
/// # Errors
/// If the shapes do not fit, or a dtype is neither f32 nor f64, or they differ.
pub fn outer_rows(u: &Tensor, v: &Tensor) -> Result<Tensor> {
    const OP: &str = "outer_rows";
    let ((n, r), (_, s)) = (dims2(OP, "u", u)?, dims2(OP, "v", v)?);
    expect_dims(OP, "v", v, &[n, s])?;
    same_dtype(OP, u, &[("v", v)])?;
    if composed::replaces(OP, u)? {
        return composed::outer_rows(u, v);
    }
    let (u, v) = (u.contiguous()?, v.contiguous()?);
    with_float!(OP, u.dtype(), T => {
        let (left, right) = (data::<T>(&u)?, data::<T>(&v)?);
        let mut product = unwritten(n * r * s);
        for_rows(&mut product, r * s, |row, into| {
            let (left, right) = (&left[row * r..][..r], &right[row * s..][..s]);
            vectorised!({
                for (into, left) in into.chunks_exact_mut(s).zip(left) {
                    for (into, right) in into.iter_mut().zip(right) {
                        *into = *left * *right;
                    }
                }
            });
        });
        drop((left, right));
        let product = [(product, Shape::from((n, r * s)))];
        let [product] = tape::record(OP, &[&u, &v], product, OuterRows { r, s })?;
        Ok(product)
    })
}

struct OuterRows {
    r: usize,
    s: usize,
}

impl<T: Float> Backward<T> for OuterRows {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let &Self { r, s } = self;
        let (u, v) = (inputs.data(0)?, inputs.data(1)?);
        if inputs.wanted(0) {
            inputs.accumulate(0, |into, begun| {
                for_rows(into, r, |row, into| {
                    let (grad, v) = (&grad[row * r * s..][..r * s], &v[row * s..][..s]);
                    vectorised!({
                        for (into, grad) in into.iter_mut().zip(grad.chunks_exact(s)) {
                            let mut sum = T::ZERO;
                            for (grad, v) in grad.iter().zip(v) {
                                sum += *grad * *v;
                            }
                            put(into, sum, begun);
                        }
                    });
                });
                Ok(())
            })?;
        }
        if inputs.wanted(1) {
            inputs.accumulate(1, |into, begun| {
                for_rows(into, s, |row, into| {
                    let (grad, u) = (&grad[row * r * s..][..r * s], &u[row * r..][..r]);
                    vectorised!({
                        for (at, (grad, u)) in grad.chunks_exact(s).zip(u).enumerate() {
                            for (into, grad) in into.iter_mut().zip(grad) {
                                put(into, *grad * *u, begun || at > 0);
                            }
                        }
                    });
                });
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Rows and columns, neither of them 0.
pub(crate) fn dims2(op: &'static str, what: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match x.dims() {
        [rows, columns] if *rows > 0 && *columns > 0 => Ok((*rows, *columns)),
        dims => Err(Error::Shape {
            op,
            what,
            got: dims.to_vec(),
            expected: "a matrix with rows and columns".into(),
        }),
    }
}
