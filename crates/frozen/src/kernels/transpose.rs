//! Sixteen rows of words become rows of sixteen words.
#![expect(
    unsafe_code,
    reason = "rows are read through pointers, and vector instructions are called by name"
)]

use lowrank_ops::simd::Level;

/// Sixteen pointers to rows of `halves` 16-bit numbers, of which two make a word: word w of row i becomes word i of row
/// w of `into`, whose rows lie `stride` words apart. As many rows are written as there are words in a row, rounded up to
/// sixteen; those that no word fills are zero.
///
/// # Safety
/// Every pointer leads to `halves` numbers, and `into` has all the rows that are written.
pub(super) unsafe fn transpose(
    level: Level,
    rows: &[*const u16; 16],
    halves: usize,
    into: *mut u32,
    stride: usize,
) {
    // SAFETY: the caller's; a level above AVX-512 says that the machine has it.
    unsafe {
        match level.min(Level::of_machine()) {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => avx512(rows, halves, into, stride),
            _ => portable(rows, halves, into, stride),
        }
    }
}

unsafe fn portable(rows: &[*const u16; 16], halves: usize, into: *mut u32, stride: usize) {
    let (words, written) = (halves / 2, halves.div_ceil(32) * 16);
    for (i, row) in rows.iter().enumerate() {
        // SAFETY: as the caller of `transpose` promises; words of a row may lie at any address.
        unsafe {
            for word in 0..words {
                *into.add(word * stride + i) = row.add(2 * word).cast::<u32>().read_unaligned();
            }
            for word in words..written {
                *into.add(word * stride + i) = if 2 * word < halves {
                    u32::from(*row.add(2 * word))
                } else {
                    0
                };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn avx512(rows: &[*const u16; 16], halves: usize, into: *mut u32, stride: usize) {
    use std::arch::x86_64::*;
    for first in (0..halves).step_by(32) {
        let count = (halves - first).min(32);
        let mask = if count == 32 {
            u32::MAX
        } else {
            (1u32 << count) - 1
        };
        let mut a = [_mm512_setzero_si512(); 16];
        for (a, row) in a.iter_mut().zip(rows) {
            // SAFETY: the mask keeps the load within the row.
            *a = unsafe { _mm512_maskz_loadu_epi16(mask, row.add(first).cast()) };
        }
        // Pairs of rows, then pairs of pairs, within lanes of four words.
        let mut b = a;
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..4 {
            let (low, high) = ([b[4 * i], b[4 * i + 1]], [b[4 * i + 2], b[4 * i + 3]]);
            a[4 * i] = _mm512_unpacklo_epi64(low[0], high[0]);
            a[4 * i + 1] = _mm512_unpackhi_epi64(low[0], high[0]);
            a[4 * i + 2] = _mm512_unpacklo_epi64(low[1], high[1]);
            a[4 * i + 3] = _mm512_unpackhi_epi64(low[1], high[1]);
        }
        // a[4 i + j] now holds words j, 4 + j, 8 + j, 12 + j of rows 4 i .. 4 i + 4: exchange whole lanes.
        for j in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(a[j], a[4 + j]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(a[j], a[4 + j]);
            let even_high = _mm512_shuffle_i32x4::<0x88>(a[8 + j], a[12 + j]);
            let odd_high = _mm512_shuffle_i32x4::<0xdd>(a[8 + j], a[12 + j]);
            let done = [
                (j, _mm512_shuffle_i32x4::<0x88>(even, even_high)),
                (4 + j, _mm512_shuffle_i32x4::<0x88>(odd, odd_high)),
                (8 + j, _mm512_shuffle_i32x4::<0xdd>(even, even_high)),
                (12 + j, _mm512_shuffle_i32x4::<0xdd>(odd, odd_high)),
            ];
            for (word, value) in done {
                // SAFETY: sixteen rows are written for every sixteen words that are read in part or whole.
                unsafe {
                    _mm512_storeu_si512(into.add((first / 2 + word) * stride).cast(), value);
                }
            }
        }
    }
}
