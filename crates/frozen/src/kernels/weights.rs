//! A weight as the kernels see it: rows in some encoding, handed out piece by piece.

use super::convert;
use crate::blocks::Decode;
use half::bf16;
use lowrank_ops::simd::Level;
use std::ops::Range;

/// The numbers of a row-major matrix.
#[derive(Clone, Copy)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    /// Whatever has to be decoded.
    Coded(&'a dyn Decode),
}

/// A row-major matrix `[rows, columns]`.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(super) numbers: Numbers<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a> Weights<'a> {
    /// The caller has as many numbers as the dimensions say.
    pub(crate) const fn new(numbers: Numbers<'a>, (rows, columns): (usize, usize)) -> Self {
        Self {
            numbers,
            rows,
            columns,
        }
    }

    /// How many numbers of a row are encoded together: pieces of rows must start and end at multiples of it.
    pub(super) fn block(&self) -> usize {
        match self.numbers {
            Numbers::F32(_) | Numbers::Bf16(_) => 1,
            Numbers::Coded(coded) => coded.block(),
        }
    }

    /// A piece of a row in f32.
    pub(super) fn decode(&self, level: Level, row: usize, columns: Range<usize>, into: &mut [f32]) {
        let first = row * self.columns + columns.start;
        let last = first + columns.len();
        match self.numbers {
            Numbers::F32(numbers) => into.copy_from_slice(&numbers[first..last]),
            Numbers::Bf16(numbers) => convert::widen(level, &numbers[first..last], into),
            Numbers::Coded(coded) => coded.decode(first, into),
        }
    }
}
