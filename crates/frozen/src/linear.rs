//! The frozen linear layer: a product whose weight is not part of the graph.

use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Shape, Tensor};
use lowrank_ops::gemm::{Matrix, matmul, matmul_add};
use lowrank_ops::{self as ops, Float, argument, data};
use std::marker::PhantomData;

/// A linear layer that is never trained. Its operations own the weight, so candle sees one tracked argument and no
/// gradient of the weight's size is ever computed. Clones share the weight.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    storage: Storage,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Storage {
    Dense(Tensor),
    /// Only the shape is known.
    Absent {
        dims: (usize, usize),
    },
}

impl FrozenLinear {
    /// `weight` `[n_out, n_in]` in f32 or f64, `bias` `[n_out]`. Both are taken detached.
    ///
    /// # Errors
    /// If the shapes do not fit, or the dtype is another one.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (n_out, _) = weight.dims2()?;
        if let Some(bias) = &bias
            && bias.dims() != [n_out]
        {
            return Err(ops::Error::Shape {
                op: "FrozenLinear",
                what: "the bias",
                got: bias.dims().to_vec(),
                expected: format!("[{n_out}]"),
            }
            .into());
        }
        if !matches!(weight.dtype(), DType::F32 | DType::F64) {
            return Err(Error::Ops(ops::Error::DType {
                op: "FrozenLinear",
                dtype: weight.dtype().as_str(),
            }));
        }
        Ok(Self {
            storage: Storage::Dense(weight.detach().contiguous()?),
            bias: bias.map(|bias| bias.detach()),
        })
    }

    /// A layer of which only the shape is known: adapters attach to it and can be counted and inspected, and every
    /// product is refused.
    #[must_use]
    pub const fn absent(n_out: usize, n_in: usize) -> Self {
        Self {
            storage: Storage::Absent {
                dims: (n_out, n_in),
            },
            bias: None,
        }
    }

    /// (n_out, n_in).
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        match &self.storage {
            Storage::Dense(weight) => (weight.dims()[0], weight.dims()[1]),
            Storage::Absent { dims } => *dims,
        }
    }

    /// The dtype of inputs and outputs.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Dense(weight) => weight.dtype(),
            Storage::Absent { .. } => DType::F32,
        }
    }

    /// The weight `[n_out, n_in]` as a dense tensor, detached.
    ///
    /// # Errors
    /// If the weight is absent.
    pub fn weight(&self) -> Result<Tensor> {
        match &self.storage {
            Storage::Dense(weight) => Ok(weight.clone()),
            Storage::Absent { dims } => Err(Error::Absent {
                n_out: dims.0,
                n_in: dims.1,
            }),
        }
    }

    /// The bias `[n_out]`.
    #[must_use]
    pub const fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same weight with another bias, which may be trained.
    #[must_use]
    pub fn with_bias(&self, bias: Option<Tensor>) -> Self {
        Self {
            storage: self.storage.clone(),
            bias,
        }
    }

    /// y = x W^T + bias: `x` (.., n_in) -> (.., n_out).
    ///
    /// # Errors
    /// If the last dimension or the dtype of `x` is not the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.input(x)?;
        let weight = self.weight()?;
        let y = match self.dtype() {
            DType::F64 => x.apply_op1(Product::<f64>(weight, PhantomData))?,
            _ => x.apply_op1(Product::<f32>(weight, PhantomData))?,
        };
        self.shifted(y)
    }

    /// y = x W^T + h B^T + bias: `x` (.., n_in), `h` (.., r), `b` `[n_out, r]` -> (.., n_out), in one operation.
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit.
    pub fn forward_plus(&self, x: &Tensor, h: &Tensor, b: &Tensor) -> Result<Tensor> {
        let x = self.input(x)?;
        let rank = h.dims().last().copied().unwrap_or(0);
        let lead = |t: &Tensor| t.dims()[..t.rank().saturating_sub(1)].to_vec();
        if lead(h) != lead(&x) {
            return Err(refuse("h", h, format!("{:?} and a rank", lead(&x))));
        }
        if b.dims() != [self.dims().0, rank] {
            return Err(refuse("B", b, format!("[{}, {rank}]", self.dims().0)));
        }
        for (what, tensor) in [("h", h), ("B", b)] {
            if tensor.dtype() != self.dtype() {
                return Err(self.wrong_dtype(what, tensor));
            }
        }
        let (h, b, weight) = (h.contiguous()?, b.contiguous()?, self.weight()?);
        let y = match self.dtype() {
            DType::F64 => x.apply_op3(&h, &b, ProductPlus::<f64>(weight, PhantomData))?,
            _ => x.apply_op3(&h, &b, ProductPlus::<f32>(weight, PhantomData))?,
        };
        self.shifted(y)
    }

    /// y = x W^T + scale * (x A^T) B^T + bias: `a` `[r, n_in]`, `b` `[n_out, r]`.
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit.
    pub fn forward_low_rank(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        scale: f64,
    ) -> Result<Tensor> {
        let h = (ops::linear(x, a, None)? * scale)?;
        self.forward_plus(x, &h, b)
    }

    fn input(&self, x: &Tensor) -> Result<Tensor> {
        let (_, n_in) = self.dims();
        if x.dims().last() != Some(&n_in) {
            return Err(refuse("x", x, format!("(.., {n_in})")));
        }
        if x.dtype() != self.dtype() {
            return Err(self.wrong_dtype("x", x));
        }
        Ok(x.contiguous()?)
    }

    fn shifted(&self, y: Tensor) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(bias) => ops::add_bias(&y, bias)?,
            None => y,
        })
    }

    fn wrong_dtype(&self, what: &str, tensor: &Tensor) -> Error {
        Error::Ops(ops::Error::Argument {
            op: "FrozenLinear",
            what: format!(
                "{what} has dtype {}, the weight has {}",
                tensor.dtype().as_str(),
                self.dtype().as_str()
            ),
        })
    }
}

