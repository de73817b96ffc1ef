//! From codes to numbers, a block of 64 at a time.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calling a function that was compiled for instructions that the machine may lack, and its stores"
    )
)]

use super::BLOCK;
use lowrank_ops::simd::Level;

pub(super) const VALUES: usize = 16;

/// The values: quantiles of the normal distribution, scaled to -1..=1, 0 among them.
pub(super) const BOOK: [f32; VALUES] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Both values of every byte.
const PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [BOOK[byte >> 4], BOOK[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Whole blocks: a scale for each, the codes of all of them or more. Every number is one product, rounded once, at every
/// level.
pub(super) fn blocks(level: Level, codes: &[u8], scales: &[f32], into: &mut [f32]) {
    let (codes, _) = codes.as_chunks::<{ BLOCK / 2 }>();
    let (into, _) = into.as_chunks_mut::<BLOCK>();
    match level {
        // SAFETY: the caller has the level from the machine, and later levels contain this one.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512(codes, scales, into) },
        _ => portable(codes, scales, into),
    }
}

fn portable(codes: &[[u8; BLOCK / 2]], scales: &[f32], into: &mut [[f32; BLOCK]]) {
    for ((codes, scale), into) in codes.iter().zip(scales).zip(into) {
        for (byte, pair) in codes.iter().zip(into.as_chunks_mut::<2>().0) {
            *pair = PAIRS[usize::from(*byte)].map(|value| value * scale);
        }
    }
}

/// The 16 values times the scale are one register, which 16 codes at a time select from.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(codes: &[[u8; BLOCK / 2]], scales: &[f32], into: &mut [[f32; BLOCK]]) {
    use std::arch::x86_64::{
        _mm_loadl_epi64, _mm512_cvtepu8_epi64, _mm512_loadu_ps, _mm512_mul_ps,
        _mm512_permutexvar_ps, _mm512_set1_epi64, _mm512_set1_ps, _mm512_shuffle_epi32,
        _mm512_srlv_epi32, _mm512_storeu_ps,
    };
    // SAFETY: 16 numbers are read, as many as the array has.
    let book = unsafe { _mm512_loadu_ps(BOOK.as_ptr()) };
    // The first number of a byte is its high bits; bits beyond the lowest four do not select.
    let shifts = _mm512_set1_epi64(4);
    for ((codes, scale), into) in codes.iter().zip(scales).zip(into) {
        let values = _mm512_mul_ps(book, _mm512_set1_ps(*scale));
        for (codes, into) in codes
            .as_chunks::<8>()
            .0
            .iter()
            .zip(into.as_chunks_mut::<16>().0)
        {
            // SAFETY: 8 bytes are read, as many as the array has.
            let bytes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
            // Each byte in two neighbouring lanes.
            let twice = _mm512_shuffle_epi32::<0b10_10_00_00>(_mm512_cvtepu8_epi64(bytes));
            let codes = _mm512_srlv_epi32(twice, shifts);
            let numbers = _mm512_permutexvar_ps(codes, values);
            // SAFETY: 16 numbers are written, as many as the array has.
            unsafe { _mm512_storeu_ps(into.as_mut_ptr(), numbers) };
        }
    }
}
