//! How the numbers of a row are read into registers, by encoding.
#![expect(
    unsafe_code,
    reason = "vector instructions, and numbers that are read through pointers"
)]

use lowrank_ops::lanes::{LANES, Lanes};

/// How many numbers are read at a time: two vectors, and a block of GGUF's simple types.
pub(crate) const STEP: usize = 2 * LANES;

/// An encoding that is widened in registers. The numbers are bit by bit those that decoding it to memory gives.
pub(crate) trait Row<L: Lanes> {
    /// How many bytes a step has.
    const BYTES: usize;

    /// Reads a step.
    ///
    /// # Safety
    /// `from` has so many bytes, aligned or not, and the machine has the level's instructions.
    unsafe fn read(from: *const u8) -> [L; 2];
}

/// f32 as they are.
pub(crate) struct Single;

impl<L: Lanes> Row<L> for Single {
    const BYTES: usize = 4 * STEP;

    #[inline(always)]
    unsafe fn read(from: *const u8) -> [L; 2] {
        let from = from.cast::<f32>();
        // SAFETY: the caller's; a load needs no alignment.
        unsafe { [L::load(from), L::load(from.add(LANES))] }
    }
}

/// bf16.
pub(crate) struct Bf16;

impl<L: Lanes> Row<L> for Bf16 {
    const BYTES: usize = 2 * STEP;

    #[inline(always)]
    unsafe fn read(from: *const u8) -> [L; 2] {
        let from = from.cast();
        // SAFETY: the caller's; a load needs no alignment.
        unsafe { [L::load_bf16(from), L::load_bf16(from.add(LANES))] }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Q4_0, Q4_1, Q8_0};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Row;
    use lowrank_ops::lanes::x86::Avx512;
    use std::arch::x86_64::*;

    /// 0 to 15, in order.
    const COUNT: [f32; 16] = [
        0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
    ];

    /// -8 to 7, in order.
    const CENTRED: [f32; 16] = [
        -8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.,
    ];

    /// A half in every lane.
    ///
    /// # Safety
    /// `from` has two bytes, and the machine has AVX-512.
    #[inline(always)]
    unsafe fn half(from: *const u8) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }

    /// The low and the high halves of sixteen bytes, looked up in a table of sixteen numbers.
    ///
    /// # Safety
    /// `from` has sixteen bytes, and the machine has AVX-512.
    #[inline(always)]
    unsafe fn nibbles(from: *const u8, table: __m512) -> [Avx512; 2] {
        // SAFETY: the caller's. A lookup uses the lowest four bits of an index only.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm512_srli_epi32::<4>(bytes);
            [
                Avx512(_mm512_permutexvar_ps(bytes, table)),
                Avx512(_mm512_permutexvar_ps(high, table)),
            ]
        }
    }

    /// A scale, and 32 numbers of 4 bits around 8.
    pub(crate) struct Q4_0;

    impl Row<Avx512> for Q4_0 {
        const BYTES: usize = 18;

        #[inline(always)]
        unsafe fn read(from: *const u8) -> [Avx512; 2] {
            // SAFETY: the caller's.
            unsafe {
                let table = _mm512_mul_ps(_mm512_loadu_ps(CENTRED.as_ptr()), half(from));
                nibbles(from.add(2), table)
            }
        }
    }

    /// A scale, an offset, and 32 numbers of 4 bits.
    pub(crate) struct Q4_1;

    impl Row<Avx512> for Q4_1 {
        const BYTES: usize = 20;

        #[inline(always)]
        unsafe fn read(from: *const u8) -> [Avx512; 2] {
            // SAFETY: the caller's.
            unsafe {
                let both = _mm_cvtsi32_si128(from.cast::<i32>().read_unaligned());
                let both = _mm512_castps128_ps512(_mm_maskz_cvtph_ps(0xF, both));
                let scale = _mm512_permutexvar_ps(_mm512_setzero_si512(), both);
                let offset = _mm512_permutexvar_ps(_mm512_set1_epi32(1), both);
                let scaled = _mm512_mul_ps(_mm512_loadu_ps(COUNT.as_ptr()), scale);
                nibbles(from.add(4), _mm512_add_ps(scaled, offset))
            }
        }
    }

    /// A scale, and 32 numbers of 8 bits.
    pub(crate) struct Q8_0;

    impl Row<Avx512> for Q8_0 {
        const BYTES: usize = 34;

        #[inline(always)]
        unsafe fn read(from: *const u8) -> [Avx512; 2] {
            // SAFETY: the caller's.
            unsafe {
                let scale = half(from);
                let wide = |from: *const u8| {
                    let bytes = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()));
                    Avx512(_mm512_mul_ps(_mm512_cvtepi32_ps(bytes), scale))
                };
                [wide(from.add(2)), wide(from.add(18))]
            }
        }
    }
}
