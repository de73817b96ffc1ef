//! The kernel of every machine: the compiler's vectors.
#![expect(unsafe_code, reason = "rows and panels are read through pointers")]

use super::micro::{Kernel, Sums};

/// Columns of a panel.
pub(super) const WIDTH: usize = 16;

/// One for each number of rows.
pub(super) const KERNELS: [Kernel; 4] = [run::<1>, run::<2>, run::<3>, run::<4>];

/// Sums over k of `row i [k] * panel[k][j]`.
///
/// # Safety
/// `left` leads to `ROWS` rows of `depth` numbers, `stride` bytes apart, `panel` to `depth` rows of [`WIDTH`] numbers,
/// and `of` is as [`Sums`] says.
unsafe fn run<const ROWS: usize>(
    left: *const u8,
    stride: usize,
    depth: usize,
    panel: *const f32,
    of: Sums,
) {
    let mut sums = [[0.0; WIDTH]; ROWS];
    if !of.from.is_null() {
        // SAFETY: the caller's tile has as many numbers.
        sums = unsafe { of.from.cast::<[[f32; WIDTH]; ROWS]>().read() };
    }
    for k in 0..depth {
        // SAFETY: within the rows and the panel, as the caller promises.
        let right = unsafe { &*panel.add(k * WIDTH).cast::<[f32; WIDTH]>() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let left = unsafe { *left.add(i * stride).cast::<f32>().add(k) };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum += left * right;
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's place has as many rows.
        let into = unsafe { &mut *of.into.add(i * of.stride).cast::<[f32; WIDTH]>() };
        for (into, sum) in into.iter_mut().zip(sums) {
            *into = if of.added { *into + sum } else { *sum };
        }
    }
}
