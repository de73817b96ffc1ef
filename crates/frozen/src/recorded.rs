//! The products of a frozen layer as operations on the tape: they own the weight, so that its gradient is never computed.

use crate::few_rows::{self, FEW};
use crate::kernels::{Direction, Update};
use crate::product::Factor;
use crate::{Error, Result};
use candle_core::{Shape, Tensor, WithDType as _};
use lowrank_ops as ops;
use ops::gemm::{Before, Matrix, matmul};
use ops::simd::Level;
use ops::skinny::{self, UpdateGrads, update_grads};
use ops::tape::{self, Backward, Inputs};
use ops::{Dropout, Float, data, unwritten};
use std::borrow::Cow;
use std::sync::Arc;

type Incoming<T> = [Option<Arc<Vec<T>>>];

/// x W^T with the gradient of x only.
pub(crate) fn product<W: Factor + 'static>(weight: W, x: &Tensor) -> Result<Tensor> {
    let y = forward(&weight, x, &data::<W::Number>(x)?, None)?;
    let shape = output_shape(&weight, x);
    let [y] = tape::record("frozen_linear", &[x], [(y, shape)], Product(weight))?;
    Ok(y)
}

/// x W^T + h B^T with the gradients of x, h and B.
pub(crate) fn product_plus<W: Factor + 'static>(
    weight: W,
    x: &Tensor,
    h: &Tensor,
    b: &Tensor,
) -> Result<Tensor> {
    let (n_out, rank) = b.dims2()?;
    let (h_data, b_data) = (data::<W::Number>(h)?, data::<W::Number>(b)?);
    let update = Update {
        h: Matrix::new(&h_data, rows(x), rank)?,
        v: Matrix::new(&b_data, n_out, rank)?.transposed(),
    };
    let y = forward(&weight, x, &data::<W::Number>(x)?, Some(update))?;
    drop((h_data, b_data));
    let y = [(y, output_shape(&weight, x))];
    let op = ProductPlus { weight, rank };
    let [y] = tape::record("frozen_linear_plus", &[x, h, b], y, op)?;
    Ok(y)
}

/// x W^T + scale * (drop(x) A^T) B^T with the gradients of x, A and B.
pub(crate) fn product_low_rank<W: Factor + 'static>(
    weight: W,
    x: &Tensor,
    (a, b): (&Tensor, &Tensor),
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let ((rank, n_in), (n_out, _)) = (a.dims2()?, b.dims2()?);
    let (a_data, b_data) = (data::<W::Number>(a)?, data::<W::Number>(b)?);
    let factor = W::Number::from_f64(scale);
    let numbers = data::<W::Number>(x)?;
    let seen = dropped(dropout, &numbers);
    let few = few_low_rank(rows(x), &seen, (&*a_data, &*b_data), scale, |y| {
        weight.product(
            Direction::Forward,
            &numbers,
            rows(x),
            None,
            Before::Ignored,
            y,
        )
    })?;
    let (y, h) = match few {
        Some(done) => done,
        None => {
            let h = skinny::dots(&seen, &a_data, n_in, rank, factor);
            let update = Update {
                h: Matrix::new(&h, rows(x), rank)?,
                v: Matrix::new(&b_data, n_out, rank)?.transposed(),
            };
            (forward(&weight, x, &numbers, Some(update))?, h)
        }
    };
    drop(seen);
    drop((a_data, b_data, numbers));
    let y = [(y, output_shape(&weight, x))];
    let op = ProductLowRank {
        weight,
        scale,
        dropout,
        rank,
        h,
    };
    let [y] = tape::record("frozen_linear_low_rank", &[x, a, b], y, op)?;
    Ok(y)
}

/// x W^T with scale * drop(x) A^T added at some outputs, one a row of A, with the gradients of x and A.
pub(crate) fn product_at<W: Factor + 'static>(
    weight: W,
    x: &Tensor,
    a: &Tensor,
    outputs: &[u32],
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let ((rank, n_in), (n_out, _)) = (a.dims2()?, weight.dims());
    let (numbers, a_data) = (data::<W::Number>(x)?, data::<W::Number>(a)?);
    let mut y = forward(&weight, x, &numbers, None)?;
    let factor = W::Number::from_f64(scale);
    let h = skinny::dots(&dropped(dropout, &numbers), &a_data, n_in, rank, factor);
    for (y, h) in y.chunks_exact_mut(n_out).zip(h.chunks_exact(rank.max(1))) {
        for (h, output) in h.iter().zip(outputs) {
            y[*output as usize] += *h;
        }
    }
    drop((numbers, a_data));
    let y = [(y, output_shape(&weight, x))];
    let op = ProductAt {
        weight,
        outputs: outputs.to_vec(),
        scale,
        dropout,
    };
    let [y] = tape::record("frozen_linear_at", &[x, a], y, op)?;
    Ok(y)
}

