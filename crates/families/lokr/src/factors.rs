//! The two matrices: how large they are, and in what form each is held.

use candle_core::Tensor;
use lowrank_adapter::{Attach, Init, Param, Pass, Result, SiteId, Spec};

/// (first, second) with first * second = `dimension`: how PEFT divides a side of a weight.
///
/// A positive `factor` that divides the side is the first. Otherwise divisors are tried from 2 up, as long as they come no
/// further apart and are at most `factor` (-1: any), and the smaller of the last pair is the first.
#[must_use]
pub fn factorization(dimension: usize, factor: i64) -> (usize, usize) {
    let limit = match usize::try_from(factor) {
        Ok(factor) if factor > 0 && dimension.is_multiple_of(factor) => {
            return (factor, dimension / factor);
        }
        Ok(factor) => factor,
        Err(_) if factor == -1 => dimension,
        // PEFT takes any other number, which no divisor is below.
        Err(_) => 0,
    };
    let (mut first, mut second) = (1, dimension);
    while first < second {
        // Divisors come in pairs: beyond the root there is only the second of this one, which is the same pair again.
        let divisors = first + 1..=dimension.isqrt();
        let Some(next) = divisors
            .into_iter()
            .find(|next| dimension.is_multiple_of(*next))
        else {
            break;
        };
        if next + dimension / next > 1 + dimension || next > limit {
            break;
        }
        (first, second) = (next, dimension / next);
    }
    (first.min(second), first.max(second))
}

/// One of the two matrices.
#[derive(Debug)]
pub(crate) enum Factor {
    /// The matrix itself.
    Whole(Param),
    /// a b.
    Product(Param, Param),
}

/// Which tensor of a factor starts at 0, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zero {
    None,
    /// The matrix, or a.
    Left,
    /// The matrix, or b.
    Right,
}

/// How a factor is declared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// `lokr_w1` or `lokr_w2`.
    pub name: &'static str,
    pub rows: usize,
    pub columns: usize,
    /// The rank, if the matrix is a product where it is small enough.
    pub rank: Option<usize>,
}

impl Factor {
    pub fn declare(cx: &mut Attach<'_>, site: SiteId, shape: Shape, zero: Zero) -> Result<Self> {
        let Shape {
            name,
            rows,
            columns,
            rank,
        } = shape;
        let start = |is_zero: bool| {
            if is_zero {
                Init::Zeros
            } else {
                Init::KaimingUniform
            }
        };
        // r < max / 2, where PEFT divides as numbers with fractions.
        match rank.filter(|rank| rank.saturating_mul(2) < rows.max(columns)) {
            None => {
                let spec = Spec::new(name, (rows, columns)).init(start(zero != Zero::None));
                Ok(Self::Whole(cx.declare(site, spec)?))
            }
            Some(rank) => {
                let a = Spec::new(format!("{name}_a"), (rows, rank));
                let b = Spec::new(format!("{name}_b"), (rank, columns));
                Ok(Self::Product(
                    cx.declare(site, a.init(start(zero == Zero::Left)))?,
                    cx.declare(site, b.init(start(zero == Zero::Right)))?,
                ))
            }
        }
    }

    /// The matrix as a pass uses it, formed.
    pub fn matrix(&self, pass: &Pass) -> Result<Tensor> {
        Ok(match self {
            Self::Whole(whole) => whole.get(pass),
            Self::Product(a, b) => lowrank_ops::linear(&a.get(pass), &b.get(pass).t()?, None)?,
        })
    }

    /// (left, right) whose product is the matrix, without a graph, the inner dimension being as small as the shapes make it.
    pub fn parts(&self) -> Result<(Tensor, Tensor)> {
        let whole = match self {
            Self::Whole(whole) => whole.value(),
            Self::Product(a, b) => {
                let (rank, columns) = b.value().dims2()?;
                if rank < columns.min(a.shape().dims()[0]) {
                    return Ok((a.value(), b.value()));
                }
                a.value().matmul(&b.value())?
            }
        };
        let (rows, columns) = whole.dims2()?;
        let eye = |n| Tensor::eye(n, whole.dtype(), whole.device());
        Ok(if rows <= columns {
            (eye(rows)?, whole)
        } else {
            let eye = eye(columns)?;
            (whole, eye)
        })
    }
}

/// kron(a, b): `[l, m]` and `[k, n]` -> `[l k, m n]`.
pub(crate) fn kron(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((l, m), (k, n)) = (a.dims2()?, b.dims2()?);
    let (a, b) = (a.reshape((l, 1, m, 1))?, b.reshape((1, k, 1, n))?);
    Ok(a.broadcast_mul(&b)?.reshape((l * k, m * n))?)
}
