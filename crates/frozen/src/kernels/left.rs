//! The left matrix of a product, as kernels read it.
#![expect(unsafe_code, reason = "numbers are read as bytes")]

use super::buffer::{Buffer, as_halves, as_numbers};
use super::drive::Plan;
use super::update::PIECES;
use super::{Element, Update, convert};
use rayon::prelude::*;
use std::ops::Range;

/// The left matrix of a part of the inner dimension, as the kernel reads it.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) stride: usize,
    /// Where the part begins within the inner dimension.
    pub(super) start: usize,
    /// Bytes that the update takes, after the numbers of the first run of [`Plan::depth`].
    pub(super) update: usize,
}

impl<'a> Left<'a> {
    /// Rows of f32 where they lie.
    pub(super) fn direct(x: &'a [f32], columns: usize) -> Self {
        Self {
            bytes: as_bytes(x),
            stride: 4 * columns,
            start: 0,
            update: 0,
        }
    }
}

impl Plan<'_> {
    /// The left matrix rounded to bf16, with the update's pieces after the first run if the kernel extends it.
    pub(super) fn convert<'b>(
        &self,
        x: &[f32],
        rows: usize,
        inner: Range<usize>,
        update: Option<(&[f32], Update<'_, f32>)>,
        buffer: &'b mut Buffer,
    ) -> Left<'b> {
        let level = self.operand.level;
        let size = self.element.bytes();
        let rank = update.map_or(0, |(_, update)| update.h.dims().1);
        let extension = if self.micro.extends() {
            (PIECES.len() * rank).next_multiple_of(32)
        } else {
            0
        };
        let first = inner.len().min(self.depth);
        let padded = first.next_multiple_of(32);
        let numbers = padded + extension + (inner.len() - first).next_multiple_of(32);
        // An odd number of cache lines: rows of an even one would compete for the same places of the cache.
        let lines = (numbers * size).div_ceil(64) | 1;
        let height = rows.next_multiple_of(self.micro.rows());
        let words = buffer.words(height * lines * 16);
        words
            .par_chunks_mut(lines * 16)
            .enumerate()
            .with_min_len(16)
            .for_each(|(row, into)| {
                // Rows that fill up the last tile have no number at all.
                if row >= rows {
                    into.fill(0);
                    return;
                }
                let x = &x[row * self.inner..][inner.clone()];
                let (head, tail) = x.split_at(first);
                if self.element == Element::Rounded {
                    convert::round_wide(level, x, &mut as_numbers(into)[..x.len()]);
                    return;
                }
                let into = as_halves(into);
                convert::round(level, head, &mut into[..first]);
                into[first..padded + extension].fill(0);
                if let (Some((h, _)), true) = (update, extension > 0) {
                    for (column, h) in h[row * rank..(row + 1) * rank].iter().enumerate() {
                        let pieces = convert::pieces(*h);
                        for (i, (piece, _)) in PIECES.iter().enumerate() {
                            into[padded + i * rank + column] = pieces[*piece];
                        }
                    }
                }
                let into = &mut into[padded + extension..];
                convert::round(level, tail, &mut into[..tail.len()]);
                into[tail.len()..].fill(0);
            });
        Left {
            bytes: as_bytes(words),
            stride: lines * 64,
            start: inner.start,
            update: extension * size,
        }
    }
}

/// The bytes of words or numbers.
fn as_bytes<T: Copy>(words: &[T]) -> &[u8] {
    const { assert!(size_of::<T>() == 4, "f32 and u32 have no padding") };
    // SAFETY: the types that this is called with are four bytes without padding.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}