/// y = x W^T + scale (x A^T) B^T and h = scale x A^T, if the rows are few and in f32; `base` writes x W^T.
fn few_low_rank<T: Float>(
    rows: usize,
    x: &[T],
    (a, b): (&[T], &[T]),
    scale: f64,
    base: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Option<(Vec<T>, Vec<T>)>> {
    let (Some(x), Some(a), Some(singles_b)) = (T::singles(x), T::singles(a), T::singles(b)) else {
        return Ok(None);
    };
    let rank = a
        .len()
        .checked_div(x.len().checked_div(rows).unwrap_or(0))
        .unwrap_or(0);
    if rows > FEW || rank == 0 {
        return Ok(None);
    }
    let mut y = unwritten(rows * (b.len() / rank));
    base(&mut y)?;
    let Some(into) = T::singles_mut(&mut y) else {
        return Ok(None);
    };
    let scale = scale as f32;
    let down = few_rows::add_low_rank(Level::used(), (x, rows), (a, singles_b), scale, into);
    let h = down.into_iter().map(|x| T::from_f64(f64::from(x * scale)));
    Ok(Some((y, h.collect())))
}

struct Product<W>(W);

impl<W: Factor> Backward<W::Number> for Product<W> {
    fn backward(
        &self,
        grads: &Incoming<W::Number>,
        inputs: &mut Inputs<'_, W::Number>,
    ) -> ops::Result<()> {
        match &grads[0] {
            Some(grad) => input_gradient(&self.0, grad, None, inputs),
            None => Ok(()),
        }
    }
}

struct ProductPlus<W> {
    weight: W,
    rank: usize,
}

impl<W: Factor> Backward<W::Number> for ProductPlus<W> {
    fn backward(
        &self,
        grads: &Incoming<W::Number>,
        inputs: &mut Inputs<'_, W::Number>,
    ) -> ops::Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        input_gradient(&self.weight, grad, None, inputs)?;
        let (n_out, rank) = (self.weight.dims().0, self.rank);
        let (h, b) = (inputs.data(1)?, inputs.data(2)?);
        let b_t = skinny::transposed(&b, rank);
        let b_t = inputs.wanted(1).then_some((b_t.as_slice(), W::Number::ONE));
        let h = inputs.wanted(2).then_some(&*h);
        let (h_grad, b_grad) = skinny::dots_and_outer(grad, n_out, b_t, h, rank);
        if inputs.wanted(1) {
            inputs.add(1, Arc::new(h_grad));
        }
        if inputs.wanted(2) {
            inputs.add(2, Arc::new(skinny::transposed(&b_grad, n_out)));
        }
        Ok(())
    }
}

struct ProductLowRank<W: Factor> {
    weight: W,
    scale: f64,
    dropout: Option<Dropout>,
    rank: usize,
    /// scale * drop(x) A^T `[rows, rank]`, which the gradient of B needs.
    h: Vec<W::Number>,
}

impl<W: Factor> Backward<W::Number> for ProductLowRank<W> {
    fn backward(
        &self,
        grads: &Incoming<W::Number>,
        inputs: &mut Inputs<'_, W::Number>,
    ) -> ops::Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let (x, a, b) = (inputs.data(0)?, inputs.data(1)?, inputs.data(2)?);
        let (rank, n_in) = (self.rank, self.weight.dims().1);
        let wanted = [0, 1, 2].map(|i| inputs.wanted(i));
        // What was dropped is drawn again rather than kept.
        let seen = match self.dropout {
            Some(_) if wanted[1] => dropped(self.dropout, &x),
            _ => Cow::Borrowed(&*x),
        };
        let update = skinny::Update {
            x: &seen,
            n_in,
            h: &self.h,
            b: &b,
            scale: W::Number::from_f64(self.scale),
            rank,
        };
        let UpdateGrads {
            h,
            a: a_grad,
            b: b_grad,
        } = update_grads(&update, grad, wanted);
        if wanted[0] {
            let a = Matrix::new(&a, rank, n_in)?;
            let h = Matrix::new(&h, rows(inputs.tensor(0)), rank)?;
            gradient_through(&self.weight, grad, Update { h, v: a }, self.dropout, inputs)?;
        }
        for (i, grad) in [(1, a_grad), (2, b_grad)] {
            if let Some(grad) = grad {
                inputs.add(i, Arc::new(grad));
            }
        }
        Ok(())
    }
}