fn refuse(what: &'static str, tensor: &Tensor, expected: String) -> Error {
    Error::Ops(ops::Error::Shape {
        op: "FrozenLinear",
        what,
        got: tensor.dims().to_vec(),
        expected,
    })
}

/// x W^T with the gradient of x only.
struct Product<T>(Tensor, PhantomData<T>);

impl<T: Float> CustomOp1 for Product<T> {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = forward(&self.0, argument::<T>(x, layout)?)?;
        Ok((T::storage(y), output_shape(&self.0, layout)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        input_gradient::<T>(&self.0, x, &grad.contiguous()?).map(Some)
    }
}

/// x W^T + h B^T with the gradients of x, h and B.
struct ProductPlus<T>(Tensor, PhantomData<T>);

impl<T: Float> CustomOp3 for ProductPlus<T> {
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
        let mut y = forward(&self.0, argument::<T>(x, x_layout)?)?;
        let h = Matrix::new(argument::<T>(h, h_layout)?, y.len() / n_out, rank)?;
        let b = Matrix::new(argument::<T>(b, b_layout)?, n_out, rank)?;
        matmul_add(T::from_f64(1.0), h, b.transposed(), &mut y)?;
        Ok((T::storage(y), output_shape(&self.0, x_layout)))
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
            .then(|| input_gradient::<T>(&self.0, x, &grad))
            .transpose()?;
        let rows = grad.elem_count() / n_out;
        let grad = data::<T>(&grad)?;
        let grad = Matrix::new(&grad, rows, n_out)?;
        let mut h_grad = None;
        if h.track_op() {
            let mut into = vec![T::ZERO; rows * rank];
            matmul(grad, Matrix::new(&data::<T>(b)?, n_out, rank)?, &mut into)?;
            h_grad = Some(Tensor::from_vec(into, h.shape(), h.device())?);
        }
        let mut b_grad = None;
        if b.track_op() {
            let mut into = vec![T::ZERO; n_out * rank];
            let h = data::<T>(h)?;
            matmul(grad.transposed(), Matrix::new(&h, rows, rank)?, &mut into)?;
            b_grad = Some(Tensor::from_vec(into, b.shape(), b.device())?);
        }
        Ok((x_grad, h_grad, b_grad))
    }
}

fn forward<T: Float>(weight: &Tensor, x: &[T]) -> candle_core::Result<Vec<T>> {
    let (n_out, n_in) = weight.dims2()?;
    let rows = x.len() / n_in;
    let mut y = vec![T::ZERO; rows * n_out];
    let weight = data::<T>(weight)?;
    let weight = Matrix::new(&weight, n_out, n_in)?;
    matmul(Matrix::new(x, rows, n_in)?, weight.transposed(), &mut y)?;
    Ok(y)
}

/// dX = G W.
fn input_gradient<T: Float>(
    weight: &Tensor,
    x: &Tensor,
    grad: &Tensor,
) -> candle_core::Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let rows = grad.elem_count() / n_out;
    let mut into = vec![T::ZERO; rows * n_in];
    let (grad, weight) = (data::<T>(grad)?, data::<T>(weight)?);
    matmul(
        Matrix::new(&grad, rows, n_out)?,
        Matrix::new(&weight, n_out, n_in)?,
        &mut into,
    )?;
    Tensor::from_vec(into, x.shape(), x.device())
}

fn output_shape(weight: &Tensor, x: &Layout) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = weight.dims()[0];
    }
    Shape::from(dims)
}
