//! Part of a weight, arranged in the panels that a kernel reads.
//!
//! A panel is a few columns of the product's right matrix over a part of the inner dimension, row by row: f32, or words
//! of two bf16 that follow each other along the inner dimension.
#![expect(
    unsafe_code,
    reason = "rows of the weight are handed on as pointers, because some lie in the weight and some in scratch"
)]

use super::buffer::{Buffer, as_halves, as_numbers};
use super::transpose::transpose;
use super::weights::{Numbers, Weights};
use super::{Direction, Element, convert};
use half::bf16;
use lowrank_ops::leveled;
use lowrank_ops::simd::{Level, ask};
use std::ops::Range;

/// Rows that are transposed at once.
const GROUP: usize = 16;

/// How many rows ahead a part of a row is asked for: it is too short for the machine to foresee the next one.
const AHEAD: usize = 4;

/// What is packed, and how.
pub(super) struct Pack<'a> {
    pub(super) weights: Weights<'a>,
    pub(super) direction: Direction,
    pub(super) level: Level,
    pub(super) element: Element,
    /// Columns of a panel.
    pub(super) width: usize,
}

impl Pack<'_> {
    /// Panels of the columns `columns` over `inner`, one after the other, `words` apart. Columns after the last one are
    /// whatever they are; words that go beyond `inner` up to a multiple of 16 are zero.
    pub(super) fn pack(
        &self,
        inner: Range<usize>,
        columns: Range<usize>,
        rows: &mut Buffer,
        into: &mut [u32],
        words: usize,
    ) {
        match self.direction {
            Direction::Forward => self.transposed(inner, columns, rows, into, words),
            Direction::Backward => self.straight(inner, columns, rows, into, words),
        }
    }

    /// A column of the right matrix is a row of the weight.
    fn transposed(
        &self,
        inner: Range<usize>,
        columns: Range<usize>,
        rows: &mut Buffer,
        into: &mut [u32],
        words: usize,
    ) {
        let count = inner.len();
        if count == 0 {
            return;
        }
        let row_words = count.next_multiple_of(GROUP);
        let scratch = rows.words((GROUP + 1) * row_words);
        let (number, scratch) = scratch.split_at_mut(row_words);
        let number = &mut as_numbers(number)[..count];
        let halves = count * self.element.bytes() / 2;
        let depth = halves.div_ceil(2 * GROUP) * GROUP;
        let groups = columns.len().div_ceil(GROUP);
        for group in 0..groups {
            let first = columns.start + group * GROUP;
            let mut pointers = [std::ptr::null::<u16>(); GROUP];
            for i in 0..GROUP {
                // Rows beyond the last one fill columns that nobody reads.
                if first + i >= columns.end {
                    pointers[i] = pointers[i - 1];
                    continue;
                }
                let start = (first + i) * self.weights.columns + inner.start;
                pointers[i] = match (self.weights.numbers, self.element) {
                    (Numbers::F32(numbers), Element::F32) => {
                        numbers[start..start + count].as_ptr().cast()
                    }
                    (Numbers::Bf16(numbers), Element::Bf16) => {
                        numbers[start..start + count].as_ptr().cast()
                    }
                    _ => {
                        let row = &mut scratch[i * row_words..(i + 1) * row_words];
                        self.row(first + i, inner.clone(), number, row);
                        row.as_ptr().cast()
                    }
                };
            }
            let column = group * GROUP;
            let (panel, within) = (column / self.width, column % self.width);
            let into = &mut into[panel * words..][..depth * self.width];
            // SAFETY: every pointer leads to `count` numbers of the weight, or to a row of the scratch that holds as
            // many, and `depth` rows of words are there, each of `width` of which `within + 16` are at most the width.
            unsafe {
                let into = into.as_mut_ptr().add(within);
                transpose(self.level, &pointers, halves, into, self.width);
            }
        }
    }

    /// A row of the right matrix is a row of the weight.
    fn straight(
        &self,
        inner: Range<usize>,
        columns: Range<usize>,
        rows: &mut Buffer,
        into: &mut [u32],
        words: usize,
    ) {
        let row_words = columns.len().next_multiple_of(GROUP);
        let scratch = rows.words(3 * row_words);
        let (number, scratch) = scratch.split_at_mut(row_words);
        let (low, high) = scratch.split_at_mut(row_words);
        let number = &mut as_numbers(number)[..columns.len()];
        let depth = inner.len() * self.element.bytes() / 2;
        let depth = depth.div_ceil(2 * GROUP) * GROUP;
        let row_range = |row: usize| {
            let start = row * self.weights.columns;
            start + columns.start..start + columns.end
        };
        for word in 0..depth {
            match self.element {
                Element::F32 | Element::Rounded => {
                    let row = inner.start + word;
                    if row >= inner.end {
                        break;
                    }
                    let direct = match (self.weights.numbers, self.element) {
                        (Numbers::F32(numbers), Element::F32) => {
                            let numbers = &numbers[row_range(row)];
                            let next = numbers.as_ptr().wrapping_add(AHEAD * self.weights.columns);
                            for at in (0..numbers.len()).step_by(GROUP) {
                                ask(next.wrapping_add(at));
                            }
                            numbers
                        }
                        _ => {
                            self.row(row, columns.clone(), number, low);
                            &as_numbers(low)[..columns.len()]
                        }
                    };
                    let into = as_numbers(&mut into[word * self.width..]);
                    deal(self.level, direct, self.width, words, into);
                }
                Element::Bf16 => {
                    let row = inner.start + 2 * word;
                    let mut half = |row: usize, scratch: &mut [u32]| match self.weights.numbers {
                        Numbers::Bf16(_) => (),
                        _ => self.row(row, columns.clone(), number, scratch),
                    };
                    if row < inner.end {
                        half(row, low);
                    }
                    if row + 1 < inner.end {
                        half(row + 1, high);
                    }
                    let lower = self.halves(row, &inner, row_range(row), low);
                    let upper = self.halves(row + 1, &inner, row_range(row + 1), high);
                    let into = &mut into[word * self.width..];
                    let (pair, count) = ((lower, upper), columns.len());
                    interleave(self.level, pair, count, self.width, words, into);
                }
            }
        }
    }

    /// A row's bf16 where they are; none past the end.
    fn halves<'b>(
        &'b self,
        row: usize,
        inner: &Range<usize>,
        range: Range<usize>,
        scratch: &'b mut [u32],
    ) -> &'b [u16] {
        if row >= inner.end {
            return &[];
        }
        match self.weights.numbers {
            Numbers::Bf16(numbers) => bits(&numbers[range]),
            _ => &as_halves(scratch)[..range.len()],
        }
    }

    /// A piece of a row in the form of the panels' numbers, through f32 in `number`.
    fn row(&self, row: usize, piece: Range<usize>, number: &mut [f32], into: &mut [u32]) {
        match self.element {
            Element::F32 | Element::Rounded => {
                let into = &mut as_numbers(into)[..piece.len()];
                self.weights.decode(self.level, row, piece, into);
                if self.element == Element::Rounded {
                    convert::round_in_place(self.level, into);
                }
            }
            Element::Bf16 => {
                let into = &mut as_halves(into)[..piece.len()];
                if let Numbers::F32(numbers) = self.weights.numbers {
                    let start = row * self.weights.columns;
                    let numbers = &numbers[start + piece.start..start + piece.end];
                    convert::round(self.level, numbers, into);
                } else {
                    self.weights.decode(self.level, row, piece, number);
                    convert::round(self.level, number, into);
                }
            }
        }
    }
}

