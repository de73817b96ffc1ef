//! The only door to candle's backward.

use crate::float::with_float;
use crate::rows::copied;
use crate::tape::{self, Backward, Inputs};
use crate::{Float, Param, Result, composed, data};
use candle_core::backend::{BackendDevice as _, BackendStorage as _};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gradients of parameters, in the order of their declaration.
#[derive(Debug, Clone, Default)]
pub struct Grads(BTreeMap<Param, Tensor>);

impl Grads {
    /// The gradient of `param`, of the parameter's shape, if it has one.
    #[must_use]
    pub fn get(&self, param: &Param) -> Option<&Tensor> {
        self.0.get(param)
    }

    /// Replaces the gradient of `param`.
    pub fn insert(&mut self, param: &Param, grad: Tensor) {
        self.0.insert(param.clone(), grad);
    }

    /// Takes out the gradient of `param`, which is then neither updated nor aged by an optimiser.
    pub fn remove(&mut self, param: &Param) -> Option<Tensor> {
        self.0.remove(param)
    }

    /// Adds to the gradient of `param`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add(&mut self, param: &Param, grad: Tensor) -> Result<()> {
        let sum = match self.0.get(param) {
            Some(sum) => (sum + &grad)?,
            None => grad,
        };
        self.0.insert(param.clone(), sum);
        Ok(())
    }

    /// Adds all gradients of `other`.
    ///
    /// # Errors
    /// If shapes differ.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        other
            .0
            .into_iter()
            .try_for_each(|(param, grad)| self.add(&param, grad))
    }

    /// Multiplies every gradient by `factor`.
    ///
    /// # Errors
    /// If a result cannot be allocated.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for grad in self.0.values_mut() {
            *grad = (&*grad * factor)?;
        }
        Ok(())
    }

    /// Parameters and gradients, in order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&Param, &Tensor)> {
        self.0.iter()
    }

    /// How many parameters have a gradient.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if no parameter has a gradient.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Back-propagates from a scalar and keeps the gradients of `params` and of `leaves`; everything else is dropped.
///
/// The second result has one entry a leaf, `None` where the loss does not depend on it.
///
/// # Errors
/// If an operation on the way has no backward.
pub fn backward(
    loss: &Tensor,
    params: &[Param],
    leaves: &[&Var],
) -> Result<(Grads, Vec<Option<Tensor>>)> {
    if !loss.track_op() {
        return Ok((Grads::default(), vec![None; leaves.len()]));
    }
    let wanted: Vec<&Tensor> = params
        .iter()
        .map(Param::leaf)
        .chain(leaves.iter().map(|leaf| leaf.as_tensor()))
        .collect();
    let mut found = tape::backward(loss, &wanted)?.into_iter();
    let mut grads = Grads::default();
    for (param, grad) in params.iter().zip(found.by_ref()) {
        if let Some(grad) = grad {
            grads.insert(param, grad);
        }
    }
    Ok((grads, found.collect()))
}

/// Bytes of the tensors that the graphs behind `outputs` keep for a backward pass, leaves among them; what several of
/// them share counts once.
#[must_use]
pub fn graph_bytes<'a>(outputs: impl IntoIterator<Item = &'a Tensor>) -> usize {
    let mut held: BTreeMap<usize, usize> = BTreeMap::new();
    tape::for_each(outputs, &mut |node| {
        let (storage, _) = node.storage_and_layout();
        let bytes = node.elem_count() * node.dtype().size_in_bytes();
        // Views lie in one storage: the largest is the whole of it.
        let known = held.entry(std::ptr::from_ref(&*storage).addr());
        let known = known.or_default();
        *known = bytes.max(*known);
    });
    held.values().sum()
}

/// A fresh leaf with the values of `tensor`: where the graph is cut between two blocks.
///
/// # Errors
/// If the copy cannot be allocated.
pub fn leaf(tensor: &Tensor) -> Result<Var> {
    let tensor = tensor.contiguous()?;
    with_float!("leaf", tensor.dtype(), T => {
        let copy = copied(&data::<T>(&tensor)?);
        Ok(Var::from_vec(copy, tensor.shape(), tensor.device())?)
    })
}

/// Makes a scalar (of value 0) whose backward sends `grad` into `output`: how a block receives the gradient
/// that the next block left behind, without a product that candle would differentiate on both sides.
#[derive(Debug)]
pub struct Seed {
    grad: Tensor,
}

impl Seed {
    /// `grad` has the shape of `output`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn apply(output: &Tensor, grad: &Tensor) -> Result<Tensor> {
        if output.shape() != grad.shape() {
            return Err(crate::Error::Shape {
                op: "Seed",
                what: "the gradient",
                got: grad.dims().to_vec(),
                expected: format!("{:?}", output.dims()),
            });
        }
        if composed::replaces("Seed", output)? {
            return Self::from_candle(output, grad);
        }
        with_float!("Seed", output.dtype(), T => {
            let grad = Arc::new(copied(&data::<T>(&grad.contiguous()?)?));
            let zero = (vec![T::ZERO], Shape::from(()));
            let [seed] = tape::record("seed", &[output], [zero], SeedOp(grad))?;
            Ok(seed)
        })
    }

    /// The same for candle's own backward.
    pub(crate) fn from_candle(output: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let grad = grad.detach();
        Ok(output.apply_op1(Self { grad })?)
    }
}

struct SeedOp<T>(Arc<Vec<T>>);

impl<T: Float> Backward<T> for SeedOp<T> {
    /// The scalar is the root (or a term of a sum that is), so its own gradient is 1.
    fn backward(&self, _: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        inputs.add(0, Arc::clone(&self.0));
        Ok(())
    }
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let zero = match storage {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            CpuStorage::F32(_) => CpuStorage::F32(vec![0.0]),
            _ => candle_core::bail!("seed: only f32 and f64 carry gradients"),
        };
        Ok((zero, Shape::from(())))
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let scalar = Shape::from(());
        let zero = storage.device().zeros_impl(&scalar, storage.dtype())?;
        Ok((zero, scalar))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        // The scalar is the root (or a term of a sum that is), so its own gradient is 1.
        debug_assert_eq!(grad.elem_count(), 1);
        Ok(Some(self.grad.clone()))
    }
}
