//! Products with a weight that never changes, in f32 and in bf16.
//!
//! The weight stays row-major in its own encoding and is arranged in panels part by part while a product runs, for
//! x W^T as well as for G W, so that no second copy of it exists; what that takes stands in
//! `docs/performance.md`. The left matrix is read where it lies (f32) or rounded once per product (bf16). A
//! thread takes some of the columns, or of columns and rows where that costs less; the inner dimension is summed in one
//! order whoever does it, so that the bits do not depend on the number of threads. A tile of sums is written once,
//! together with what is added to it.

mod buffer;
mod convert;
mod drive;
mod finish;
mod left;
mod micro;
#[cfg(target_arch = "x86_64")]
mod micro_amx;
#[cfg(target_arch = "x86_64")]
mod micro_avx2;
#[cfg(target_arch = "x86_64")]
mod micro_avx512;
mod micro_portable;
mod pack;
mod transpose;
mod update;
mod weights;

#[cfg(test)]
mod tests;

pub(crate) use drive::{Operand, product};
pub(crate) use weights::{Numbers, Weights};

use lowrank_ops::Float;
use lowrank_ops::gemm::Matrix;

/// What a product with an f32 weight, or one that is held in fewer bits, is computed in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compute {
    /// Numbers and sums in f32.
    #[default]
    F32,
    /// The weight and what it is multiplied with are rounded to bf16, the nearest with ties to even; sums, outputs and
    /// the low-rank update stay in f32. Machines that multiply bf16 do so; others multiply the rounded numbers in f32.
    Bf16,
}

/// A low-rank matrix that is added to a product: h v, with h `[rows, r]` and v `[r, columns]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update<'a, T: Float> {
    pub(crate) h: Matrix<'a, T>,
    pub(crate) v: Matrix<'a, T>,
}

/// Which way a weight W `[n_out, n_in]` is used in a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// x W^T.
    Forward,
    /// G W.
    Backward,
}

/// What the numbers of a panel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F32,
    /// f32 that were rounded to bf16.
    Rounded,
    /// Pairs of bf16.
    Bf16,
}

impl Element {
    const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::Rounded => 4,
            Self::Bf16 => 2,
        }
    }
}
