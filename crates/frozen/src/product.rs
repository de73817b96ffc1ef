//! What a frozen layer multiplies with.

use crate::few_rows::{self, FEW, Held};
use crate::kernels::{Direction, Numbers, Operand, Update, Weights, product};
use crate::stored::Form;
use crate::{Compute, Result, Stored};
use candle_core::Tensor;
use lowrank_ops::gemm::{Before, Matrix, matmul_add, matmul_onto};
use lowrank_ops::simd::Level;
use lowrank_ops::{Float, data};

/// A weight `[n_out, n_in]` that can be multiplied with, whatever it is held in.
pub(crate) trait Factor: Send + Sync {
    /// What inputs, outputs and sums are.
    type Number: Float;

    /// (n_out, n_in).
    fn dims(&self) -> (usize, usize);

    /// into = x W^T + h v with `x` `[rows, n_in]` and `into` `[rows, n_out]`, or x W + h v with the two exchanged.
    fn product(
        &self,
        direction: Direction,
        x: &[Self::Number],
        rows: usize,
        update: Option<Update<'_, Self::Number>>,
        before: Before,
        into: &mut [Self::Number],
    ) -> Result<()>;
}

/// A contiguous matrix of f64, which is computed with in f64 whatever else is chosen: an oracle.
pub(crate) struct Double(Tensor);

impl Double {
    pub(crate) fn new(weight: &Tensor) -> Self {
        Self(weight.clone())
    }
}

impl Factor for Double {
    type Number = f64;

    fn dims(&self) -> (usize, usize) {
        (self.0.dims()[0], self.0.dims()[1])
    }

    fn product(
        &self,
        direction: Direction,
        x: &[f64],
        rows: usize,
        update: Option<Update<'_, f64>>,
        before: Before,
        into: &mut [f64],
    ) -> Result<()> {
        let (n_out, n_in) = self.dims();
        let weight = data::<f64>(&self.0)?;
        let weight = Matrix::new(&weight, n_out, n_in)?;
        let (inner, right) = match direction {
            Direction::Forward => (n_in, weight.transposed()),
            Direction::Backward => (n_out, weight),
        };
        matmul_onto(before, 1.0, Matrix::new(x, rows, inner)?, right, into)?;
        if let Some(Update { h, v }) = update {
            matmul_add(1.0, h, v, into)?;
        }
        Ok(())
    }
}

/// A matrix in f32 or fewer bits, computed with in f32 or in bf16.
pub(crate) struct Single {
    weight: Stored,
    compute: Compute,
}

impl Single {
    /// The weight is not of f64.
    pub(crate) fn new(weight: &Stored, compute: Compute) -> Self {
        Self {
            weight: weight.clone(),
            compute,
        }
    }
}

impl Factor for Single {
    type Number = f32;

    fn dims(&self) -> (usize, usize) {
        self.weight.dims()
    }

    fn product(
        &self,
        direction: Direction,
        x: &[f32],
        rows: usize,
        update: Option<Update<'_, f32>>,
        before: Before,
        into: &mut [f32],
    ) -> Result<()> {
        let few = rows <= FEW
            && x.len() == rows * self.dims().1
            && into.len() == rows * self.dims().0
            && (direction, self.compute, before)
                == (Direction::Forward, Compute::F32, Before::Ignored);
        if few {
            let level = Level::used();
            match &self.weight.0 {
                Form::Dense(weight) => {
                    let held = data::<f32>(weight)?;
                    few_rows::forward(level, Held::Single(&held), self.dims(), x, rows, into);
                }
                Form::Packed(packed) => {
                    few_rows::forward(level, packed.held(), self.dims(), x, rows, into);
                }
            }
            return match update {
                Some(Update { h, v }) => Ok(matmul_add(1.0, h, v, into)?),
                None => Ok(()),
            };
        }
        let mut run = |weights| {
            let operand = Operand {
                weights,
                direction,
                compute: self.compute,
                level: Level::used(),
            };
            product(operand, x, rows, update, before, into)
        };
        match &self.weight.0 {
            Form::Dense(weight) => {
                let numbers = data::<f32>(weight)?;
                run(Weights::new(Numbers::F32(&numbers), self.dims()))
            }
            Form::Packed(packed) => run(packed.weights()),
        }
    }
}
