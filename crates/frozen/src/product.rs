//! The products of a frozen layer as operations of candle's graph: they own the weight, so that its gradient is never
//! computed.

use crate::kernels::{Direction, Numbers, Operand, Update, Weights, product};
use crate::stored::Form;
use crate::{Compute, Result, Stored};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Shape, Tensor, WithDType};
use lowrank_ops::gemm::{Before, Matrix, matmul, matmul_add, matmul_onto};
use lowrank_ops::simd::Level;
use lowrank_ops::{Dropout, Float, argument, data};
use std::borrow::Cow;
use std::sync::OnceLock;

/// A weight `[n_out, n_in]` that can be multiplied with, whatever it is held in.
pub(crate) trait Factor: Send + Sync {
    /// What inputs, outputs and sums are.
    type Number: Float;

    /// (n_out, n_in).
    fn dims(&self) -> (usize, usize);

    /// into = x W^T + h v: `[rows, n_in]` -> `[rows, n_out]`.
    fn forward(
        &self,
        x: &[Self::Number],
        rows: usize,
        update: Option<Update<'_, Self::Number>>,
        before: Before,
        into: &mut [Self::Number],
    ) -> Result<()>;

    /// into = G W + h v: `[rows, n_out]` -> `[rows, n_in]`.
    fn backward(
        &self,
        grad: &[Self::Number],
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

impl Factor for Double {
    type Number = f64;

    fn dims(&self) -> (usize, usize) {
        (self.0.dims()[0], self.0.dims()[1])
    }

    fn forward(
        &self,
        x: &[f64],
        rows: usize,
        update: Option<Update<'_, f64>>,
        before: Before,
        into: &mut [f64],
    ) -> Result<()> {
        self.product(Direction::Forward, x, rows, update, before, into)
    }

    fn backward(
        &self,
        grad: &[f64],
        rows: usize,
        update: Option<Update<'_, f64>>,
        before: Before,
        into: &mut [f64],
    ) -> Result<()> {
        self.product(Direction::Backward, grad, rows, update, before, into)
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

    fn product(
        &self,
        direction: Direction,
        x: &[f32],
        rows: usize,
        update: Option<Update<'_, f32>>,
        before: Before,
        into: &mut [f32],
    ) -> Result<()> {
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

impl Factor for Single {
    type Number = f32;

    fn dims(&self) -> (usize, usize) {
        self.weight.dims()
    }

    fn forward(
        &self,
        x: &[f32],
        rows: usize,
        update: Option<Update<'_, f32>>,
        before: Before,
        into: &mut [f32],
    ) -> Result<()> {
        self.product(Direction::Forward, x, rows, update, before, into)
    }

    fn backward(
        &self,
        grad: &[f32],
        rows: usize,
        update: Option<Update<'_, f32>>,
        before: Before,
        into: &mut [f32],
    ) -> Result<()> {
        self.product(Direction::Backward, grad, rows, update, before, into)
    }
}

/// x W^T with the gradient of x only.
pub(crate) struct Product<W>(pub(crate) W);

impl<W: Factor> CustomOp1 for Product<W> {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = forward(&self.0, x, layout, None)?;
        Ok((W::Number::storage(y), output_shape(&self.0, layout)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        input_gradient(&self.0, x, &grad.contiguous()?).map(Some)
    }
}

/// x W^T + h B^T with the gradients of x, h and B.
pub(crate) struct ProductPlus<W>(pub(crate) W);

impl<W: Factor> CustomOp3 for ProductPlus<W> {
    fn name(&self) -> &'static str {
        "frozen_linear_plus"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        h: &CpuStorage,
        h_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n_out, rank) = b_layout.shape().dims2()?;
        let rows = rows(x_layout.shape());
        let h = Matrix::new(argument::<W::Number>(h, h_layout)?, rows, rank)?;
        let b = Matrix::new(argument::<W::Number>(b, b_layout)?, n_out, rank)?;
        let v = b.transposed();
        let y = forward(&self.0, x, x_layout, Some(Update { h, v }))?;
        Ok((W::Number::storage(y), output_shape(&self.0, x_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        h: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n_out, rank) = b.dims2()?;
        let grad = grad.contiguous()?;
        let x_grad = x
            .track_op()
            .then(|| input_gradient(&self.0, x, &grad))
            .transpose()?;
        let rows = rows(grad.shape());
        let grad = data::<W::Number>(&grad)?;
        let grad = Matrix::new(&grad, rows, n_out)?;
        let mut h_grad = None;
        if h.track_op() {
            let mut into = vec![W::Number::ZERO; rows * rank];
            let b = data::<W::Number>(b)?;
            matmul(grad, Matrix::new(&b, n_out, rank)?, &mut into)?;
            h_grad = Some(Tensor::from_vec(into, h.shape(), h.device())?);
        }
        let mut b_grad = None;
        if b.track_op() {
            let mut into = vec![W::Number::ZERO; n_out * rank];
            let h = data::<W::Number>(h)?;
            matmul(grad.transposed(), Matrix::new(&h, rows, rank)?, &mut into)?;
            b_grad = Some(Tensor::from_vec(into, b.shape(), b.device())?);
        }
        Ok((x_grad, h_grad, b_grad))
    }
}

/// x W^T + scale * (drop(x) A^T) B^T with the gradients of x, A and B.
pub(crate) struct ProductLowRank<W: Factor> {
    weight: W,
    scale: f64,
    dropout: Option<Dropout>,
    /// drop(x) A^T `[rows, rank]`, which the gradient of B needs.
    down: OnceLock<Vec<W::Number>>,
}

impl<W: Factor> ProductLowRank<W> {
    pub(crate) const fn new(weight: W, scale: f64, dropout: Option<Dropout>) -> Self {
        Self {
            weight,
            scale,
            dropout,
            down: OnceLock::new(),
        }
    }

    /// What A sees of x. Drawn again for the backward pass instead of being kept.
    fn dropped<'a>(&self, x: &'a [W::Number]) -> Cow<'a, [W::Number]> {
        let mut x = Cow::Borrowed(x);
        if let Some(dropout) = self.dropout {
            dropout.apply(x.to_mut());
        }
        x
    }
}

impl<W: Factor> CustomOp3 for ProductLowRank<W> {
    fn name(&self) -> &'static str {
        "frozen_linear_low_rank"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rank, n_in) = a_layout.shape().dims2()?;
        let (n_out, _) = b_layout.shape().dims2()?;
        let rows = rows(x_layout.shape());
        let dropped = self.dropped(argument::<W::Number>(x, x_layout)?);
        let a = Matrix::new(argument::<W::Number>(a, a_layout)?, rank, n_in)?;
        let b = Matrix::new(argument::<W::Number>(b, b_layout)?, n_out, rank)?;
        let mut down = vec![W::Number::ZERO; rows * rank];
        let left = Matrix::new(&dropped, rows, n_in)?;
        matmul(left, a.transposed(), &mut down)?;
        let scale = <W::Number as WithDType>::from_f64(self.scale);
        let scaled: Vec<_> = down.iter().map(|number| scale * *number).collect();
        let h = Matrix::new(&scaled, rows, rank)?;
        let v = b.transposed();
        let y = forward(&self.weight, x, x_layout, Some(Update { h, v }))?;
        // An op instance runs forward once, so the cell is empty.
        self.down.get_or_init(|| down);
        Ok((W::Number::storage(y), output_shape(&self.weight, x_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rank, n_in), (n_out, _)) = (a.dims2()?, b.dims2()?);
        let rows = rows(grad.shape());
        let scale = <W::Number as WithDType>::from_f64(self.scale);
        let grad = grad.contiguous()?;
        let numbers = data::<W::Number>(&grad)?;
        let g = Matrix::new(&numbers, rows, n_out)?;

        let mut down_grad = Vec::new();
        if x.track_op() || a.track_op() {
            down_grad = vec![W::Number::ZERO; rows * rank];
            let b = data::<W::Number>(b)?;
            matmul_add(scale, g, Matrix::new(&b, n_out, rank)?, &mut down_grad)?;
        }
        let down_of = |down_grad| Matrix::new(down_grad, rows, rank);
        let mut x_grad = None;
        if x.track_op() {
            let mut into = vec![W::Number::ZERO; rows * n_in];
            let a = data::<W::Number>(a)?;
            let a = Matrix::new(&a, rank, n_in)?;
            let h = down_of(&down_grad)?;
            let update = self.dropout.is_none().then_some(Update { h, v: a });
            self.weight
                .backward(&numbers, rows, update, Before::Ignored, &mut into)?;
            match self.dropout {
                None => (),
                Some(dropout) => {
                    let mut through = vec![W::Number::ZERO; rows * n_in];
                    matmul(down_of(&down_grad)?, a, &mut through)?;
                    dropout.apply(&mut through);
                    for (into, through) in into.iter_mut().zip(through) {
                        *into += through;
                    }
                }
            }
            x_grad = Some(Tensor::from_vec(into, x.shape(), x.device())?);
        }
        let mut a_grad = None;
        if a.track_op() {
            let mut into = vec![W::Number::ZERO; rank * n_in];
            let x = data::<W::Number>(x)?;
            let x = self.dropped(&x);
            let x = Matrix::new(&x, rows, n_in)?;
            matmul(down_of(&down_grad)?.transposed(), x, &mut into)?;
            a_grad = Some(Tensor::from_vec(into, a.shape(), a.device())?);
        }
        let mut b_grad = None;
        if b.track_op() {
            let mut into = vec![W::Number::ZERO; n_out * rank];
            let down = self.down.get().expect("set by the forward pass");
            matmul_add(scale, g.transposed(), down_of(down)?, &mut into)?;
            b_grad = Some(Tensor::from_vec(into, b.shape(), b.device())?);
        }
        Ok((x_grad, a_grad, b_grad))
    }
}

fn forward<W: Factor>(
    weight: &W,
    x: &CpuStorage,
    layout: &Layout,
    update: Option<Update<'_, W::Number>>,
) -> candle_core::Result<Vec<W::Number>> {
    let x = argument::<W::Number>(x, layout)?;
    let rows = rows(layout.shape());
    let mut y = vec![W::Number::ZERO; rows * weight.dims().0];
    weight.forward(x, rows, update, Before::Ignored, &mut y)?;
    Ok(y)
}

fn input_gradient<W: Factor>(weight: &W, x: &Tensor, grad: &Tensor) -> candle_core::Result<Tensor> {
    let rows = rows(grad.shape());
    let mut into = vec![W::Number::ZERO; rows * weight.dims().1];
    let grad = data::<W::Number>(grad)?;
    weight.backward(&grad, rows, None, Before::Ignored, &mut into)?;
    Tensor::from_vec(into, x.shape(), x.device())
}

/// The product of all dimensions but the last.
fn rows(shape: &Shape) -> usize {
    let dims = shape.dims();
    dims[..dims.len().saturating_sub(1)].iter().product()
}

fn output_shape<W: Factor>(weight: &W, x: &Layout) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = weight.dims().0;
    }
    Shape::from(dims)
}
