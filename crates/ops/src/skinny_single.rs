//! The kernels of [`skinny`](crate::skinny) in f32.
#![expect(
    unsafe_code,
    reason = "vector instructions, and numbers that are read through pointers"
)]

#[cfg(target_arch = "x86_64")]
use crate::lanes::x86::{Avx2, Avx512};
use crate::lanes::{LANES, Lanes, Portable};
use crate::simd::{Level, ask};

/// How many columns of the narrow matrix are worked on at once.
const RANKS: usize = 8;

/// Rows, or vectors of a row, that are worked on at once: with so many sums three quarters of the registers are full, and
/// a number that was loaded is used more often than it takes to load it.
const ROWS: usize = 3;

/// How many rows ahead a part of a row is asked for: they lie too far apart for the machine to see what comes next.
const AHEAD: usize = 8;

/// h = factor * x a^T at a level, or the machine's best if that is less, see [`skinny::dots`](crate::skinny::dots).
pub(crate) fn dots(
    level: Level,
    x: &[f32],
    a: &[f32],
    n: usize,
    rank: usize,
    factor: f32,
    h: &mut [f32],
) {
    let rows = x.len() / n;
    assert!(
        x.len() == rows * n && a.len() == rank * n && h.len() == rows * rank,
        "a row of h for every row of x, a number of it for every row of a"
    );
    // SAFETY: the sizes were just checked, and the level is no more than the machine has.
    unsafe {
        match level.min(Level::of_machine()) {
            #[cfg(target_arch = "x86_64")]
            level if level >= Level::Avx512 => dots_avx512(x, a, n, rank, factor, h),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => dots_avx2(x, a, n, rank, factor, h),
            _ => dots_with::<Portable>(x, a, n, rank, factor, h),
        }
    }
}

/// sum = h^T g at a level, or the machine's best if that is less, see [`skinny::outer`](crate::skinny::outer).
pub(crate) fn outer(level: Level, h: &[f32], g: &[f32], n: usize, rank: usize, sum: &mut [f32]) {
    let rows = g.len() / n;
    assert!(
        g.len() == rows * n && h.len() == rows * rank && sum.len() == rank * n,
        "a row of h for every row of g, a row of the sum for every number of it"
    );
    // SAFETY: the sizes were just checked, and the level is no more than the machine has.
    unsafe {
        match level.min(Level::of_machine()) {
            #[cfg(target_arch = "x86_64")]
            level if level >= Level::Avx512 => outer_avx512(h, g, n, rank, sum),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => outer_avx2(h, g, n, rank, sum),
            _ => outer_with::<Portable>(h, g, n, rank, sum),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
unsafe fn dots_avx512(x: &[f32], a: &[f32], n: usize, rank: usize, factor: f32, h: &mut [f32]) {
    // SAFETY: the caller's promises.
    unsafe { dots_with::<Avx512>(x, a, n, rank, factor, h) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_avx2(x: &[f32], a: &[f32], n: usize, rank: usize, factor: f32, h: &mut [f32]) {
    // SAFETY: the caller's promises.
    unsafe { dots_with::<Avx2>(x, a, n, rank, factor, h) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
unsafe fn outer_avx512(h: &[f32], g: &[f32], n: usize, rank: usize, sum: &mut [f32]) {
    // SAFETY: the caller's promises.
    unsafe { outer_with::<Avx512>(h, g, n, rank, sum) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn outer_avx2(h: &[f32], g: &[f32], n: usize, rank: usize, sum: &mut [f32]) {
    // SAFETY: the caller's promises.
    unsafe { outer_with::<Avx2>(h, g, n, rank, sum) };
}

/// # Safety
/// The machine has the instructions of `V`, and the sizes are as [`dots`] checks them.
#[inline(always)]
unsafe fn dots_with<V: Lanes>(
    x: &[f32],
    a: &[f32],
    n: usize,
    rank: usize,
    factor: f32,
    h: &mut [f32],
) {
    let (rows, whole) = (x.len() / n, n / LANES * LANES);
    for first in (0..rank).step_by(RANKS) {
        let width = RANKS.min(rank - first);
        for row in (0..rows).step_by(ROWS) {
            // A row that there is not is computed as the last one, and so is a rank; neither is written.
            let some: [usize; ROWS] = std::array::from_fn(|i| (row + i).min(rows - 1));
            let mut sums = [[V::zero(); RANKS]; ROWS];
            // SAFETY: rows, ranks and numbers are below `rows`, `rank` and `n`.
            unsafe {
                let x_at = some.map(|row| x.as_ptr().add(row * n));
                let a_at: [*const f32; RANKS] =
                    std::array::from_fn(|i| a.as_ptr().add((first + i.min(width - 1)) * n));
                for at in (0..whole).step_by(LANES) {
                    let x = x_at.map(|x| V::load(x.add(at)));
                    for (i, a_at) in a_at.iter().enumerate() {
                        let a = V::load(a_at.add(at));
                        for (sums, x) in sums.iter_mut().zip(x) {
                            sums[i] = sums[i].plus_product(x, a);
                        }
                    }
                }
            }
            // By reference: an array that is iterated by value is copied first.
            for (row, sums) in some.iter().zip(&sums).take(rows - row) {
                for (i, sum) in sums.iter().enumerate().take(width) {
                    // SAFETY: the machine has the instructions.
                    let mut total = unsafe { sum.total() };
                    let (x, a) = (&x[row * n..][..n], &a[(first + i) * n..][..n]);
                    for (x, a) in x[whole..].iter().zip(&a[whole..]) {
                        total += x * a;
                    }
                    h[row * rank + first + i] = total * factor;
                }
            }
        }
    }
}

/// # Safety
/// The machine has the instructions of `V`, and the sizes are as [`outer`] checks them.
#[inline(always)]
unsafe fn outer_with<V: Lanes>(h: &[f32], g: &[f32], n: usize, rank: usize, sum: &mut [f32]) {
    let (rows, whole) = (g.len() / n, n / (ROWS * LANES) * ROWS * LANES);
    for first in (0..rank).step_by(RANKS) {
        let width = RANKS.min(rank - first);
        for at in (0..whole).step_by(ROWS * LANES) {
            let mut sums = [[V::zero(); ROWS]; RANKS];
            for row in 0..rows {
                // SAFETY: rows, ranks and numbers are below `rows`, `rank` and `n`.
                unsafe {
                    let g_at = g.as_ptr().add(row * n + at);
                    let g: [V; ROWS] = std::array::from_fn(|i| V::load(g_at.add(i * LANES)));
                    for i in 0..ROWS {
                        ask(g_at.wrapping_add(AHEAD * n + i * LANES));
                    }
                    let h = h.as_ptr().add(row * rank + first);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        // A rank that there is not is computed as the last one, and not written.
                        let h = V::splat(*h.add(i.min(width - 1)));
                        for (sum, g) in sums.iter_mut().zip(g) {
                            *sum = sum.plus_product(h, g);
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(width) {
                let into = &mut sum[(first + i) * n + at..][..ROWS * LANES];
                for (into, sum) in into.chunks_exact_mut(LANES).zip(sums) {
                    // SAFETY: there is room for a vector.
                    unsafe { sum.store(into.as_mut_ptr()) };
                }
            }
        }
        for i in first..first + width {
            for at in whole..n {
                sum[i * n + at] = (0..rows)
                    .map(|row| h[row * rank + i] * g[row * n + at])
                    .sum();
            }
        }
    }
}

#[cfg(test)]
mod tests;
