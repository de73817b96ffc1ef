//! The kernels of [`skinny`](crate::skinny) in f32.
#![expect(
    unsafe_code,
    reason = "vector instructions, and numbers that are read through pointers"
)]

#[cfg(target_arch = "x86_64")]
use crate::lanes::x86::{Avx2, Avx512};
use crate::lanes::{LANES, Lanes, Portable};
use crate::simd::Level;

/// How many columns of the narrow matrix are worked on at once.
const RANKS: usize = 8;

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
        for row in (0..rows).step_by(2) {
            // A row that there is not is computed as the last one, and so is a rank; neither is written.
            let pair = [row, (row + 1).min(rows - 1)];
            let mut sums = [[V::zero(); RANKS]; 2];
            // SAFETY: rows, ranks and numbers are below `rows`, `rank` and `n`.
            unsafe {
                let x_at = pair.map(|row| x.as_ptr().add(row * n));
                let a_at: [*const f32; RANKS] =
                    std::array::from_fn(|i| a.as_ptr().add((first + i.min(width - 1)) * n));
                for at in (0..whole).step_by(LANES) {
                    let x = [V::load(x_at[0].add(at)), V::load(x_at[1].add(at))];
                    let [sums0, sums1] = &mut sums;
                    for ((sum0, sum1), a_at) in sums0.iter_mut().zip(sums1).zip(a_at) {
                        let a = V::load(a_at.add(at));
                        *sum0 = sum0.plus_product(x[0], a);
                        *sum1 = sum1.plus_product(x[1], a);
                    }
                }
            }
            for (row, sums) in pair.into_iter().zip(sums).take(rows - row) {
                for (i, sum) in sums.into_iter().enumerate().take(width) {
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
    let (rows, whole) = (g.len() / n, n / (2 * LANES) * 2 * LANES);
    for first in (0..rank).step_by(RANKS) {
        let width = RANKS.min(rank - first);
        for at in (0..whole).step_by(2 * LANES) {
            let mut sums = [[V::zero(); 2]; RANKS];
            for row in 0..rows {
                // SAFETY: rows, ranks and numbers are below `rows`, `rank` and `n`.
                unsafe {
                    let g_at = g.as_ptr().add(row * n + at);
                    let g = [V::load(g_at), V::load(g_at.add(LANES))];
                    let h = h.as_ptr().add(row * rank + first);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        // A rank that there is not is computed as the last one, and not written.
                        let h = V::splat(*h.add(i.min(width - 1)));
                        sums[0] = sums[0].plus_product(h, g[0]);
                        sums[1] = sums[1].plus_product(h, g[1]);
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate().take(width) {
                let into = &mut sum[(first + i) * n + at..][..2 * LANES];
                // SAFETY: there is room for two vectors.
                unsafe {
                    sums[0].store(into.as_mut_ptr());
                    sums[1].store(into.as_mut_ptr().add(LANES));
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
