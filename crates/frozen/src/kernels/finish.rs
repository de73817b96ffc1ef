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

impl Place {
    /// Asks for the memory ahead of time: it is there when the tile has been computed.
    #[inline]
    pub(super) fn ask(&self) {
        #[cfg(target_arch = "x86_64")]
        for row in 0..self.rows {
            let row = self.first.wrapping_add(row * self.stride);
            for column in (0..self.columns).step_by(16).chain([self.columns - 1]) {
                let address = row.wrapping_add(column).cast::<i8>();
                // SAFETY: every x86-64 has the instruction, and it faults at no address.
                unsafe {
                    use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
                    _mm_prefetch::<_MM_HINT_ET0>(address);
                }
            }
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
