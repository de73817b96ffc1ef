//! bf16 in tile registers: two by two tiles of sums, two of the left matrix, two of the right one.
#![expect(unsafe_code, reason = "tile instructions exist as assembly only")]

use super::finish::Place;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Columns of a panel: two tiles.
pub(super) const WIDTH: usize = 32;

/// Rows that a tile of sums has, twice.
pub(super) const ROWS: usize = 32;

/// Numbers along the inner dimension that one instruction takes.
pub(super) const STEP: usize = 32;

/// While it lives, this thread's tiles are configured: eight of 16 rows of 64 bytes. The pointer keeps it on its thread.
pub(super) struct Tiles(PhantomData<*const ()>);

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// # Safety
    /// The machine has AMX, and the system lets this process use it.
    pub(super) unsafe fn configure() -> Self {
        let mut configuration = Configuration {
            palette: 1,
            start: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(16);
        // SAFETY: the instruction reads the 64 bytes; the caller promises that there is such an instruction.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles were configured on this thread, which a value that is not `Send` did not leave.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A tile of sums on its way to its destination.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub(super) tile: *const f32,
    pub(super) place: Place,
    /// True if the sums are added to what the destination holds.
    pub(super) added: bool,
}

impl Pending {
    /// Writes some of the rows.
    ///
    /// # Safety
    /// The machine has AVX-512 F; the tile has [`ROWS`] rows of [`WIDTH`] numbers; the place is as it promised.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn finish(&self, rows: Range<usize>) {
        let columns = self.place.columns;
        let masks = [
            (1u32 << columns.min(16)) - 1,
            (1u32 << columns.saturating_sub(16)) - 1,
        ];
        for row in rows.start..rows.end.min(self.place.rows) {
            for (half, mask) in masks.into_iter().enumerate() {
                // SAFETY: the mask keeps loads and stores within the columns of the place.
                unsafe {
                    let mut sums = _mm512_loadu_ps(self.tile.add(row * WIDTH + 16 * half));
                    let into = self
                        .place
                        .first
                        .wrapping_add(row * self.place.stride + 16 * half);
                    if self.added {
                        let before = _mm512_maskz_loadu_ps(mask as __mmask16, into);
                        sums = _mm512_add_ps(sums, before);
                    }
                    _mm512_mask_storeu_ps(into, mask as __mmask16, sums);
                }
            }
        }
    }
}

/// `tile[i][j] = sum over k of row i [k] * panel[k][j]` over `steps` times [`STEP`] numbers. Meanwhile the tile before
/// is written to its destination: tile products leave the rest of the core idle.
///
/// # Safety
/// The machine has AMX and AVX-512. `left` leads to [`ROWS`] rows of as many bf16, `stride` bytes apart; `panel` to half
/// as many rows of [`WIDTH`] words, each of which is two bf16 of a column; `tile` to [`ROWS`] rows of [`WIDTH`] numbers,
/// other ones than the pending tile's.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn run(
    _: &Tiles,
    (left, stride): (*const u8, usize),
    steps: usize,
    panel: *const u32,
    tile: *mut f32,
    pending: Option<Pending>,
) {
    let rows = ROWS.div_ceil(steps.max(1));
    let mut done = 0;
    // SAFETY: all loads and stores are within what the caller promises; the tiles are configured. The compiler itself
    // never uses tile registers, so what one block leaves there is what the next one finds.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem),
        );
        for step in 0..steps {
            asm!(
                "tileloadd tmm6, [{panel} + {row}]",
                "tileloadd tmm4, [{upper} + {stride}]",
                "tileloadd tmm7, [{panel} + {row} + 64]",
                "tileloadd tmm5, [{lower} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                panel = in(reg) panel.add(step * STEP / 2 * WIDTH),
                upper = in(reg) left.add(2 * STEP * step),
                lower = in(reg) left.wrapping_add(16 * stride + 2 * STEP * step),
                stride = in(reg) stride,
                row = in(reg) 4 * WIDTH,
                options(nostack, readonly),
            );
            if let Some(pending) = &pending {
                pending.finish(done..done + rows);
            }
            done += rows;
        }
        asm!(
            "tilestored [{tile} + {row}], tmm0",
            "tilestored [{tile} + {row} + 64], tmm1",
            "tilestored [{tile} + {row} + 2048], tmm2",
            "tilestored [{tile} + {row} + 2112], tmm3",
            row = in(reg) 4 * WIDTH,
            tile = in(reg) tile,
            options(nostack),
        );
        if let Some(pending) = &pending {
            pending.finish(done.min(ROWS)..ROWS);
        }
    }
}
