//! What happens to a tile of sums on its way to the destination: what was there before is added, and the update.
#![expect(unsafe_code, reason = "a part of rows and columns is no slice")]

use lowrank_ops::leveled;

/// Numbers that are handled at once.
const LANES: usize = 16;

/// A low-rank update of the columns of a panel.
pub(super) struct Addend<'a> {
    /// `[rows, rank]`, from the tile's first row on.
    pub(super) left: &'a [f32],
    /// `[rank, width of a panel]`.
    pub(super) right: &'a [f32],
    pub(super) rank: usize,
}

/// Some rows and columns of a row-major matrix that nobody else writes to.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: *mut f32,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Place {
    /// # Safety
    /// The matrix outlives the value, its rows lie `stride` numbers apart and there are as many rows and columns from
    /// `first` on, which nobody else reads or writes meanwhile.
    pub(super) unsafe fn new(first: *mut f32, stride: usize, rows: usize, columns: usize) -> Self {
        Self {
            first,
            stride,
            rows,
            columns,
        }
    }
}

leveled! {
    /// Writes a tile, `width` numbers a row.
    pub(super) fn finish(
        tile: &[f32],
        width: usize,
        added: bool,
        addend: Option<&Addend<'_>>,
        place: Place,
    ) {
        for (row, tile) in tile.chunks_exact(width).take(place.rows).enumerate() {
            // SAFETY: promised where the place was made.
            let into = unsafe {
                std::slice::from_raw_parts_mut(place.first.add(row * place.stride), place.columns)
            };
            let update = match addend {
                Some(addend) => (&addend.left[row * addend.rank..][..addend.rank], addend.right),
                None => (&[][..], &[][..]),
            };
            let (whole, rest) = into.as_chunks_mut::<LANES>();
            for (chunk, into) in whole.iter_mut().enumerate() {
                let mut sums = [0f32; LANES];
                sums.copy_from_slice(&tile[chunk * LANES..(chunk + 1) * LANES]);
                if added {
                    for (sum, before) in sums.iter_mut().zip(&*into) {
                        *sum += *before;
                    }
                }
                for (left, right) in update.0.iter().zip(update.1.chunks_exact(width)) {
                    let right = &right[chunk * LANES..(chunk + 1) * LANES];
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = multiplied_and_added::<FUSED>(*left, *right, *sum);
                    }
                }
                *into = sums;
            }
            let first = whole.len() * LANES;
            for (column, into) in rest.iter_mut().enumerate() {
                let column = first + column;
                let mut sum = tile[column];
                if added {
                    sum += *into;
                }
                for (left, right) in update.0.iter().zip(update.1.chunks_exact(width)) {
                    sum = multiplied_and_added::<FUSED>(*left, right[column], sum);
                }
                *into = sum;
            }
        }
    }
}

#[inline(always)]
fn multiplied_and_added<const FUSED: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if FUSED {
        a.mul_add(b, sum)
    } else {
        a * b + sum
    }
}
