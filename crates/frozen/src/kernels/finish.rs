//! What happens to a tile of sums on its way to the destination: what was there before is added, and the update.

use lowrank_ops::simd::Level;

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

/// Writes a tile, `width` numbers a row, to the rows of the destination. Each row of `into` is as long as there are
/// columns.
pub(super) fn finish<'a>(
    level: Level,
    tile: &[f32],
    width: usize,
    added: bool,
    addend: Option<&Addend<'_>>,
    into: impl Iterator<Item = &'a mut [f32]>,
) {
    let fused = level.min(Level::of_machine()) >= Level::Avx2;
    level.run(|| {
        if fused {
            rows::<true>(tile, width, added, addend, into);
        } else {
            rows::<false>(tile, width, added, addend, into);
        }
    });
}

#[inline(always)]
fn rows<'a, const FUSED: bool>(
    tile: &[f32],
    width: usize,
    added: bool,
    addend: Option<&Addend<'_>>,
    into: impl Iterator<Item = &'a mut [f32]>,
) {
    for (row, (into, tile)) in into.zip(tile.chunks_exact(width)).enumerate() {
        let update = addend.map(|addend| {
            let left = &addend.left[row * addend.rank..(row + 1) * addend.rank];
            (left, addend.right)
        });
        let (whole, rest) = into.as_chunks_mut::<LANES>();
        let (sums, last) = tile.as_chunks::<LANES>();
        for (chunk, (into, sums)) in whole.iter_mut().zip(sums).enumerate() {
            let mut sums = *sums;
            if added {
                for (sum, before) in sums.iter_mut().zip(&*into) {
                    *sum += *before;
                }
            }
            if let Some((left, right)) = update {
                let right = right.chunks_exact(width);
                for (left, right) in left.iter().zip(right) {
                    let right = &right[chunk * LANES..(chunk + 1) * LANES];
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = if FUSED {
                            left.mul_add(*right, *sum)
                        } else {
                            left * right + *sum
                        };
                    }
                }
            }
            *into = sums;
        }
        debug_assert!(last.is_empty());
        let first = whole.len() * LANES;
        for (column, into) in rest.iter_mut().enumerate() {
            let column = first + column;
            let mut sum = tile[column];
            if added {
                sum += *into;
            }
            if let Some((left, right)) = update {
                for (left, right) in left.iter().zip(right.chunks_exact(width)) {
                    sum = if FUSED {
                        left.mul_add(right[column], sum)
                    } else {
                        left * right[column] + sum
                    };
                }
            }
            *into = sum;
        }
    }
}
