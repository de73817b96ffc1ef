//! Products with few rows, as decoding a text token by token makes them: what costs is reading the weight, so each of its
//! numbers is read once, for all rows, and widened in registers.
//!
//! An output is summed over the same lanes in the same order whatever rows stand beside it and however many threads there
//! are, so its bits depend on its own row only.
#![expect(
    unsafe_code,
    reason = "vector instructions, and numbers that are read through pointers"
)]

use crate::Encoding;
use crate::blocks::Decode;
use crate::few_rows_blocks::{Bf16, Row, STEP, Single};
#[cfg(target_arch = "x86_64")]
use crate::{
    BlockType,
    few_rows_blocks::{Q4_0, Q4_1, Q8_0},
};
use candle_core::DType;
#[cfg(target_arch = "x86_64")]
use lowrank_ops::lanes::x86::{Avx2, Avx512};
use lowrank_ops::lanes::{Lanes, Portable};
use lowrank_ops::simd::{Level, ask};
use rayon::prelude::*;

/// How many rows are few.
pub(crate) const FEW: usize = 8;

/// How many rows of the weight are read side by side.
const SIDE: usize = 4;

/// How many bytes of the weight a thread should at least read.
const GRAIN: usize = 1 << 16;

/// How the weight of a product is held.
#[derive(Clone, Copy)]
pub(crate) enum Held<'a> {
    Single(&'a [f32]),
    Encoded(Encoding, &'a dyn Decode),
}

/// What reads a range of the weight's rows.
#[derive(Clone, Copy)]
enum Reader<'a> {
    /// Straight from memory: the bytes of all rows, and a function for the level.
    Straight(&'a [u8], Range),
    /// Numbers become f32 in a scratch that the nearest cache holds.
    Scratch(&'a dyn Decode, Range),
}

/// Rows of a weight against all rows of x: (bytes of those rows, x, rows of x, into `[rows of the weight, rows of x]`).
///
/// # Safety
/// The machine has the level's instructions, and the slices are of the sizes said.
type Range = unsafe fn(&[u8], &[f32], usize, &mut [f32]);

/// y = x W^T: `x` `[rows, n_in]` with at most [`FEW`] rows, `dims` (n_out, n_in) -> `y` `[rows, n_out]`.
pub(crate) fn forward(
    level: Level,
    held: Held<'_>,
    (n_out, n_in): (usize, usize),
    x: &[f32],
    rows: usize,
    y: &mut [f32],
) {
    assert!(
        rows <= FEW && x.len() == rows * n_in && y.len() == rows * n_out,
        "the caller has checked the sizes"
    );
    if y.is_empty() {
        return;
    }
    if n_in == 0 {
        y.fill(0.0);
        return;
    }
    let reader = reader(level, held);
    let pitch = match reader {
        Reader::Straight(bytes, _) => {
            assert_eq!(bytes.len() % n_out, 0, "whole rows are held");
            bytes.len() / n_out
        }
        Reader::Scratch(numbers, _) => numbers.bytes() / n_out,
    };
    let work = |first: usize, into: &mut [f32]| {
        let count = into.len() / rows;
        match reader {
            Reader::Straight(bytes, range) => {
                let bytes = &bytes[first * pitch..][..count * pitch];
                // SAFETY: `reader` chose the function for a level that the machine has; the bytes are those of `count`
                // rows, x was checked above.
                unsafe { range(bytes, x, rows, into) };
            }
            Reader::Scratch(numbers, range) => {
                let mut scratch = vec![0f32; SIDE.min(count) * n_in];
                for (group, into) in into.chunks_mut(SIDE * rows).enumerate() {
                    let scratch = &mut scratch[..into.len() / rows * n_in];
                    numbers.decode((first + group * SIDE) * n_in, scratch);
                    // SAFETY: as above; the scratch has as many rows as `into`.
                    unsafe { range(bytes_of(scratch), x, rows, into) };
                }
            }
        }
    };
    let pieces = rayon::current_num_threads() * 8;
    let height = n_out.div_ceil(pieces).max(GRAIN.div_ceil(pitch.max(1)));
    let height = height.next_multiple_of(SIDE);
    if rows == 1 {
        for_pieces(y, height, work);
        return;
    }
    let mut columns = vec![0f32; y.len()];
    for_pieces(&mut columns, height * rows, |first, into| {
        work(first / rows, into);
    });
    for (row, y) in y.chunks_mut(n_out).enumerate() {
        for (y, column) in y.iter_mut().zip(columns.chunks(rows)) {
            *y = column[row];
        }
    }
}

/// Calls `work(start, piece)` for all pieces of a length, on this thread if there is one only.
fn for_pieces(all: &mut [f32], length: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if all.len() <= length {
        work(0, all);
        return;
    }
    all.par_chunks_mut(length)
        .enumerate()
        .for_each(|(piece, into)| work(piece * length, into));
}

/// y = y + scale (x A^T) B^T: `x` `[rows, n_in]`, `a` `[rank, n_in]`, `b` `[n_out, rank]`, `y` `[rows, n_out]`, with at
/// most [`FEW`] rows. Returns x A^T.
pub(crate) fn add_low_rank(
    level: Level,
    (x, rows): (&[f32], usize),
    (a, b): (&[f32], &[f32]),
    scale: f32,
    y: &mut [f32],
) -> Vec<f32> {
    let (n_in, n_out) = (x.len() / rows.max(1), y.len() / rows.max(1));
    let rank = a.len() / n_in.max(1);
    let mut down = vec![0f32; rows * rank];
    forward(level, Held::Single(a), (rank, n_in), x, rows, &mut down);
    if rank > 0 && n_out > 0 {
        for (h, y) in down.chunks(rank).zip(y.chunks_mut(n_out)) {
            add_up(h, b, scale, y);
        }
    }
    down
}

/// y = y + scale B h for one row: `h` `[rank]`, `b` `[n_out, rank]`. The rank is small, so it is not split over threads.
pub(crate) fn add_up(h: &[f32], b: &[f32], scale: f32, y: &mut [f32]) {
    let (h_blocks, h_rest) = h.as_chunks::<8>();
    for (y, b) in y.iter_mut().zip(b.chunks_exact(h.len())) {
        let (b_blocks, b_rest) = b.as_chunks::<8>();
        let mut lanes = [0f32; 8];
        for (h, b) in h_blocks.iter().zip(b_blocks) {
            for lane in 0..8 {
                lanes[lane] += h[lane] * b[lane];
            }
        }
        let [l0, l1, l2, l3, l4, l5, l6, l7] = lanes;
        let mut sum = ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7));
        for (h, b) in h_rest.iter().zip(b_rest) {
            sum += h * b;
        }
        *y += scale * sum;
    }
}

