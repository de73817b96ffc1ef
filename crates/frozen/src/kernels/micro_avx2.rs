//! f32 with AVX2 and FMA: six rows by two vectors are twelve of sixteen registers.
#![expect(unsafe_code, reason = "vector instructions over pointers")]

use super::micro::{Kernel, Sums};
use std::arch::x86_64::*;

/// Columns of a panel.
pub(super) const WIDTH: usize = 16;

/// One for each number of rows.
pub(super) const KERNELS: [Kernel; 6] =
    [run::<1>, run::<2>, run::<3>, run::<4>, run::<5>, run::<6>];

/// Sums over k of `row i [k] * panel[k][j]`.
///
/// # Safety
/// The machine has AVX2 and FMA. `left` leads to `ROWS` rows of `depth` numbers, `stride` bytes apart, `panel` to `depth`
/// rows of [`WIDTH`] numbers, and `of` is as [`Sums`] says.
#[target_feature(enable = "avx2,fma")]
unsafe fn run<const ROWS: usize>(
    left: *const u8,
    stride: usize,
    depth: usize,
    panel: *const f32,
    of: Sums,
) {
    let rows: [*const f32; ROWS] =
        std::array::from_fn(|i| left.wrapping_add(i * stride).cast::<f32>());
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    if !of.from.is_null() {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's tile has as many rows.
            *sums = unsafe {
                [
                    _mm256_loadu_ps(of.from.add(i * WIDTH)),
                    _mm256_loadu_ps(of.from.add(i * WIDTH + 8)),
                ]
            };
        }
    }
    for k in 0..depth {
        // SAFETY: within the rows and the panel, as the caller promises.
        unsafe {
            let right = [
                _mm256_loadu_ps(panel.add(k * WIDTH)),
                _mm256_loadu_ps(panel.add(k * WIDTH + 8)),
            ];
            for i in 0..ROWS {
                let left = _mm256_broadcast_ss(&*rows[i].add(k));
                sums[i][0] = _mm256_fmadd_ps(left, right[0], sums[i][0]);
                sums[i][1] = _mm256_fmadd_ps(left, right[1], sums[i][1]);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's place has as many rows.
            unsafe {
                let at = of.into.add(i * of.stride + 8 * part);
                let sum = if of.added {
                    _mm256_add_ps(_mm256_loadu_ps(at), *sum)
                } else {
                    *sum
                };
                _mm256_storeu_ps(at, sum);
            }
        }
    }
}
