//! bf16 in tile registers: two by two tiles of sums, two of the left matrix, two of the right one.
#![expect(unsafe_code, reason = "tile instructions exist as assembly only")]

use std::arch::asm;

/// Columns of a panel: two tiles.
pub(super) const WIDTH: usize = 32;

/// Rows that a tile of sums has, twice.
pub(super) const ROWS: usize = 32;

/// Numbers along the inner dimension that one instruction takes.
pub(super) const STEP: usize = 32;

/// While it lives, this thread's tiles are configured: eight of 16 rows of 64 bytes.
pub(super) struct Tiles(());

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
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles were configured on this thread, which a value without `Send` did not leave.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `tile[i][j] = sum over k of row i [k] * panel[k][j]` over `steps` times [`STEP`] numbers.
///
/// # Safety
/// `left` leads to [`ROWS`] rows of as many bf16, `stride` bytes apart; `panel` to half as many rows of [`WIDTH`] words,
/// each of which is two bf16 of a column; `tile` to [`ROWS`] rows of [`WIDTH`] numbers.
pub(super) unsafe fn run(
    _: &Tiles,
    left: *const u8,
    stride: usize,
    steps: usize,
    panel: *const u32,
    tile: *mut f32,
) {
    // SAFETY: all loads and stores are within what the caller promises; the tiles are configured. The compiler itself
    // never uses tile registers, so nothing of its own is overwritten.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {steps}, {steps}",
            "jz 3f",
            ".p2align 4",
            "2:",
            "tileloadd tmm6, [{panel} + {row}]",
            "tileloadd tmm4, [{upper} + {stride}]",
            "tileloadd tmm7, [{panel} + {row} + 64]",
            "tileloadd tmm5, [{lower} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {panel}, 2048",
            "dec {steps}",
            "jnz 2b",
            "3:",
            "tilestored [{tile} + {row}], tmm0",
            "tilestored [{tile} + {row} + 64], tmm1",
            "tilestored [{tile} + {row} + 2048], tmm2",
            "tilestored [{tile} + {row} + 2112], tmm3",
            steps = inout(reg) steps => _,
            panel = inout(reg) panel => _,
            upper = inout(reg) left => _,
            lower = inout(reg) left.wrapping_add(16 * stride) => _,
            stride = in(reg) stride,
            row = in(reg) 4 * WIDTH,
            tile = in(reg) tile,
            options(nostack),
        );
    }
}
