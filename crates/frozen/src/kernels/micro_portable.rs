//! The kernel of every machine: the compiler's vectors.
#![expect(unsafe_code, reason = "rows and panels are read through pointers")]

use super::micro::Kernel;

/// Columns of a panel.
pub(super) const WIDTH: usize = 16;

/// One for each number of rows.
pub(super) const KERNELS: [Kernel; 4] = [run::<1>, run::<2>, run::<3>, run::<4>];

/// `tile[i][j] += sum over k of row i [k] * panel[k][j]`.
///
/// # Safety
/// `left` leads to `ROWS` rows of `depth` numbers, `stride` bytes apart, `panel` to `depth` rows of [`WIDTH`] numbers,
/// and `tile` to `ROWS` of them.
unsafe fn run<const ROWS: usize>(
    left: *const u8,
    stride: usize,
    depth: usize,
    panel: *const f32,
    tile: *mut f32,
) {
    // SAFETY: the caller's tile has as many numbers.
    let mut sums = unsafe { tile.cast::<[[f32; WIDTH]; ROWS]>().read() };
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
    // SAFETY: as above.
    unsafe { tile.cast::<[[f32; WIDTH]; ROWS]>().write(sums) };
}
