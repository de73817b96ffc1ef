//! The products of a frozen layer where our kernels do not run: candle's, on whichever device the weight lies.
//!
//! candle's own product of two tensors computes the gradients of both. This one owns its weight, so that only the gradient
//! of the input is ever computed, as everywhere in this crate.

use crate::Result;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, Layout, Shape, Storage, Tensor, bail};
use lowrank_ops::{Dropout, composed};

/// x W^T: `x` (.., n_in), `weight` `[n_out, n_in]` -> (.., n_out).
pub(crate) fn product(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n_out;
    }
    if n_in == 0 || dims.contains(&0) {
        return Ok(Tensor::zeros(dims, x.dtype(), x.device())?);
    }
    let weight = weight.detach().contiguous()?;
    let y = x.reshape(((), n_in))?.apply_op1(Product { weight })?;
    Ok(y.reshape(dims)?)
}

/// x W^T + h B^T.
pub(crate) fn product_plus(weight: &Tensor, x: &Tensor, h: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((product(weight, x)? + composed::linear(h, b, None)?)?)
}

/// x W^T + scale * (drop(x) A^T) B^T.
pub(crate) fn product_low_rank(
    weight: &Tensor,
    x: &Tensor,
    (a, b): (&Tensor, &Tensor),
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let y = product(weight, x)?;
    let update = match dropout {
        Some(dropout) => composed::low_rank(&dropout.composed(x)?, a, b, scale)?,
        None => composed::low_rank(x, a, b, scale)?,
    };
    Ok((y + update)?)
}

/// x W^T with scale * drop(x) A^T added at some outputs, one a row of A.
pub(crate) fn product_at(
    weight: &Tensor,
    x: &Tensor,
    a: &Tensor,
    outputs: &[u32],
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let y = product(weight, x)?;
    let h = match dropout {
        Some(dropout) => composed::linear(&dropout.composed(x)?, a, None)?,
        None => composed::linear(x, a, None)?,
    };
    let outputs = Tensor::new(outputs, x.device())?;
    Ok(y.index_add(&outputs, &(h * scale)?, D::Minus1)?)
}

struct Product {
    /// Contiguous, and no part of a graph.
    weight: Tensor,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "frozen_product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Cpu(weight) => multiply(x, layout, weight, weight_layout),
            _ => bail!("frozen_product: the input is on the CPU, the weight is not"),
        }
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        match &*weight {
            Storage::Cuda(weight) => multiply(x, layout, weight, weight_layout),
            _ => bail!("frozen_product: the input is on a GPU, the weight is not"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.matmul(&self.weight)?))
    }
}

/// `[rows, n_in]` times the transpose of `[n_out, n_in]`.
fn multiply<S: BackendStorage>(
    x: &S,
    x_layout: &Layout,
    weight: &S,
    weight_layout: &Layout,
) -> candle_core::Result<(S, Shape)> {
    let (rows, n_in) = x_layout.shape().dims2()?;
    let (n_out, _) = weight_layout.shape().dims2()?;
    let sizes = (1, rows, n_out, n_in);
    let y = x.matmul(weight, sizes, x_layout, &weight_layout.transpose(0, 1)?)?;
    Ok((y, Shape::from((rows, n_out))))
}
