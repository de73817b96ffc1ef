//! Parameters: tensors that are declared once, and that the declaration trains, counts, saves and prunes.

use crate::{Error, Float, Result, data};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Tensor, Var};
use std::cell::Cell;
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// What becomes of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Receives gradients; exported with the adapter.
    Trained,
    /// Set by its controller, never by the optimiser; exported with the adapter.
    Saved,
    /// Set by its controller; lives in checkpoints only.
    Scratch,
}

/// Everything about a parameter but its value.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamInfo {
    /// The adapter that it belongs to.
    pub owner: Arc<str>,
    /// Position in the order of declaration; unique within the owner.
    pub index: usize,
    /// The key on disk without PEFT's `base_model.model.`: `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// Trained, saved or scratch.
    pub kind: Kind,
    /// Optimiser group: `"default"`, or a name that the run file can address.
    pub group: &'static str,
    /// The axis along which ranks lie, if it has one.
    pub rank_axis: Option<usize>,
    /// Whether weight decay applies (PEFT and torch decay all; families may exempt scales).
    pub decay: bool,
    /// The base learning rate, if it has one of its own instead of the run's; the run's schedule applies to it.
    pub learning_rate: Option<f64>,
}

/// Decides whether a forward pass trains a parameter. [`Param::get`] hands out a graph leaf only then.
pub trait Tracking {
    /// True if gradients of this parameter are wanted.
    fn trains(&self, param: &Param) -> bool;
}

/// A named tensor that outlives forward passes. Clones share the value.
///
/// Ordered, compared and hashed by owner and order of declaration.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    info: ParamInfo,
    value: Var,
}

impl Param {
    /// A parameter that starts as a copy of `value`.
    ///
    /// # Errors
    /// If the value cannot be copied.
    pub fn new(info: ParamInfo, value: &Tensor) -> Result<Self> {
        // `Var::from_tensor` aliases a tensor that is a variable already; a parameter never shares storage.
        let value = Var::from_tensor(&value.detach())?;
        Ok(Self(Arc::new(Inner { info, value })))
    }

    /// The value as this pass may use it: a graph leaf if the pass trains it, else a detached alias.
    pub fn get(&self, pass: &impl Tracking) -> Tensor {
        if self.0.info.kind == Kind::Trained && pass.trains(self) {
            self.0.value.as_tensor().clone()
        } else {
            self.value()
        }
    }

    /// A detached alias of the value: it changes when the parameter is set.
    #[must_use]
    pub fn value(&self) -> Tensor {
        self.0.value.as_detached_tensor()
    }

    /// A copy of the value, which later updates leave alone.
    ///
    /// # Errors
    /// If the copy cannot be allocated.
    pub fn snapshot(&self) -> Result<Tensor> {
        Ok(self.value().copy()?)
    }

    /// Overwrites the value in place, from whichever device.
    ///
    /// # Errors
    /// If `value` has another shape or dtype; the parameter is then unchanged.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.shape() != self.0.value.shape() {
            return Err(Error::Shape {
                op: "Param::set",
                what: "the new value",
                got: value.dims().to_vec(),
                expected: format!("{:?} ({})", self.0.value.dims(), self.0.info.name),
            });
        }
        let value = value.detach().to_device(self.0.value.device())?;
        Ok(self.0.value.set(&value)?)
    }

    /// Lets `change` overwrite the numbers, in place if they are on the CPU; else they come here and go back. It must not read or set this parameter itself: it would wait for
    /// its own end.
    ///
    /// # Errors
    /// If the parameter is of another dtype; it is then unchanged.
    pub fn change<T: Float>(&self, change: impl FnOnce(&mut [T])) -> Result<()> {
        if self.dtype() != T::DTYPE {
            let (held, asked) = (self.dtype().as_str(), T::DTYPE.as_str());
            let what = format!("`{}` has dtype {held}, expected {asked}", self.name());
            let op = "Param::change";
            return Err(Error::Argument { op, what });
        }
        if !self.device().is_cpu() {
            let mut numbers = data::<T>(&self.0.value.to_device(&Device::Cpu)?)?.to_vec();
            change(&mut numbers);
            return self.set(&Tensor::from_vec(numbers, self.shape(), &Device::Cpu)?);
        }
        let change = Change(Cell::new(Some(change)), PhantomData);
        Ok(self.0.value.inplace_op1(&change)?)
    }

    /// What was declared.
    #[must_use]
    pub fn info(&self) -> &ParamInfo {
        &self.0.info
    }

    /// The key on disk, see [`ParamInfo::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.info.name
    }

    /// The shape of the value.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        self.0.value.shape()
    }

    /// The dtype of the value.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.0.value.dtype()
    }

    /// Where the value lies.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.0.value.device()
    }

    /// The number of scalars.
    #[must_use]
    pub fn elem_count(&self) -> usize {
        self.0.value.elem_count()
    }

    pub(crate) fn leaf(&self) -> &Tensor {
        self.0.value.as_tensor()
    }

    fn key(&self) -> (&str, usize) {
        (&self.0.info.owner, self.0.info.index)
    }
}

impl PartialEq for Param {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Param {}

impl PartialOrd for Param {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Param {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Param({}, {:?})", self.0.info.name, self.shape())
    }
}

/// What changes a parameter in place, once.
struct Change<F, T>(Cell<Option<F>>, PhantomData<T>);

impl<T: Float, F: FnOnce(&mut [T])> InplaceOp1 for Change<F, T> {
    fn name(&self) -> &'static str {
        "Param::change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = layout.contiguous_offsets();
        match (T::slice_mut(storage), range, self.0.take()) {
            (Some(numbers), Some((start, end)), Some(change)) => {
                change(&mut numbers[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("{}: a parameter is contiguous", self.name()),
        }
    }
}
