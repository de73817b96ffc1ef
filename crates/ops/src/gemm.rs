//! Matrix products over slices: the one place that calls the `gemm` crate.
//!
//! A product splits its rows and columns over the current rayon pool, never the inner dimension, so the bits
//! depend on the shapes and not on which thread was first.
//!
//! ```
//! use lowrank_ops::gemm::{Matrix, matmul, matmul_add};
//! let x = Matrix::new(&[1f32, 2., 3., 4., 5., 6.], 2, 3)?;
//! let weight = Matrix::new(&[1f32, 0., 1.], 1, 3)?;
//! let mut y = [0f32; 2];
//! matmul(x, weight.transposed(), &mut y)?;
//! assert_eq!(y, [4., 10.]);
//! matmul_add(-0.5, x, weight.transposed(), &mut y)?;
//! assert_eq!(y, [2., 5.]);
//! # Ok::<(), lowrank_ops::Error>(())
//! ```
#![expect(unsafe_code, reason = "the gemm crate takes pointers and strides")]

use crate::simd::Level;
use crate::{Error, Float, Result, direct};
use gemm::Parallelism;

/// A matrix over a slice: rows and columns with a stride each. Copying it copies no numbers.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Float> Matrix<'a, T> {
    /// A row-major matrix: `data` has exactly `rows * columns` numbers.
    ///
    /// # Errors
    /// If it has not.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Result<Self> {
        if rows.checked_mul(columns) != Some(data.len()) {
            return Err(Error::Shape {
                op: "Matrix",
                what: "the data",
                got: vec![data.len()],
                expected: format!("{rows} * {columns} numbers"),
            });
        }
        Ok(Self {
            data,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        })
    }

    /// Some columns of a row-major matrix: the row `i` begins at `first + i * step`, and `columns` of its numbers count.
    ///
    /// # Errors
    /// If rows overlap, or `data` ends before the last one does.
    pub fn strided(
        data: &'a [T],
        first: usize,
        (rows, columns): (usize, usize),
        step: usize,
    ) -> Result<Self> {
        let end = match rows.checked_sub(1) {
            None => Some(first),
            Some(last) => (last.checked_mul(step))
                .and_then(|start| start.checked_add(first)?.checked_add(columns)),
        };
        if columns > step || end.is_none_or(|end| end > data.len()) {
            return Err(Error::Shape {
                op: "Matrix",
                what: "the data",
                got: vec![data.len()],
                expected: format!(
                    "{rows} rows of {columns} numbers, {step} apart, from {first} on"
                ),
            });
        }
        Ok(Self {
            data: &data[first..],
            rows,
            columns,
            row_stride: step,
            column_stride: 1,
        })
    }

    /// The matrix if its numbers are f32.
    fn singles(&self) -> Option<Matrix<'a, f32>> {
        Some(Matrix {
            data: T::singles(self.data)?,
            rows: self.rows,
            columns: self.columns,
            row_stride: self.row_stride,
            column_stride: self.column_stride,
        })
    }

    /// (rows, columns).
    #[must_use]
    pub const fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Writes some columns of a row, as many as there is room for, from the first one on.
    ///
    /// # Panics
    /// If the matrix has no such row or columns.
    pub fn read(&self, row: usize, first: usize, into: &mut [T]) {
        assert!(
            row < self.rows && first <= self.columns && into.len() <= self.columns - first,
            "no such numbers"
        );
        let Some(last) = into.len().checked_sub(1) else {
            return;
        };
        let first = row * self.row_stride + first * self.column_stride;
        let numbers = &self.data[first..=first + last * self.column_stride];
        if self.column_stride == 1 {
            into.copy_from_slice(numbers);
        } else {
            let numbers = numbers.iter().step_by(self.column_stride);
            for (into, number) in into.iter_mut().zip(numbers) {
                *into = *number;
            }
        }
    }

    /// How far apart rows lie, and columns.
    pub(crate) const fn steps(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// Where the first number lies.
    pub(crate) const fn first(&self) -> *const T {
        self.data.as_ptr()
    }

    /// The same numbers with rows and columns exchanged.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// c = a b, with `c` row-major, (rows of a) x (columns of b); what it held is ignored.
///
/// # Errors
/// If the shapes do not fit.
pub fn matmul<T: Float>(a: Matrix<T>, b: Matrix<T>, c: &mut [T]) -> Result<()> {
    product(
        a,
        b,
        c,
        T::from_f64(1.0),
        Before::Ignored,
        Parallelism::Rayon(0),
    )
}

/// c = factor * a b, added to what `c` holds or in its place.
///
/// # Errors
/// If the shapes do not fit.
pub fn matmul_onto<T: Float>(
    before: Before,
    factor: T,
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
) -> Result<()> {
    product(a, b, c, factor, before, Parallelism::Rayon(0))
}

/// c = c + factor * a b, with `c` row-major, (rows of a) x (columns of b).
///
/// # Errors
/// If the shapes do not fit.
pub fn matmul_add<T: Float>(factor: T, a: Matrix<T>, b: Matrix<T>, c: &mut [T]) -> Result<()> {
    product(a, b, c, factor, Before::Added, Parallelism::Rayon(0))
}

/// c = factor * a b on the calling thread alone, added to what `c` holds or in its place: for callers that are parallel
/// already, and whose matrices are small.
pub(crate) fn matmul_here<T: Float>(
    before: Before,
    factor: T,
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
) -> Result<()> {
    if let (Some(left), Some(right)) = (a.singles(), b.singles())
        && (a.columns, a.rows.checked_mul(b.columns)) == (b.rows, Some(c.len()))
        && let Some(into) = T::singles_mut(c)
        && direct::product(
            Level::used(),
            factor.to_f64() as f32,
            left,
            right,
            before,
            into,
        )
    {
        return Ok(());
    }
    product(a, b, c, factor, before, Parallelism::None)
}

/// What becomes of the numbers that the destination held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// They are overwritten, whatever they are.
    Ignored,
    /// The product is added to them.
    Added,
}

fn product<T: Float>(
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
    factor: T,
    before: Before,
    parallelism: Parallelism,
) -> Result<()> {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if b.rows != k {
        return Err(Error::Shape {
            op: "matmul",
            what: "the right matrix",
            got: vec![b.rows, b.columns],
            expected: format!("({k}, ..)"),
        });
    }
    if m.checked_mul(n) != Some(c.len()) {
        return Err(Error::Shape {
            op: "matmul",
            what: "the destination",
            got: vec![c.len()],
            expected: format!("{m} * {n} numbers"),
        });
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        if before == Before::Ignored {
            c.fill(T::ZERO);
        }
        return Ok(());
    }
    // SAFETY: `Matrix` only exists with a number in its slice for every (row, column): `new` checks it for a row-major
    // matrix, and a transpose keeps the strides and those places. `c` was just checked to have m * n numbers, is
    // exclusively borrowed, and is written row-major. `T` is sealed to f32 and f64, which the crate dispatches on.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            before == Before::Added,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::from_f64(1.0),
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}
