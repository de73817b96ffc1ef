//! Sixteen numbers at a time, at each level of vector instructions: for kernels that the compiler does not vectorise.
#![expect(
    unsafe_code,
    reason = "vector instructions, and numbers that are read through pointers"
)]

use half::bf16;

/// How many numbers a vector has, at every level.
pub const LANES: usize = 16;

/// Sixteen f32 numbers. Whatever is inlined from here must end in a function that is compiled for the level.
pub trait Lanes: Copy {
    /// All zero.
    fn zero() -> Self;

    /// Sixteen times the same number.
    ///
    /// # Safety
    /// The machine has the level's instructions.
    unsafe fn splat(number: f32) -> Self;

    /// Writes sixteen numbers.
    ///
    /// # Safety
    /// `into` has room for so many, and the machine has the level's instructions.
    #[inline(always)]
    unsafe fn store(self, into: *mut f32) {
        // SAFETY: as the caller's.
        unsafe { into.cast::<[f32; LANES]>().write_unaligned(self.array()) };
    }

    /// Reads sixteen numbers.
    ///
    /// # Safety
    /// `from` has so many, and the machine has the level's instructions.
    unsafe fn load(from: *const f32) -> Self;

    /// Reads `count` numbers, at most sixteen; the rest is zero.
    ///
    /// # Safety
    /// `from` has so many, and the machine has the level's instructions.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        if count == LANES {
            // SAFETY: as the caller's.
            return unsafe { Self::load(from) };
        }
        let mut numbers = [0f32; LANES];
        // SAFETY: the caller says that there are so many; the array has room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(from, numbers.as_mut_ptr(), count.min(LANES));
            Self::load(numbers.as_ptr())
        }
    }

    /// Writes the first `count` numbers, at most sixteen.
    ///
    /// # Safety
    /// `into` has room for so many, and the machine has the level's instructions.
    #[inline(always)]
    unsafe fn store_first(self, into: *mut f32, count: usize) {
        if count == LANES {
            // SAFETY: as the caller's.
            return unsafe { self.store(into) };
        }
        // SAFETY: the caller says that there is room.
        unsafe {
            std::ptr::copy_nonoverlapping(self.array().as_ptr(), into, count.min(LANES));
        }
    }

    /// Reads sixteen halves.
    ///
    /// # Safety
    /// As [`Self::load`].
    unsafe fn load_bf16(from: *const bf16) -> Self;

    /// self + a b.
    ///
    /// # Safety
    /// The machine has the level's instructions.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;

    /// As an array.
    ///
    /// # Safety
    /// The machine has the level's instructions.
    unsafe fn array(self) -> [f32; LANES];

    /// The sum of all lanes, always in the same order.
    ///
    /// # Safety
    /// The machine has the level's instructions.
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: as the caller's.
        let mut lanes = unsafe { self.array() };
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// What every machine has.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(number: f32) -> Self {
        Self([number; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller says that there are sixteen.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller says that there are sixteen; a bf16 is a wrapped u16.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        let mut sum = self.0;
        for (sum, (a, b)) in sum.iter_mut().zip(a.0.iter().zip(b.0)) {
            *sum += a * b;
        }
        Self(sum)
    }

    #[inline(always)]
    unsafe fn array(self) -> [f32; LANES] {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    //! The levels above.

    use super::{LANES, Lanes};
    use half::bf16;
    use std::arch::x86_64::*;

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: sixteen numbers in place of two vectors of eight.
            unsafe { std::mem::transmute([0f32; LANES]) }
        }

        #[inline(always)]
        unsafe fn splat(number: f32) -> Self {
            // SAFETY: the caller says that the machine has AVX2.
            unsafe { Self(_mm256_set1_ps(number), _mm256_set1_ps(number)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller says that there are sixteen, and that the machine has AVX2.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: as above; a bf16 is a wrapped u16, and becomes an f32 by 16 zeros.
            unsafe {
                let wide = |from| {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                };
                let from = from.cast::<__m128i>();
                Self(wide(from), wide(from.add(1)))
            }
        }

        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the caller says that the machine has FMA.
            unsafe {
                Self(
                    _mm256_fmadd_ps(a.0, b.0, self.0),
                    _mm256_fmadd_ps(a.1, b.1, self.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn array(self) -> [f32; LANES] {
            // SAFETY: two vectors of eight are sixteen numbers.
            unsafe { std::mem::transmute(self) }
        }
    }

    /// The first `count` lanes.
    #[inline(always)]
    const fn mask(count: usize) -> __mmask16 {
        ((1u32 << count) - 1) as __mmask16
    }

    /// AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub __m512);

    impl Lanes for Avx512 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: sixteen numbers in place of a vector of sixteen.
            unsafe { std::mem::transmute([0f32; LANES]) }
        }

        #[inline(always)]
        unsafe fn splat(number: f32) -> Self {
            // SAFETY: the caller says that the machine has AVX-512.
            unsafe { Self(_mm512_set1_ps(number)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller says that there are sixteen, and that the machine has AVX-512.
            unsafe { Self(_mm512_loadu_ps(from)) }
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            // SAFETY: the mask leaves out what the caller does not have.
            unsafe { Self(_mm512_maskz_loadu_ps(mask(count), from)) }
        }

        #[inline(always)]
        unsafe fn store_first(self, into: *mut f32, count: usize) {
            // SAFETY: the mask leaves out what the caller has no room for.
            unsafe { _mm512_mask_storeu_ps(into, mask(count), self.0) };
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: as above; a bf16 is a wrapped u16, and becomes an f32 by 16 zeros.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }

        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the caller says that the machine has AVX-512.
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }

        #[inline(always)]
        unsafe fn array(self) -> [f32; LANES] {
            // SAFETY: a vector of sixteen numbers.
            unsafe { std::mem::transmute(self) }
        }
    }
}