fn bytes_of(numbers: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialised.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

fn reader(level: Level, held: Held<'_>) -> Reader<'_> {
    // A level that the machine lacks must never be run; what later levels add is products of bf16 pairs, none of which are here.
    let level = level.min(Level::of_machine()).min(Level::Avx512);
    let (encoding, numbers) = match held {
        Held::Single(numbers) => return Reader::Straight(bytes_of(numbers), single(level)),
        Held::Encoded(encoding, numbers) => (encoding, numbers),
    };
    if let Some(bytes) = numbers.raw()
        && let Some(range) = straight(level, encoding)
    {
        return Reader::Straight(bytes, range);
    }
    Reader::Scratch(numbers, single(level))
}

fn single(level: Level) -> Range {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::<Single>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::<Single>,
        _ => portable::<Single>,
    }
}

/// For encodings that are read straight from memory at this level.
fn straight(level: Level, encoding: Encoding) -> Option<Range> {
    Some(match (level, encoding) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Encoding::Plain(DType::BF16)) => avx512::<Bf16>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Encoding::Blocks(BlockType::Q4_0)) => avx512::<Q4_0>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Encoding::Blocks(BlockType::Q4_1)) => avx512::<Q4_1>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Encoding::Blocks(BlockType::Q8_0)) => avx512::<Q8_0>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Encoding::Plain(DType::BF16)) => avx2::<Bf16>,
        (Level::Portable, Encoding::Plain(DType::BF16)) => portable::<Bf16>,
        _ => return None,
    })
}

/// # Safety
/// As [`Range`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
unsafe fn avx512<R: Row<Avx512>>(weight: &[u8], x: &[f32], rows: usize, into: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { range::<Avx512, R>(weight, x, rows, into) }
}

/// # Safety
/// As [`Range`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<R: Row<Avx2>>(weight: &[u8], x: &[f32], rows: usize, into: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { range::<Avx2, R>(weight, x, rows, into) }
}

/// # Safety
/// As [`Range`].
unsafe fn portable<R: Row<Portable>>(weight: &[u8], x: &[f32], rows: usize, into: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { range::<Portable, R>(weight, x, rows, into) }
}

