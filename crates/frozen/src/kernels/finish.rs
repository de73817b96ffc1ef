//! What happens to a tile of sums on its way to the destination.
#![expect(unsafe_code, reason = "a part of rows and columns is no slice")]

use lowrank_ops::leveled;

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
    /// Writes a tile, `width` numbers a row, or adds it to what is there.
    pub(super) fn finish(tile: &[f32], width: usize, added: bool, place: Place) {
        for (row, tile) in tile.chunks_exact(width).take(place.rows).enumerate() {
            // SAFETY: promised where the place was made.
            let into = unsafe {
                std::slice::from_raw_parts_mut(place.first.add(row * place.stride), place.columns)
            };
            if added {
                for (into, sum) in into.iter_mut().zip(tile) {
                    *into += *sum;
                }
            } else {
                into.copy_from_slice(&tile[..place.columns]);
            }
        }
    }
}
