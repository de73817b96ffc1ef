//! f32, and bf16 pairs, with AVX-512: eight rows by three vectors are 24 of 32 registers, and the eight rows' addresses
//! fit into the other kind of registers, so that the left matrix is read where it lies.
#![expect(unsafe_code, reason = "vector instructions over pointers")]

use super::micro::{Kernel, Sums};
use lowrank_ops::simd::ask;
use std::arch::x86_64::*;

/// Columns of a panel.
pub(super) const WIDTH: usize = 48;

/// How far ahead of its use a panel is asked for, in rows of it.
const AHEAD: usize = 12;

/// One for each number of rows.
pub(super) const KERNELS: [Kernel; 8] = [
    run::<1>, run::<2>, run::<3>, run::<4>, run::<5>, run::<6>, run::<7>, run::<8>,
];

/// Of bf16 pairs, one for each number of rows.
pub(super) const PAIRS: [Kernel; 8] = [
    run_pairs::<1>,
    run_pairs::<2>,
    run_pairs::<3>,
    run_pairs::<4>,
    run_pairs::<5>,
    run_pairs::<6>,
    run_pairs::<7>,
    run_pairs::<8>,
];

/// Sums over k of `row i [k] * panel[k][j]`.
///
/// # Safety
/// The machine has AVX-512 F. `left` leads to `ROWS` rows of `depth` numbers, `stride` bytes apart, `panel` to `depth`
/// rows of [`WIDTH`] numbers, and `of` is as [`Sums`] says.
#[target_feature(enable = "avx512f")]
unsafe fn run<const ROWS: usize>(
    left: *const u8,
    stride: usize,
    depth: usize,
    panel: *const f32,
    of: Sums,
) {
    let rows: [*const f32; ROWS] =
        std::array::from_fn(|i| left.wrapping_add(i * stride).cast::<f32>());
    // SAFETY: the caller's places have as many rows.
    let mut sums = unsafe { load::<ROWS>(of) };
    for k in 0..depth {
        // SAFETY: within the rows and the panel, as the caller promises.
        unsafe {
            let at = panel.add(k * WIDTH);
            let right = [
                _mm512_loadu_ps(at),
                _mm512_loadu_ps(at.add(16)),
                _mm512_loadu_ps(at.add(32)),
            ];
            for part in 0..3 {
                ask(at.wrapping_add(AHEAD * WIDTH + 16 * part));
            }
            for i in 0..ROWS {
                let left = _mm512_set1_ps(*rows[i].add(k));
                for part in 0..3 {
                    sums[i][part] = _mm512_fmadd_ps(left, right[part], sums[i][part]);
                }
            }
        }
    }
    // SAFETY: the caller's places have as many rows.
    unsafe { store(sums, of) };
}

/// The same of bf16 pairs, summed in f32: a word of `left` and of `panel` is two numbers, and `depth` counts words.
///
/// # Safety
/// As above, and the machine has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn run_pairs<const ROWS: usize>(
    left: *const u8,
    stride: usize,
    depth: usize,
    panel: *const f32,
    of: Sums,
) {
    let rows: [*const i32; ROWS] =
        std::array::from_fn(|i| left.wrapping_add(i * stride).cast::<i32>());
    // SAFETY: the caller's places have as many rows.
    let mut sums = unsafe { load::<ROWS>(of) };
    for k in 0..depth {
        // SAFETY: within the rows and the panel, as the caller promises. Both types are 64 bytes of any bits.
        unsafe {
            let at = panel.add(k * WIDTH);
            let load = |part: usize| pairs(_mm512_loadu_si512(at.add(16 * part).cast()));
            let right = [load(0), load(1), load(2)];
            for i in 0..ROWS {
                let left = pairs(_mm512_set1_epi32(*rows[i].add(k)));
                for part in 0..3 {
                    sums[i][part] = _mm512_dpbf16_ps(sums[i][part], left, right[part]);
                }
            }
        }
    }
    // SAFETY: the caller's places have as many rows.
    unsafe { store(sums, of) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(words: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes of any bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const ROWS: usize>(of: Sums) -> [[__m512; 3]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); 3]; ROWS];
    if !of.from.is_null() {
        for (i, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's tile has `ROWS` rows of three vectors.
                *sum = unsafe { _mm512_loadu_ps(of.from.add(i * WIDTH + 16 * part)) };
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const ROWS: usize>(sums: [[__m512; 3]; ROWS], of: Sums) {
    for (i, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's place has `ROWS` rows of three vectors.
            unsafe {
                let at = of.into.add(i * of.stride + 16 * part);
                let sum = if of.added {
                    _mm512_add_ps(_mm512_loadu_ps(at), *sum)
                } else {
                    *sum
                };
                _mm512_storeu_ps(at, sum);
            }
        }
    }
}