/// # Safety
/// As [`Range`].
#[inline(always)]
unsafe fn range<L: Lanes, R: Row<L>>(weight: &[u8], x: &[f32], rows: usize, into: &mut [f32]) {
    let n = x.len() / rows;
    let pitch = weight.len() / (into.len() / rows);
    for (group, into) in into.chunks_mut(SIDE * rows).enumerate() {
        let weight = &weight[group * SIDE * pitch..];
        // SAFETY: a group has as many rows of the weight as `into` has outputs for every row of x.
        unsafe {
            if into.len() == SIDE * rows {
                against_all::<L, R, SIDE>(weight, pitch, x, n, into);
            } else {
                for (row, into) in into.chunks_mut(rows).enumerate() {
                    against_all::<L, R, 1>(&weight[row * pitch..], pitch, x, n, into);
                }
            }
        }
    }
}

/// # Safety
/// As [`Range`]; `weight` begins with `G` rows of `pitch` bytes, which hold `n` numbers each.
#[inline(always)]
unsafe fn against_all<L: Lanes, R: Row<L>, const G: usize>(
    weight: &[u8],
    pitch: usize,
    x: &[f32],
    n: usize,
    into: &mut [f32],
) {
    let rows = x.len() / n;
    let mut row = 0;
    // SAFETY: rows `row` and on exist in x.
    unsafe {
        while rows - row >= 4 {
            tile::<L, R, G, 4>(weight, pitch, &x[row * n..], n, &mut into[row..], rows);
            row += 4;
        }
        if rows - row >= 2 {
            tile::<L, R, G, 2>(weight, pitch, &x[row * n..], n, &mut into[row..], rows);
            row += 2;
        }
        if rows > row {
            tile::<L, R, G, 1>(weight, pitch, &x[row * n..], n, &mut into[row..], rows);
        }
    }
}

/// `G` rows of the weight against `M` rows of x; the outputs of a row of the weight are `stride` apart from the next's.
///
/// # Safety
/// The machine has the level's instructions; `weight` begins with `G` rows of `pitch` bytes, which hold `n` numbers
/// each, and `x` with `M` rows of `n`.
#[inline(always)]
unsafe fn tile<L: Lanes, R: Row<L>, const G: usize, const M: usize>(
    weight: &[u8],
    pitch: usize,
    x: &[f32],
    n: usize,
    into: &mut [f32],
    stride: usize,
) {
    debug_assert!(weight.len() >= G * pitch && x.len() >= M * n);
    let mut sums = [[L::zero(); M]; G];
    let whole = n / STEP;
    for step in 0..whole {
        for (side, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the step lies within the rows, which the caller says exist.
            unsafe {
                let from = weight.as_ptr().add(side * pitch + step * R::BYTES);
                // The same place in the rows after these: too short for the machine to foresee.
                for line in 0..R::BYTES.div_ceil(64) {
                    ask(from.wrapping_add(G * pitch + line * 64));
                }
                let [low, high] = R::read(from);
                for (row, sum) in sums.iter_mut().enumerate() {
                    let x = x.as_ptr().add(row * n + step * STEP);
                    *sum = sum.plus_product(low, L::load(x));
                    *sum = sum.plus_product(high, L::load(x.add(STEP / 2)));
                }
            }
        }
    }
    let rest = n - whole * STEP;
    if rest > 0 {
        // A row that does not end with a step is one of single numbers; zeros fill it up.
        let mut bytes = [0u8; 4 * STEP];
        let number = R::BYTES / STEP;
        for (side, sums) in sums.iter_mut().enumerate() {
            let end = &weight[side * pitch + whole * R::BYTES..][..rest * number];
            bytes[..end.len()].copy_from_slice(end);
            // SAFETY: there are bytes of a whole step, and numbers.
            unsafe {
                let [low, high] = R::read(bytes.as_ptr());
                for (row, sum) in sums.iter_mut().enumerate() {
                    let mut numbers = [0f32; STEP];
                    numbers[..rest].copy_from_slice(&x[row * n + whole * STEP..][..rest]);
                    *sum = sum.plus_product(low, L::load(numbers.as_ptr()));
                    *sum = sum.plus_product(high, L::load(numbers.as_ptr().add(STEP / 2)));
                }
            }
        }
    }
    for (side, sums) in sums.iter().enumerate() {
        for (row, sum) in sums.iter().enumerate() {
            // SAFETY: the machine has the level's instructions.
            into[side * stride + row] = unsafe { sum.total() };
        }
    }
}

#[cfg(test)]
#[path = "few_rows_tests.rs"]
mod tests;
