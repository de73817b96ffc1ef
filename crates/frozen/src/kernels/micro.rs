//! Which kernel computes a tile.
#![expect(unsafe_code, reason = "kernels take pointers")]

use super::{Compute, Element, micro_portable};
#[cfg(target_arch = "x86_64")]
use super::{micro_amx, micro_avx2, micro_avx512};
use lowrank_ops::simd::Level;

/// A tile of sums, as large as the largest kernel's.
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [f32; 1024]);

/// A kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Micro {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// What a thread has to hold while it runs kernels.
pub(super) enum Running {
    Nothing,
    #[cfg(target_arch = "x86_64")]
    Tiles(micro_amx::Tiles),
}

/// Sums of the rows at the first pointer, as many bytes apart, over as many words, with the panel at the second pointer,
/// written to the third. A kernel exists for each number of rows, in an array from one on.
pub(super) type Kernel = unsafe fn(*const u8, usize, usize, *const f32, *mut f32);

impl Micro {
    /// The kernel of a level, or of the machine's best if that is less.
    pub(super) fn new(level: Level, compute: Compute) -> Self {
        match (level.min(Level::of_machine()), compute) {
            #[cfg(target_arch = "x86_64")]
            (Level::Amx, Compute::Bf16) => Self::Amx,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16, Compute::Bf16) => Self::Avx512Bf16,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, _) => Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    pub(super) const fn element(self, compute: Compute) -> Element {
        match (self, compute) {
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512Bf16 | Self::Amx, _) => Element::Bf16,
            (_, Compute::F32) => Element::F32,
            (_, Compute::Bf16) => Element::Rounded,
        }
    }

    /// Rows of a tile.
    pub(super) const fn rows(self) -> usize {
        match self {
            Self::Portable => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 6,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => 8,
            #[cfg(target_arch = "x86_64")]
            Self::Amx => micro_amx::ROWS,
        }
    }

    /// Columns of a tile and of a panel.
    pub(super) const fn width(self) -> usize {
        match self {
            Self::Portable => micro_portable::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => micro_avx2::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => micro_avx512::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Self::Amx => micro_amx::WIDTH,
        }
    }

    /// True if the update is cheaper as more of the product's inner dimension than as a sum of its own.
    pub(super) const fn extends(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => true,
            _ => false,
        }
    }

    /// To be called on the thread that runs kernels.
    pub(super) fn start(self) -> Running {
        match self {
            // SAFETY: the kernel is chosen only where the machine has AMX and the system allows it.
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Running::Tiles(unsafe { micro_amx::Tiles::configure() }),
            _ => Running::Nothing,
        }
    }

    /// Sums of `count` rows with a panel.
    ///
    /// # Safety
    /// `left` leads to `count` rows (AMX: to 32) of `words` words, `stride` bytes apart, and `panel` to `words` rows of
    /// [`Self::width`] words; a word is an f32 or two bf16. `count` is at least 1 and at most [`Self::rows`]. For AMX
    /// `words` is a multiple of 16.
    pub(super) unsafe fn run(
        self,
        running: &Running,
        left: *const u8,
        stride: usize,
        count: usize,
        words: usize,
        panel: &[u32],
        tile: &mut Tile,
    ) {
        debug_assert!(panel.len() >= words * self.width(), "a panel is too short");
        let panel = panel.as_ptr().cast::<f32>();
        let tile = tile.0.as_mut_ptr();
        let kernels: &[Kernel] = match self {
            Self::Portable => &micro_portable::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &micro_avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => &micro_avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => &micro_avx512::PAIRS,
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                let Running::Tiles(tiles) = running else {
                    unreachable!("another kernel was started")
                };
                let steps = 2 * words / micro_amx::STEP;
                // SAFETY: the caller's.
                unsafe { micro_amx::run(tiles, left, stride, steps, panel.cast(), tile) };
                return;
            }
        };
        // SAFETY: the caller's; a kernel is chosen only where the machine has its instructions, and a tile has room for
        // every kernel's rows and columns.
        unsafe { kernels[count - 1](left, stride, words, panel, tile) };
    }
}
