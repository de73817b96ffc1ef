//! Which kernel computes a tile.
#![expect(unsafe_code, reason = "kernels take pointers")]

use super::finish::{Place, finish};
use super::update::Addend;
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

/// Sums of the rows at the first pointer, as many bytes apart, over as many words, with the panel at the second pointer. A
/// kernel exists for each number of rows, in an array from one on.
pub(super) type Kernel = unsafe fn(*const u8, usize, usize, *const f32, Sums);

/// What a kernel's sums begin with and where they go, which may be the same: all are read before one is written.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// A tile of as many rows, as wide as the kernel and next to each other; null: the sums begin with zero.
    pub(super) from: *const f32,
    /// As many rows, as wide as the kernel.
    pub(super) into: *mut f32,
    /// How many numbers the rows of `into` lie apart.
    pub(super) stride: usize,
    /// Whether the sums are added to what is there.
    pub(super) added: bool,
}

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
}

/// A kernel at work on one thread.
pub(super) struct Running {
    micro: Micro,
    level: Level,
    /// Two, because one may be on its way to its destination while the other is computed.
    tiles: [Tile; 2],
    #[cfg(target_arch = "x86_64")]
    amx: Option<Amx>,
}

/// Configured tile registers, and the tile that is not yet written.
#[cfg(target_arch = "x86_64")]
struct Amx {
    tiles: micro_amx::Tiles,
    /// Which of the two tiles it is, where it goes, and whether it is added there.
    pending: Option<(usize, Place, bool)>,
}

impl Running {
    pub(super) fn new(micro: Micro, level: Level) -> Self {
        Self {
            micro,
            level,
            tiles: [Tile([0.0; 1024]), Tile([0.0; 1024])],
            #[cfg(target_arch = "x86_64")]
            amx: (micro == Micro::Amx).then(|| Amx {
                // SAFETY: the kernel is chosen only where the machine has AMX and the system allows it.
                tiles: unsafe { micro_amx::Tiles::configure() },
                pending: None,
            }),
        }
    }

    /// Sums of as many rows as the place has, with a panel, written there or added to what is there, with the addend.
    /// The last tile may only be there after [`Self::end`].
    ///
    /// # Safety
    /// `left` leads to the place's rows (AMX: to 32) of `words` words, `stride` bytes apart, and `panel` to `words` rows
    /// of [`Micro::width`] words; a word is an f32 or two bf16. The place has at most [`Micro::rows`] rows and
    /// [`Micro::width`] columns, at least one of each. For AMX `words` is a multiple of 16, and there is no addend.
    pub(super) unsafe fn tile(
        &mut self,
        (left, stride): (*const u8, usize),
        words: usize,
        panel: &[u32],
        place: Place,
        added: bool,
        addend: Option<&Addend<'_>>,
    ) {
        let width = self.micro.width();
        debug_assert!(panel.len() >= words * width, "a panel is too short");
        let panel = panel.as_ptr().cast::<f32>();
        // Of the level's element, and of f32.
        let (kernels, singles): (&[Kernel], &[Kernel]) = match self.micro {
            Micro::Portable => (&micro_portable::KERNELS, &micro_portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Micro::Avx2 => (&micro_avx2::KERNELS, &micro_avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Micro::Avx512 => (&micro_avx512::KERNELS, &micro_avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Micro::Avx512Bf16 => (&micro_avx512::PAIRS, &micro_avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Micro::Amx => {
                let amx = self.amx.as_mut().expect("configured with this kernel");
                let steps = 2 * words / micro_amx::STEP;
                let next = amx.pending.map_or(0, |(used, _, _)| 1 - used);
                let pending = amx.pending.map(|(used, place, added)| micro_amx::Pending {
                    tile: self.tiles[used].0.as_ptr(),
                    place,
                    added,
                });
                let tile = self.tiles[next].0.as_mut_ptr();
                // SAFETY: the caller's; whoever has AMX has AVX-512 too, and the pending tile is the other one.
                unsafe {
                    let left = (left, stride);
                    micro_amx::run(&amx.tiles, left, steps, panel.cast(), tile, pending);
                }
                amx.pending = Some((next, place, added));
                return;
            }
        };
        let tile = &mut self.tiles[0].0;
        place.ask();
        let here = Sums {
            from: std::ptr::null(),
            into: tile.as_mut_ptr(),
            stride: width,
            added: false,
        };
        let mut sums = if place.columns == width {
            Sums {
                into: place.first,
                stride: place.stride,
                added,
                ..here
            }
        } else {
            here
        };
        // SAFETY: the caller's; a kernel is chosen only where the machine has its instructions, and a tile has room for
        // every kernel's rows and columns, as the place has if it is as wide. An addend has as many rows and columns of
        // `rank` numbers.
        unsafe {
            if let Some(Addend { left, right, rank }) = addend {
                debug_assert!(left.len() >= place.rows * rank && right.len() >= rank * width);
                let (left, right) = (left.as_ptr().cast(), right.as_ptr());
                singles[place.rows - 1](left, 4 * rank, *rank, right, here);
                sums.from = here.into;
            }
            kernels[place.rows - 1](left, stride, words, panel, sums);
        }
        if place.columns < width {
            finish(self.level, tile, width, added, place);
        }
    }

    /// Writes what is still to be written.
    pub(super) fn end(self) {
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = &self.amx
            && let Some((used, place, added)) = amx.pending
        {
            let tile = self.tiles[used].0.as_ptr();
            let pending = micro_amx::Pending { tile, place, added };
            // SAFETY: as where the tile was computed.
            unsafe { pending.finish(0..micro_amx::ROWS) };
        }
    }
}
