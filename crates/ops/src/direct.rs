//! Products of f32 matrices that lie well already, on the calling thread and without packing: those of attention, which
//! are too small to pay for it.
#![expect(
    unsafe_code,
    reason = "vector instructions, and numbers that are read through pointers"
)]

use crate::gemm::{Before, Matrix};
#[cfg(target_arch = "x86_64")]
use crate::lanes::x86::{Avx2, Avx512};
use crate::lanes::{LANES, Lanes, Portable};
use crate::simd::Level;

/// Vectors of a tile's row. With eight rows their sums fill three quarters of the registers.
const VECTORS: usize = 3;

/// A product whose shapes were checked: into = factor * left right, or added to it.
#[derive(Clone, Copy)]
struct Product {
    left: *const f32,
    row_step: usize,
    column_step: usize,
    right: *const f32,
    right_step: usize,
    into: *mut f32,
    into_step: usize,
    depth: usize,
    factor: f32,
    before: Before,
}

/// into = factor * left right, or added to it; `into` is row-major. False, with nothing done, if the numbers of a row of
/// `right` do not follow each other.
pub(crate) fn product(
    level: Level,
    factor: f32,
    left: Matrix<'_, f32>,
    right: Matrix<'_, f32>,
    before: Before,
    into: &mut [f32],
) -> bool {
    let ((rows, depth), (right_rows, columns)) = (left.dims(), right.dims());
    if right.steps().1 != 1 || rows == 0 || columns == 0 || depth == 0 {
        return false;
    }
    assert!(
        right_rows == depth && into.len() == rows * columns,
        "the shapes of a product were checked by its caller"
    );
    let (row_step, column_step) = left.steps();
    let product = Product {
        left: left.first(),
        row_step,
        column_step,
        right: right.first(),
        right_step: right.steps().0,
        into: into.as_mut_ptr(),
        into_step: columns,
        depth,
        factor,
        before,
    };
    // SAFETY: a `Matrix` has a number for each of its rows and columns, `into` was just checked and is exclusively
    // borrowed, and the level is no more than the machine has.
    unsafe {
        match level.min(Level::of_machine()) {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => avx512(product, rows, columns),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(product, rows, columns),
            _ => all::<Portable>(product, rows, columns),
        }
    }
    true
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
unsafe fn avx512(product: Product, rows: usize, columns: usize) {
    // SAFETY: the caller's promises.
    unsafe { all::<Avx512>(product, rows, columns) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(product: Product, rows: usize, columns: usize) {
    // SAFETY: the caller's promises.
    unsafe { all::<Avx2>(product, rows, columns) };
}

/// # Safety
/// The machine has the instructions of `V`, and the matrices have so many rows and columns.
#[inline(always)]
unsafe fn all<V: Lanes>(product: Product, rows: usize, columns: usize) {
    for column in (0..columns).step_by(VECTORS * LANES) {
        let width = (columns - column).min(VECTORS * LANES);
        let last = (width - 1) % LANES + 1;
        // SAFETY: tiles are within the matrices.
        unsafe {
            match width.div_ceil(LANES) {
                1 => down::<V, 1>(product, rows, column, last),
                2 => down::<V, 2>(product, rows, column, last),
                _ => down::<V, VECTORS>(product, rows, column, last),
            }
        }
    }
}

/// All rows of some columns, of which `last` are in the last vector.
///
/// # Safety
/// As [`all`].
#[inline(always)]
unsafe fn down<V: Lanes, const WIDE: usize>(
    product: Product,
    rows: usize,
    column: usize,
    last: usize,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: as the caller's.
        unsafe {
            row += match rows - row {
                8.. => tile::<V, 8, WIDE>(product, row, column, last),
                4.. => tile::<V, 4, WIDE>(product, row, column, last),
                2.. => tile::<V, 2, WIDE>(product, row, column, last),
                _ => tile::<V, 1, WIDE>(product, row, column, last),
            };
        }
    }
}

/// Returns how many rows were computed.
///
/// # Safety
/// As [`all`].
#[inline(always)]
unsafe fn tile<V: Lanes, const HIGH: usize, const WIDE: usize>(
    product: Product,
    row: usize,
    column: usize,
    last: usize,
) -> usize {
    let mut sums = [[V::zero(); WIDE]; HIGH];
    // SAFETY: rows, columns and the depth are within the matrices; the last vector is read and written in part.
    unsafe {
        let left = product.left.add(row * product.row_step);
        let right = product.right.add(column);
        for k in 0..product.depth {
            let right = right.add(k * product.right_step);
            let right: [V; WIDE] = std::array::from_fn(|i| {
                if i + 1 == WIDE {
                    V::load_first(right.add(i * LANES), last)
                } else {
                    V::load(right.add(i * LANES))
                }
            });
            let left = left.add(k * product.column_step);
            for (i, sums) in sums.iter_mut().enumerate() {
                let number = V::splat(*left.add(i * product.row_step));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = sum.plus_product(number, right);
                }
            }
        }
        let factor = V::splat(product.factor);
        for (i, sums) in sums.iter().enumerate() {
            let into = product.into.add((row + i) * product.into_step + column);
            for (at, sum) in sums.iter().enumerate() {
                let into = into.add(at * LANES);
                let count = if at + 1 == WIDE { last } else { LANES };
                let before = match product.before {
                    Before::Added => V::load_first(into, count),
                    Before::Ignored => V::zero(),
                };
                before.plus_product(factor, *sum).store_first(into, count);
            }
        }
    }
    HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn equals_sums_in_f64_at_every_level() -> crate::Result<()> {
        for (rows, depth, columns) in [
            (1, 1, 1),
            (8, 5, 48),
            (13, 64, 70),
            (7, 33, 16),
            (64, 9, 97),
        ] {
            for (transposed, before) in [(false, Before::Ignored), (true, Before::Added)] {
                // Both lie in wider matrices.
                let (wide, step) = (numbers(200 * 130, 3), columns + 5);
                let left = if transposed {
                    Matrix::strided(&wide, 11, (depth, rows), 130)?.transposed()
                } else {
                    Matrix::strided(&wide, 11, (rows, depth), 130)?
                };
                let numbers_right = numbers(depth * step + 2, 5);
                let right = Matrix::strided(&numbers_right, 2, (depth, columns), step)?;
                let start = numbers(rows * columns, 7);
                for (word, level) in Level::WORDS {
                    let mut into = start.clone();
                    assert!(product(level, 0.3, left, right, before, &mut into));
                    for (at, got) in into.iter().enumerate() {
                        let (row, column) = (at / columns, at % columns);
                        let term = |k| {
                            let place = if transposed {
                                k * 130 + row
                            } else {
                                row * 130 + k
                            };
                            let right = numbers_right[2 + k * step + column];
                            f64::from(wide[11 + place]) * f64::from(right)
                        };
                        let mut expected = f64::from(0.3f32) * (0..depth).map(term).sum::<f64>();
                        if before == Before::Added {
                            expected += f64::from(start[at]);
                        }
                        assert!(
                            (f64::from(*got) - expected).abs() < 2e-6,
                            "{word}: {got}, {expected}"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_transposed_right_matrix_is_left_to_others() -> crate::Result<()> {
        let (left, right) = (numbers(6, 1), numbers(6, 2));
        let (left, right) = (
            Matrix::new(&left, 2, 3)?,
            Matrix::new(&right, 2, 3)?.transposed(),
        );
        let mut into = [7.0; 4];
        assert!(!product(
            Level::Portable,
            1.0,
            left,
            right,
            Before::Ignored,
            &mut into
        ));
        assert_eq!(into, [7.0; 4]);
        Ok(())
    }
}
