//! Scratch that a thread keeps from one product to the next.
#![expect(unsafe_code, reason = "whole cache lines are lent as numbers")]

use std::cell::Cell;

/// As many numbers as a cache line holds. Aligned, because a load that crosses lines costs twice.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; Line::WORDS]);

impl Line {
    const WORDS: usize = 16;
}

/// Words that start at a cache line. What they hold at first is whatever the last user left.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// The first `count` words.
    pub(super) fn words(&mut self, count: usize) -> &mut [u32] {
        let lines = count.div_ceil(Line::WORDS);
        if self.0.len() < lines {
            // The old numbers need not survive, so they are not copied.
            self.0 = vec![Line([0; Line::WORDS]); lines];
        }
        // SAFETY: a line is an array of words without padding, and there are enough lines for `count` of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), count) }
    }

    /// The first `count` numbers.
    pub(super) fn numbers(&mut self, count: usize) -> &mut [f32] {
        as_numbers(self.words(count))
    }
}

/// Words read as f32.
pub(super) fn as_numbers(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: both types have the same size and alignment, and every pattern of bits is a value of both.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// Words read as pairs of 16 bits.
pub(super) fn as_halves(words: &mut [u32]) -> &mut [u16] {
    // SAFETY: a word is two halves, whose alignment is smaller, and every pattern of bits is a value of both.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) }
}

/// What a thread needs for its part of a product.
#[derive(Default)]
pub(super) struct Part {
    /// Panels of the weight.
    pub(super) panels: Buffer,
    /// Rows of the weight before they are arranged in panels.
    pub(super) rows: Buffer,
    /// The right factor of the update.
    pub(super) update: Buffer,
}

/// What the calling thread needs for all parts of a product.
#[derive(Default)]
pub(super) struct Whole {
    /// The left matrix in the form that the kernel reads.
    pub(super) left: Buffer,
    /// The left factor of the update.
    pub(super) update: Buffer,
}

thread_local! {
    static PART: Cell<Part> = Cell::default();
    static WHOLE: Cell<Whole> = Cell::default();
}

/// Lends this thread's scratch. A thread that waits for others may be given another product meanwhile: that one finds
/// empty scratch and makes its own.
pub(super) fn with_part<R>(work: impl FnOnce(&mut Part) -> R) -> R {
    let mut part = PART.take();
    let result = work(&mut part);
    PART.set(part);
    result
}

/// As [`with_part`].
pub(super) fn with_whole<R>(work: impl FnOnce(&mut Whole) -> R) -> R {
    let mut whole = WHOLE.take();
    let result = work(&mut whole);
    WHOLE.set(whole);
    result
}