struct ProductAt<W> {
    weight: W,
    /// One for each row of A.
    outputs: Vec<u32>,
    scale: f64,
    dropout: Option<Dropout>,
}

impl<W: Factor> Backward<W::Number> for ProductAt<W> {
    fn backward(
        &self,
        grads: &Incoming<W::Number>,
        inputs: &mut Inputs<'_, W::Number>,
    ) -> ops::Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let (n_out, n_in) = self.weight.dims();
        let rank = self.outputs.len();
        let scale = W::Number::from_f64(self.scale);
        // scale * what arrives at the outputs, [rows, rank].
        let of_row = |grad: &[W::Number]| {
            let picked = self.outputs.iter().map(|output| grad[*output as usize]);
            picked.map(|grad| grad * scale).collect::<Vec<_>>()
        };
        let h: Vec<W::Number> = grad.chunks_exact(n_out).flat_map(of_row).collect();
        let (x, a) = (inputs.data(0)?, inputs.data(1)?);
        if inputs.wanted(1) {
            // What was dropped is drawn again rather than kept.
            let seen = dropped(self.dropout, &x);
            inputs.add(1, Arc::new(skinny::outer(&h, &seen, n_in, rank)));
        }
        if inputs.wanted(0) {
            let h = Matrix::new(&h, rows(inputs.tensor(0)), rank)?;
            let v = Matrix::new(&a, rank, n_in)?;
            gradient_through(&self.weight, grad, Update { h, v }, self.dropout, inputs)?;
        }
        Ok(())
    }
}

/// What A sees of x.
fn dropped<T: Float>(dropout: Option<Dropout>, x: &[T]) -> Cow<'_, [T]> {
    let mut x = Cow::Borrowed(x);
    if let Some(dropout) = dropout {
        dropout.apply(x.to_mut());
    }
    x
}

fn forward<W: Factor>(
    weight: &W,
    x: &Tensor,
    numbers: &[W::Number],
    update: Option<Update<'_, W::Number>>,
) -> Result<Vec<W::Number>> {
    let rows = rows(x);
    let mut y = unwritten(rows * weight.dims().0);
    weight.product(
        Direction::Forward,
        numbers,
        rows,
        update,
        Before::Ignored,
        &mut y,
    )?;
    Ok(y)
}

/// Adds G W and the update to the gradient of the first input, if it is wanted.
fn input_gradient<W: Factor>(
    weight: &W,
    grad: &[W::Number],
    update: Option<Update<'_, W::Number>>,
    inputs: &mut Inputs<'_, W::Number>,
) -> ops::Result<()> {
    if !inputs.wanted(0) {
        return Ok(());
    }
    let rows = rows(inputs.tensor(0));
    inputs.accumulate(0, |into, begun| {
        let before = if begun {
            Before::Added
        } else {
            Before::Ignored
        };
        weight
            .product(Direction::Backward, grad, rows, update, before, into)
            .map_err(flat)
    })
}

/// Adds G W and drop(h v) to the gradient of the first input.
fn gradient_through<W: Factor>(
    weight: &W,
    grad: &[W::Number],
    update: Update<'_, W::Number>,
    dropout: Option<Dropout>,
    inputs: &mut Inputs<'_, W::Number>,
) -> ops::Result<()> {
    let Some(dropout) = dropout else {
        return input_gradient(weight, grad, Some(update), inputs);
    };
    let mut through = unwritten(inputs.tensor(0).elem_count());
    matmul(update.h, update.v, &mut through)?;
    dropout.apply(&mut through);
    inputs.add(0, Arc::new(through));
    input_gradient(weight, grad, None, inputs)
}

/// An error as the tape passes it on.
pub(crate) fn flat(error: Error) -> ops::Error {
    match error {
        Error::Ops(error) => error,
        other => candle_core::Error::wrap(other).into(),
    }
}

/// The product of all dimensions but the last.
fn rows(x: &Tensor) -> usize {
    let dims = x.dims();
    dims[..dims.len().saturating_sub(1)].iter().product()
}

fn output_shape<W: Factor>(weight: &W, x: &Tensor) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = weight.dims().0;
    }
    Shape::from(dims)
}