leveled! {
    /// Writes a row to panels of `width` that are `words` apart.
    fn deal(from: &[f32], width: usize, words: usize, into: &mut [f32]) {
        for (panel, part) in from.chunks(width).enumerate() {
            let into = &mut into[panel * words..][..part.len()];
            // As vectors: a call that copies so few numbers takes longer than they do.
            let (vectors, rest) = part.as_chunks::<GROUP>();
            let (into, into_rest) = into.as_chunks_mut::<GROUP>();
            for (into, vector) in into.iter_mut().zip(vectors) {
                *into = *vector;
            }
            into_rest.copy_from_slice(rest);
        }
    }
}

leveled! {
    /// Writes two rows of `count` numbers as words, the first in the lower half of each, to panels that are `words`
    /// apart. A row without numbers is zero.
    pub(super) fn interleave(
        pair: (&[u16], &[u16]),
        count: usize,
        width: usize,
        words: usize,
        into: &mut [u32],
    ) {
        let (lower, upper) = pair;
        for (panel, first) in (0..count).step_by(width).enumerate() {
            let into = &mut into[panel * words..][..width];
            let columns = first..count.min(first + width);
            match (lower.get(columns.clone()), upper.get(columns)) {
                (Some(lower), Some(upper)) => {
                    for ((into, lower), upper) in into.iter_mut().zip(lower).zip(upper) {
                        *into = u32::from(*lower) | u32::from(*upper) << 16;
                    }
                }
                (Some(lower), None) => {
                    for (into, lower) in into.iter_mut().zip(lower) {
                        *into = u32::from(*lower);
                    }
                }
                _ => into.fill(0),
            }
        }
    }
}

/// The bits of bf16.
fn bits(numbers: &[bf16]) -> &[u16] {
    use half::slice::HalfFloatSliceExt as _;
    numbers.reinterpret_cast()
}
