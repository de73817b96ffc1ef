//! A product: checked, split into parts for the threads, and computed part by part.
#![expect(
    unsafe_code,
    reason = "threads write disjoint columns of one destination"
)]

use super::buffer::{Part, Whole, with_part, with_whole};
use super::finish::Place;
use super::left::Left;
use super::micro::{Micro, Running};
use super::pack::Pack;
use super::update::{Addend, spread};
use super::{Compute, Direction, Element, Update, Weights};
use crate::Result;
use lowrank_ops as ops;
use lowrank_ops::gemm::Before;
use lowrank_ops::simd::Level;
use rayon::prelude::*;
use std::ops::Range;

/// At most so many rows share the panels that a thread has packed. Packing takes as long as some fifty to a hundred rows.
const ROWS: usize = 2048;

/// Bytes of a row that a kernel runs through before the next tile: a tile's rows stay in the first cache.
const DEPTH: usize = 1536;

/// As above, of f32: there are fewer rows in a tile, and a panel's row is used for longer.
const DEPTH_WIDE: usize = 3072;

/// Bytes of the panels that a thread holds, a part of its second cache: six of f32 as deep as they get with AVX-512.
const PANELS: usize = 7 << 17;

/// Bytes of the left matrix that are converted at once.
const LEFT: usize = 1 << 23;

/// How many panels a part should at most have: more read the left matrix less often.
const PART: usize = 8;

/// A weight and how a product with it is computed.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) direction: Direction,
    pub(crate) compute: Compute,
    pub(crate) level: Level,
}

impl Operand<'_> {
    /// (numbers of a row of the left matrix, columns of the product).
    const fn dims(&self) -> (usize, usize) {
        match self.direction {
            Direction::Forward => (self.weights.columns, self.weights.rows),
            Direction::Backward => (self.weights.rows, self.weights.columns),
        }
    }
}

/// into = x W^T + h v, or x W + h v, added to what `into` holds or in its place.
///
/// # Errors
/// If the shapes do not fit.
pub(crate) fn product(
    operand: Operand<'_>,
    x: &[f32],
    rows: usize,
    update: Option<Update<'_, f32>>,
    before: Before,
    into: &mut [f32],
) -> Result<()> {
    let (inner, width) = operand.dims();
    check("x", x.len(), rows, inner)?;
    check("the destination", into.len(), rows, width)?;
    if let Some(Update { h, v }) = update {
        let ((h_rows, rank), (v_rank, v_columns)) = (h.dims(), v.dims());
        if h_rows != rows || v_columns != width || rank != v_rank {
            return Err(ops::Error::Shape {
                op: "FrozenLinear",
                what: "the update",
                got: vec![h_rows, rank, v_rank, v_columns],
                expected: format!("[{rows}, r] and [r, {width}]"),
            }
            .into());
        }
    }
    if rows == 0 || width == 0 {
        return Ok(());
    }
    // Packing pays from some ten rows on: kernels for fewer, which read the weight once as it lies, belong here.
    with_whole(|whole| {
        let plan = Plan::new(operand, rows);
        for first in (0..rows).step_by(plan.rows) {
            let range = first..rows.min(first + plan.rows);
            let block = &x[range.start * inner..range.end * inner];
            let into = &mut into[range.start * width..range.end * width];
            plan.rows_of(block, range, update, before, into, whole);
        }
    });
    Ok(())
}

fn check(what: &'static str, got: usize, rows: usize, columns: usize) -> Result<()> {
    if rows.checked_mul(columns) == Some(got) {
        return Ok(());
    }
    Err(ops::Error::Shape {
        op: "FrozenLinear",
        what,
        got: vec![got],
        expected: format!("{rows} * {columns} numbers"),
    }
    .into())
}

/// How a product is divided. Nothing here that touches the order of sums depends on the number of threads.
pub(super) struct Plan<'a> {
    pub(super) operand: Operand<'a>,
    pub(super) micro: Micro,
    pub(super) element: Element,
    pub(super) inner: usize,
    pub(super) width: usize,
    /// Rows that share packed panels.
    pub(super) rows: usize,
    /// Numbers along the inner dimension that a kernel runs through.
    pub(super) depth: usize,
    /// Columns that a panel's borders must be multiples of.
    pub(super) step: usize,
}

