//! The right factor of a low-rank update, beside the panels of the weight.

use super::buffer::{Buffer, as_halves, as_numbers};
use super::drive::Plan;
use super::pack::interleave;
use super::{Update, convert};
use std::ops::Range;

/// Bf16 numbers of an f32: products of these pieces make up the product of two f32 but for its last bits.
pub(super) const PIECES: [(usize, usize); 6] = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)];

/// A low-rank update of the columns of a panel.
pub(super) struct Addend<'a> {
    /// `[rows, rank]`, from the tile's first row on.
    pub(super) left: &'a [f32],
    /// `[rank, width of a panel]`.
    pub(super) right: &'a [f32],
    pub(super) rank: usize,
}

impl Plan<'_> {
    /// The pieces of v as further rows of the panels.
    pub(super) fn extend(
        &self,
        update: Update<'_, f32>,
        columns: Range<usize>,
        scratch: &mut Buffer,
        into: &mut [u32],
        (first, words): (usize, usize),
    ) {
        let width = self.micro.width();
        let (rank, count) = (update.v.dims().0, columns.len());
        let scratch = scratch.words(count + (3 * rank * count).div_ceil(2));
        let (numbers, halves) = scratch.split_at_mut(count);
        let (numbers, halves) = (as_numbers(numbers), as_halves(halves));
        let piece = rank * count;
        for row in 0..rank {
            update.v.read(row, columns.start, numbers);
            let (first, rest) = halves.split_at_mut(piece);
            let (second, third) = rest.split_at_mut(piece);
            let pieces = [first, second, third].map(|all| &mut all[row * count..][..count]);
            convert::split(self.operand.level, numbers, pieces);
        }
        let all = PIECES.len() * rank;
        let of = |row: usize| -> &[u16] {
            if row >= all {
                return &[];
            }
            let (_, piece) = PIECES[row / rank];
            &halves[(piece * rank + row % rank) * count..][..count]
        };
        for word in 0..all.next_multiple_of(32) / 2 {
            let pair = (of(2 * word), of(2 * word + 1));
            let into = &mut into[first + word * width..];
            interleave(self.operand.level, pair, count, width, words, into);
        }
    }
}

/// The rows of v, a panel's columns after the other's; missing columns are zero.
pub(super) fn spread(
    update: Update<'_, f32>,
    columns: Range<usize>,
    width: usize,
    into: &mut [f32],
) {
    let (rank, _) = update.v.dims();
    let panels = into.chunks_exact_mut((rank * width).max(1));
    for (first, panel) in columns.clone().step_by(width).zip(panels) {
        for (row, into) in panel.chunks_exact_mut(width).enumerate() {
            let count = width.min(columns.end - first);
            let (into, missing) = into.split_at_mut(count);
            update.v.read(row, first, into);
            missing.fill(0.0);
        }
    }
}
