//! NF4, the four bits of QLoRA, as bitsandbytes lays them out.
//!
//! The numbers of a matrix, row after row, are cut into blocks of 64; a block may span rows. A number is its block's
//! scale, the largest magnitude in it, times one of 16 values. With double quantisation the scales are 8 bits each, see
//! [`Scales::Double`].

mod decode;
mod mean;
mod scales;

pub use scales::Scales;

use crate::blocks::Decode;
use crate::{Error, Result};
use decode::{BOOK, VALUES};
use lowrank_ops::simd::Level;
use rayon::prelude::*;

/// Numbers that share a scale.
const BLOCK: usize = 64;

/// Where one code ends and the next begins, of the numbers divided by their scale. The boundary itself belongs to the
/// lower code.
const BOUNDARIES: [f32; VALUES - 1] = {
    let mut boundaries = [0.0; VALUES - 1];
    let mut i = 0;
    while i < VALUES - 1 {
        boundaries[i] = f32::midpoint(BOOK[i], BOOK[i + 1]);
        i += 1;
    }
    boundaries
};

/// The least that a block's numbers are divided by.
const SMALLEST: f32 = 1e-38;

/// How many blocks a thread should at least quantise.
const GRAIN: usize = 128;

/// Numbers in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// How many numbers there are.
    pub numbers: usize,
    /// Their codes, two a byte, the first in the high bits. An odd one out leaves the code of 0 in the low bits.
    pub codes: Vec<u8>,
    /// The scale of every 64 numbers.
    pub scales: Scales,
}

impl Nf4 {
    /// The 16 values, from code 0 on.
    pub const VALUES: [f32; VALUES] = BOOK;

    /// Quantises numbers, their scales too if `double`.
    ///
    /// Equal to bitsandbytes 0.50 on the CPU, bit for bit.
    ///
    /// # Errors
    /// If a number, or the sum of the scales that are to be quantised, is a NaN or an infinity.
    pub fn quantise(numbers: &[f32], double: bool) -> Result<Self> {
        let mut codes = vec![0; numbers.len().div_ceil(2)];
        let mut scales = vec![0.0; numbers.len().div_ceil(BLOCK)];
        codes
            .par_chunks_mut(BLOCK / 2)
            .zip(numbers.par_chunks(BLOCK))
            .zip(&mut scales)
            .with_min_len(GRAIN)
            .try_for_each(|((codes, numbers), scale)| {
                *scale = quantise_block(numbers, codes).ok_or(Error::NotFinite)?;
                Ok::<_, Error>(())
            })?;
        Ok(Self {
            numbers: numbers.len(),
            codes,
            scales: if double {
                Scales::double(&scales).ok_or(Error::NotFinite)?
            } else {
                Scales::Single(scales)
            },
        })
    }

    /// Whether the scales are quantised too.
    #[must_use]
    pub const fn is_double(&self) -> bool {
        matches!(self.scales, Scales::Double { .. })
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    /// The numbers from the `first` on, as many as `into` takes.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn dequantise(&self, first: usize, into: &mut [f32]) {
        self.dequantise_at(Level::used(), first, into);
    }

    /// The same with the instructions of `level`, which the machine must have; the bits do not depend on it.
    ///
    /// # Panics
    /// If there are not as many numbers, or the machine lacks the level.
    pub fn dequantise_at(&self, level: Level, first: usize, into: &mut [f32]) {
        assert!(
            level <= Level::of_machine(),
            "this machine lacks {level:?} instructions"
        );
        assert!(
            self.numbers.checked_sub(first) >= Some(into.len()),
            "numbers {first}..{} of {}",
            first + into.len(),
            self.numbers
        );
        // Up to the first whole block, whole blocks, and what is left.
        let head = first.next_multiple_of(BLOCK) - first;
        let (head, rest) = into.split_at_mut(head.min(into.len()));
        self.part(first, head);
        let first = first + head.len();
        let (whole, tail) = rest.split_at_mut(rest.len() / BLOCK * BLOCK);
        let mut scales = [0.0; 32];
        for (i, into) in whole.chunks_mut(scales.len() * BLOCK).enumerate() {
            let block = first / BLOCK + i * scales.len();
            let scales = &mut scales[..into.len() / BLOCK];
            self.scales.read(block, scales);
            let from = block * (BLOCK / 2);
            decode::blocks(level, &self.codes[from..], scales, into);
        }
        self.part(first + whole.len(), tail);
    }

    /// Numbers of one block.
    fn part(&self, first: usize, into: &mut [f32]) {
        if into.is_empty() {
            return;
        }
        let mut scale = [0.0];
        self.scales.read(first / BLOCK, &mut scale);
        for (at, into) in (first..).zip(into) {
            let byte = self.codes[at / 2];
            let code = if at % 2 == 0 { byte >> 4 } else { byte & 15 };
            *into = BOOK[usize::from(code)] * scale[0];
        }
    }

    /// Refuses codes or scales that are too few or too many.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: &str, got: usize, expected: usize| {
            let numbers = self.numbers;
            Err(Error::Nf4 {
                what: format!("{numbers} numbers have {expected} {what}, got {got}"),
            })
        };
        let (bytes, expected) = (self.codes.len(), self.numbers.div_ceil(2));
        if bytes != expected {
            return refuse("bytes of codes", bytes, expected);
        }
        self.scales.check(self.numbers.div_ceil(BLOCK))
    }
}

impl Decode for Nf4 {
    fn decode(&self, first: usize, into: &mut [f32]) {
        self.dequantise(first, into);
    }

    /// Numbers can be decoded from anywhere on.
    fn block(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// Writes the codes of at most [`BLOCK`] numbers and returns their scale; `None` if a number is not finite.
fn quantise_block(numbers: &[f32], codes: &mut [u8]) -> Option<f32> {
    let mut finite = true;
    let mut scale = 0f32;
    for x in numbers {
        finite &= x.is_finite();
        scale = scale.max(x.abs());
    }
    if !finite {
        return None;
    }
    // What a partial block leaves free is 0, whose code is the one that fills up a last byte.
    let mut scaled = [0f32; BLOCK];
    if numbers.len() == BLOCK {
        let inverse = 1.0 / scale.max(SMALLEST);
        for (into, x) in scaled.iter_mut().zip(numbers) {
            *into = (x * inverse).clamp(-1.0, 1.0);
        }
    } else {
        // bitsandbytes divides where the block is partial, and keeps the raised scale.
        scale = scale.max(SMALLEST);
        for (into, x) in scaled.iter_mut().zip(numbers) {
            *into = (x / scale).clamp(-1.0, 1.0);
        }
    }
    // As wide as the numbers, so that a comparison's mask is what is counted.
    let mut found = [0u32; BLOCK];
    for (found, scaled) in found.chunks_exact_mut(8).zip(scaled.chunks_exact(8)) {
        for boundary in BOUNDARIES {
            for (found, x) in found.iter_mut().zip(scaled) {
                *found += u32::from(boundary < *x);
            }
        }
    }
    for (code, pair) in codes.iter_mut().zip(found.chunks_exact(2)) {
        *code = (pair[0] << 4 | pair[1]) as u8;
    }
    Some(scale)
}