/// What all threads share while they compute parts.
struct Shared<'a> {
    left: Left<'a>,
    inner: Range<usize>,
    rows: usize,
    /// The rows of h from the first of these rows on, and its rank; none if it was added already.
    update: Option<(&'a [f32], Update<'a, f32>)>,
    /// True if the destination holds what is to be kept.
    added: bool,
    into: Destination,
}

/// The first number of a row-major matrix that threads write to.
#[derive(Clone, Copy)]
struct Destination(*mut f32);

// SAFETY: threads write to columns and rows that only they were given.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl<'a> Plan<'a> {
    fn new(operand: Operand<'a>, rows: usize) -> Self {
        let micro = Micro::new(operand.level, operand.compute);
        let element = micro.element(operand.compute);
        let (inner, width) = operand.dims();
        let block = operand.weights.block();
        // Along the rows of the weight, blocks must not be split: along the inner dimension of x W^T, across it of G W.
        let (align, step) = match operand.direction {
            Direction::Forward => (block.max(32).next_multiple_of(32), micro.width()),
            Direction::Backward => (32, least_common_multiple(micro.width(), block)),
        };
        let deepest = match element {
            Element::Bf16 => DEPTH / 2,
            Element::F32 | Element::Rounded => DEPTH_WIDE / 4,
        };
        let depth = even(inner, deepest).next_multiple_of(align);
        Self {
            operand,
            micro,
            element,
            inner,
            width,
            rows: even(rows, ROWS).next_multiple_of(micro.rows()),
            depth,
            step,
        }
    }

    /// The product of some rows.
    fn rows_of(
        &self,
        x: &[f32],
        range: Range<usize>,
        update: Option<Update<'_, f32>>,
        before: Before,
        into: &mut [f32],
        whole: &mut Whole,
    ) {
        let rows = range.len();
        let h = update.map(|Update { h, v }| {
            let (_, rank) = h.dims();
            let numbers = whole.update.numbers(rows * rank);
            for (row, numbers) in range.clone().zip(numbers.chunks_exact_mut(rank.max(1))) {
                h.read(row, 0, numbers);
            }
            (&*numbers, Update { h, v })
        });
        let converted = self.element != Element::F32;
        let at_once = if converted {
            let row_bytes = self.depth * self.element.bytes();
            (LEFT / (rows * row_bytes)).max(1) * self.depth
        } else {
            self.inner.max(1)
        };
        let destination = Destination(into.as_mut_ptr());
        for start in (0..self.inner.max(1)).step_by(at_once) {
            let inner = start..self.inner.min(start + at_once);
            let update = h.filter(|_| start == 0);
            let left = if converted {
                self.convert(x, rows, inner.clone(), update, &mut whole.left)
            } else {
                Left::direct(x, self.inner)
            };
            self.threads(&Shared {
                left,
                inner,
                rows,
                update,
                added: start > 0 || before == Before::Added,
                into: destination,
            });
        }
    }

    /// Divides the columns, or columns and rows where that costs less, among the threads.
    fn threads(&self, shared: &Shared<'_>) {
        let threads = rayon::current_num_threads();
        let steps = self.width.div_ceil(self.step);
        let panels_of_step = self.step / self.micro.width();
        let panel_bytes = self.depth * self.element.bytes() * self.micro.width();
        let most = (PANELS / panel_bytes / panels_of_step).clamp(1, PART);
        let tiles = shared.rows.div_ceil(self.micro.rows());
        // Divided by columns, every part reads all rows; divided by rows too, every thread packs all panels. The rows are
        // divided where that costs less, and where threads would get different numbers of few panels.
        let fewest = steps.div_ceil(most);
        let parts = (steps.div_ceil(most * threads) * threads).min(steps);
        let uneven = steps < 4 * threads && !steps.is_multiple_of(threads);
        let reading = (parts - fewest) * shared.rows > (threads - 1) * self.width;
        let (columns, rows) = if (uneven || reading) && tiles >= 2 * threads {
            (fewest, threads)
        } else {
            (parts, 1)
        };
        (0..columns * rows)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|part| {
                let (column, row) = (part / rows, part % rows);
                let piece = |count: usize, of: usize, i: usize| count * i / of;
                let first = piece(steps, columns, column) * self.step;
                let last = piece(steps, columns, column + 1) * self.step;
                let height = self.micro.rows();
                let upper = piece(tiles, rows, row) * height;
                let lower = piece(tiles, rows, row + 1) * height;
                with_part(|scratch| {
                    self.part(
                        shared,
                        upper..lower.min(shared.rows),
                        first..last.min(self.width),
                        scratch,
                    );
                });
            });
    }

    /// Some rows and columns of the product. Only this call writes to them.
    fn part(
        &self,
        shared: &Shared<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &mut Part,
    ) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let (width, size) = (self.micro.width(), self.element.bytes());
        let panels = columns.len().div_ceil(width);
        let pack = Pack {
            weights: self.operand.weights,
            direction: self.operand.direction,
            level: self.operand.level,
            element: self.element,
            width,
        };
        let mut running = Running::new(self.micro, self.operand.level);
        let mut start = shared.inner.start;
        loop {
            let inner = start..shared.inner.end.min(start + self.depth);
            let first = start == shared.inner.start;
            // Words of two bf16 are packed in sixteens, which the kernel relies on; f32 only as many as there are.
            let packed = (inner.len() * size).div_ceil(64) * 16;
            let extension = if first { shared.left.update / 4 } else { 0 };
            let words = (packed + extension) * width;
            let into = scratch.panels.words(panels * words);
            pack.pack(
                inner.clone(),
                columns.clone(),
                &mut scratch.rows,
                into,
                words,
            );
            let mut rank = 0;
            let mut right: &[f32] = &[];
            if let (Some((_, update)), true) = (shared.update, first) {
                rank = update.h.dims().1;
                if extension > 0 {
                    let place = (packed * width, words);
                    self.extend(update, columns.clone(), &mut scratch.rows, into, place);
                } else {
                    let numbers = scratch.update.numbers(panels * rank * width);
                    spread(update, columns.clone(), width, numbers);
                    right = numbers;
                }
            }
            let into = &*into;
            let depth = match self.element {
                Element::F32 | Element::Rounded => inner.len(),
                Element::Bf16 => packed + extension,
            };
            let skipped = if first { 0 } else { shared.left.update };
            let offset = (start - shared.left.start) * size + skipped;
            for row in rows.clone().step_by(self.micro.rows()) {
                let count = (rows.end - row).min(self.micro.rows());
                let left = &shared.left.bytes[row * shared.left.stride + offset..];
                for panel in 0..panels {
                    let column = columns.start + panel * width;
                    let wide = (columns.end - column).min(width);
                    let addend = (rank > 0 && extension == 0).then(|| {
                        let (h, _) = shared.update.expect("its rank was just read");
                        Addend {
                            left: &h[row * rank..(row + count) * rank],
                            right: &right[panel * rank * width..(panel + 1) * rank * width],
                            rank,
                        }
                    });
                    let added = shared.added || !first;
                    let panel = &into[panel * words..(panel + 1) * words];
                    // SAFETY: the destination has these rows and columns, and nobody else was given them. The left
                    // matrix has `count` rows of the depth from here on, for AMX a multiple of 32 rows and of 64 bytes;
                    // a panel has as many words per column as were packed.
                    unsafe {
                        let first = shared.into.0.add(row * self.width + column);
                        let place = Place::new(first, self.width, count, wide);
                        let left = (left.as_ptr(), shared.left.stride);
                        running.tile(left, depth, panel, place, added, addend.as_ref());
                    }
                }
            }
            start += self.depth;
            if start >= shared.inner.end {
                break;
            }
        }
        running.end();
    }
}

/// The size of parts of a whole that are as even as possible and none larger than `most`; 1 of nothing.
fn even(whole: usize, most: usize) -> usize {
    whole.div_ceil(whole.div_ceil(most).max(1)).max(1)
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
