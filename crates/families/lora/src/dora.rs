//! DoRA: the length of every row of the weight, trained apart from its direction.

use candle_core::{DType, Tensor};
use lowrank_adapter::{Param, Pass, Result};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use std::sync::OnceLock;

/// m, and what the row norms of W + s B A need of the frozen W.
#[derive(Debug)]
pub(crate) struct Magnitude {
    /// m `[n_out]`.
    pub m: Param,
    pub norms: RowNorms,
}

/// The row norms of W + s B A, without forming B A.
#[derive(Debug, Default)]
pub(crate) struct RowNorms {
    /// ||W_i||², a constant of the base: computed once, when it is first asked for.
    squares: OnceLock<Vec<f64>>,
}

impl Magnitude {
    /// m / n `[n_out]`, where n is a constant to the gradient (section 4.3 of the paper). A row of W + s B A that is 0
    /// has no direction, and stays 0.
    pub fn factors(&self, pass: &Pass, norms: Vec<f64>) -> Result<Tensor> {
        let inverse = norms
            .into_iter()
            .map(|n| if n > 0.0 { 1.0 / n } else { 0.0 });
        let inverse = Tensor::from_iter(inverse, self.m.device())?.to_dtype(self.m.dtype())?;
        Ok((self.m.get(pass) * inverse)?)
    }
}

impl RowNorms {
    /// ||W_i + s (B A)_i|| of every row i, with
    /// ||W_i||² + 2 s <W_i, (B A)_i> + s² B_i (A Aᵀ) B_iᵀ summed in f64, and <W_i, (B A)_i> taken from W Aᵀ `[n_out, r]`.
    pub fn of(&self, base: &FrozenLinear, a: &Tensor, b: &Tensor, scale: f64) -> Result<Vec<f64>> {
        let squares = match self.squares.get() {
            Some(squares) => squares,
            None => {
                let squares = ops::row_norms_squared(&base.weight()?)?;
                self.squares.get_or_init(|| squares)
            }
        };
        let (a, b) = (a.detach(), b.detach());
        let across = base
            .with_bias(None)
            .forward(&a)?
            .to_dtype(DType::F64)?
            .t()?;
        let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
        let gram = a.matmul(&a.t()?)?;
        let linear = (&b * across)?.sum(1)?.to_vec1::<f64>()?;
        let quadratic = (b.matmul(&gram)? * &b)?.sum(1)?.to_vec1::<f64>()?;
        let terms = squares.iter().zip(linear.into_iter().zip(quadratic));
        let square = |(w, (l, q)): (&f64, (f64, f64))| w + 2.0 * scale * l + scale * scale * q;
        // Rounding may leave less than nothing of a row that s B A takes away.
        Ok(terms.map(|term| square(term).max(0.0).sqrt()).collect())
    }
}

/// The row norms of a dense weight.
pub(crate) fn dense_norms(weight: &Tensor) -> Result<Vec<f64>> {
    let squares = ops::row_norms_squared(weight)?;
    Ok(squares.into_iter().map(f64::sqrt).collect())
}
