//! The products of a frozen layer as operations of candle's graph: they own the weight, so that its gradient is never
//! computed.

use crate::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Shape, Tensor, WithDType};
use lowrank_ops::gemm::{Matrix, matmul, matmul_add};
use lowrank_ops::{Dropout, Float, argument, data};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// A weight `[n_out, n_in]` that can be multiplied with, whatever it is held in.
pub(crate) trait Factor: Send + Sync {
    /// What it is computed with in.
    type Number: Float;

    /// (n_out, n_in).
    fn dims(&self) -> (usize, usize);

    /// x W^T: `[rows, n_in]` -> `[rows, n_out]`.
    fn forward(&self, x: &[Self::Number], rows: usize) -> Result<Vec<Self::Number>>;

    /// dX = G W: `[rows, n_out]` -> `[rows, n_in]`.
    fn backward(&self, grad: &[Self::Number], rows: usize) -> Result<Vec<Self::Number>>;
}

/// A contiguous matrix of `T`.
pub(crate) struct Dense<T>(Tensor, PhantomData<T>);

impl<T> Dense<T> {
    pub(crate) fn new(weight: &Tensor) -> Self {
        Self(weight.clone(), PhantomData)
    }
}

impl<T: Float> Factor for Dense<T> {
    type Number = T;

    fn dims(&self) -> (usize, usize) {
        (self.0.dims()[0], self.0.dims()[1])
    }

    fn forward(&self, x: &[T], rows: usize) -> Result<Vec<T>> {
        let (n_out, n_in) = self.dims();
        let mut y = vec![T::ZERO; rows * n_out];
        let weight = data::<T>(&self.0)?;
        let weight = Matrix::new(&weight, n_out, n_in)?;
        matmul(Matrix::new(x, rows, n_in)?, weight.transposed(), &mut y)?;
        Ok(y)
    }

    fn backward(&self, grad: &[T], rows: usize) -> Result<Vec<T>> {
        let (n_out, n_in) = self.dims();
        let mut into = vec![T::ZERO; rows * n_in];
        let weight = data::<T>(&self.0)?;
        let weight = Matrix::new(&weight, n_out, n_in)?;
        matmul(Matrix::new(grad, rows, n_out)?, weight, &mut into)?;
        Ok(into)
    }
}

/// x W^T with the gradient of x only.
pub(crate) struct Product<W>(pub(crate) W);

impl<W: Factor> CustomOp1 for Product<W> {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = forward(&self.0, x, layout)?;
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
        let mut y = forward(&self.0, x, x_layout)?;
        let rows = rows(x_layout.shape());
        let h = Matrix::new(argument::<W::Number>(h, h_layout)?, rows, rank)?;
        let b = Matrix::new(argument::<W::Number>(b, b_layout)?, n_out, rank)?;
        matmul_add(W::Number::ONE, h, b.transposed(), &mut y)?;
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
        let mut y = forward(&self.weight, x, x_layout)?;
        let x = self.dropped(argument::<W::Number>(x, x_layout)?);
        let a = Matrix::new(argument::<W::Number>(a, a_layout)?, rank, n_in)?;
        let b = Matrix::new(argument::<W::Number>(b, b_layout)?, n_out, rank)?;
        let mut down = vec![W::Number::ZERO; rows * rank];
        matmul(Matrix::new(&x, rows, n_in)?, a.transposed(), &mut down)?;
        let scale = <W::Number as WithDType>::from_f64(self.scale);
        let h = Matrix::new(&down, rows, rank)?;
        matmul_add(scale, h, b.transposed(), &mut y)?;
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
            let mut into = self.weight.backward(&numbers, rows)?;
            let a = data::<W::Number>(a)?;
            let a = Matrix::new(&a, rank, n_in)?;
            match self.dropout {
                None => matmul_add(W::Number::ONE, down_of(&down_grad)?, a, &mut into)?,
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
) -> candle_core::Result<Vec<W::Number>> {
    let x = argument::<W::Number>(x, layout)?;
    Ok(weight.forward(x, rows(layout.shape()))?)
}

fn input_gradient<W: Factor>(weight: &W, x: &Tensor, grad: &Tensor) -> candle_core::Result<Tensor> {
    let rows = rows(grad.shape());
    let into = weight.backward(&data::<W::Number>(grad)?, rows)?;
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
