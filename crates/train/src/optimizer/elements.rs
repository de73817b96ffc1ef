//! Updates that treat every number of a tensor alike: in place, in one sweep over all tensors.
//!
//! A tensor with a rank axis has an age for each rank, so that a revived rank starts anew while the others go on; every
//! other tensor has one.

use super::updated::Pace;
use super::{Ages, Optimizer, Updated};
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Param, Revival};
use lowrank_ops::{Float, Grads, data};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How numbers change.
pub(crate) trait Rule: fmt::Debug + Send + Sync {
    /// What messages call it.
    const NAME: &'static str;

    /// What it needs at one moment.
    type At: Copy + Send + Sync;

    /// The arrays that it keeps, each of the tensor's shape: at most two. Each is called so in checkpoints, and the tensor's
    /// name follows.
    fn arrays(&self) -> &'static [&'static str];

    /// For numbers that are updated the `age`th time.
    fn at(&self, now: &Now, age: u64) -> Self::At;

    /// Updates `values` by `grad`; `arrays` are as long, but for those that it does not keep, which are empty.
    fn update<T: Root>(at: &Self::At, values: &mut [T], grad: &[T], arrays: [&mut [T]; ARRAYS]);
}

const ARRAYS: usize = 2;

/// What a step says of a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Multiplies the gradient.
    pub factor: f64,
    /// The learning rate.
    pub rate: f64,
    /// The decay, to be multiplied by the rate.
    pub decay: f64,
}

/// Updates by a rule.
#[derive(Debug)]
pub(crate) struct Elements<R> {
    rule: R,
    params: Vec<Param>,
    /// As many.
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    pace: Pace,
    arrays: Arrays,
    ages: Vec<u64>,
}

/// In the tensor's dtype.
#[derive(Debug)]
enum Arrays {
    F32(Vec<Vec<f32>>),
    F64(Vec<Vec<f64>>),
}

impl<R: Rule + 'static> Elements<R> {
    /// Updates of every tensor of `updated`.
    ///
    /// # Errors
    /// As [`new`](Self::new)'s, and those of [`Updated::paces`].
    pub fn of_all(rule: R, weight_decay: f64, updated: &Updated<'_>) -> Result<Box<dyn Optimizer>> {
        let paces = updated.paces(weight_decay, &BTreeSet::new())?;
        Ok(Box::new(Self::new(rule, paces)?))
    }
}

impl<R: Rule> Elements<R> {
    /// All arrays and ages 0.
    ///
    /// # Errors
    /// If a tensor is neither f32 nor f64.
    pub fn new(rule: R, paces: BTreeMap<Param, Pace>) -> Result<Self> {
        let count = rule.arrays().len();
        debug_assert!(count <= ARRAYS);
        let slots = paces.iter().map(|(param, &pace)| {
            let ranks = param.info().rank_axis;
            Ok(Slot {
                pace,
                arrays: Arrays::zeros::<R>(param, count)?,
                ages: vec![0; ranks.map_or(1, |axis| param.shape().dims()[axis])],
            })
        });
        Ok(Self {
            slots: slots.collect::<Result<_>>()?,
            params: paces.into_keys().collect(),
            rule,
        })
    }
}

impl<R: Rule> Optimizer for Elements<R> {
    fn params(&self) -> &[Param] {
        &self.params
    }

    fn update(&mut self, grads: &Grads, factor: f64, learning_rate: f64) -> Result<()> {
        let mut work = Vec::with_capacity(grads.len());
        for (param, slot) in self.params.iter().zip(&mut self.slots) {
            if let Some(grad) = grads.get(param) {
                check_gradient(R::NAME, param, grad)?;
                work.push((param, slot, grad.contiguous()?));
            }
        }
        let rule = &self.rule;
        // Threads that have no tensor left take chunks of the others' tensors.
        work.into_par_iter().try_for_each(|(param, slot, grad)| {
            let now = Now {
                factor,
                rate: learning_rate * slot.pace.factor,
                decay: slot.pace.decay,
            };
            slot.update(rule, param, &grad, &now)
        })
    }

    fn restart(&mut self, revival: &Revival) -> Result<()> {
        let Revival { param, axis, slots } = revival;
        let refuse =
            |what: &str| lowrank_adapter::Error::Other(format!("`{}` {what}", param.name()));
        let Ok(place) = self.params.binary_search(param) else {
            return Err(refuse("was revived, and is not trained").into());
        };
        let slot = &mut self.slots[place];
        let ranks = slot.ages.len();
        if param.info().rank_axis != Some(*axis) || slots.iter().any(|&rank| rank >= ranks) {
            return Err(refuse("was revived along another axis than its ranks'").into());
        }
        match &mut slot.arrays {
            Arrays::F32(arrays) => clear(arrays, slots, ranks, inner(param)),
            Arrays::F64(arrays) => clear(arrays, slots, ranks, inner(param)),
        }
        for &rank in slots {
            slot.ages[rank] = 0;
        }
        Ok(())
    }

    fn state(&self) -> Result<(BTreeMap<String, Tensor>, Ages)> {
        let (mut tensors, mut ages) = (BTreeMap::new(), Ages::new());
        for (param, slot) in self.params.iter().zip(&self.slots) {
            let held = match &slot.arrays {
                Arrays::F32(arrays) => as_tensors(arrays, param)?,
                Arrays::F64(arrays) => as_tensors(arrays, param)?,
            };
            for (array, tensor) in self.rule.arrays().iter().zip(held) {
                tensors.insert(key(array, param), tensor);
            }
            ages.insert(param.name().to_owned(), slot.ages.clone());
        }
        Ok((tensors, ages))
    }

    fn restore(
        &mut self,
        mut tensors: BTreeMap<String, Tensor>,
        mut ages: Ages,
    ) -> Result<(), String> {
        let mut restored = Vec::with_capacity(self.params.len());
        for (param, slot) in self.params.iter().zip(&self.slots) {
            let held = self.rule.arrays().iter().map(|array| {
                let name = key(array, param);
                let tensor = tensors.remove(&name);
                let tensor = tensor.ok_or_else(|| format!("tensor `{name}` is missing"))?;
                if tensor.shape() != param.shape() || tensor.dtype() != param.dtype() {
                    return Err(format!(
                        "tensor `{name}` is {} {:?}, expected {} {:?}",
                        tensor.dtype().as_str(),
                        tensor.dims(),
                        param.dtype().as_str(),
                        param.shape().dims()
                    ));
                }
                Ok(tensor)
            });
            let held: Vec<Tensor> = held.collect::<Result<_, _>>()?;
            let arrays = Arrays::read(param.dtype(), &held).map_err(|error| error.to_string())?;
            let name = param.name();
            let ages = ages
                .remove(name)
                .filter(|ages| ages.len() == slot.ages.len());
            let ages = ages.ok_or_else(|| format!("the ages of `{name}` do not fit"))?;
            restored.push((arrays, ages));
        }
        if let Some(name) = tensors.keys().chain(ages.keys()).next() {
            return Err(format!("`{name}` belongs to no trained tensor"));
        }
        for (slot, (arrays, ages)) in self.slots.iter_mut().zip(restored) {
            slot.arrays = arrays;
            slot.ages = ages;
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let numbers = self.params.iter();
        let numbers = numbers.map(|param| param.elem_count() * param.dtype().size_in_bytes());
        self.rule.arrays().len() * numbers.sum::<usize>()
    }
}

/// Refuses a gradient that is not of its tensor's shape and dtype; `op` is for the message.
pub(crate) fn check_gradient(op: &'static str, param: &Param, grad: &Tensor) -> Result<()> {
    if grad.shape() != param.shape() {
        return Err(lowrank_ops::Error::Shape {
            op,
            what: "the gradient",
            got: grad.dims().to_vec(),
            expected: format!("{:?} ({})", param.shape().dims(), param.name()),
        }
        .into());
    }
    if grad.dtype() != param.dtype() {
        return Err(lowrank_ops::Error::Argument {
            op,
            what: format!(
                "the gradient of `{}` has dtype {}, the tensor has {}",
                param.name(),
                grad.dtype().as_str(),
                param.dtype().as_str()
            ),
        }
        .into());
    }
    Ok(())
}

fn key(array: &str, param: &Param) -> String {
    format!("{array}.{}", param.name())
}

/// How many numbers lie between two of neighbouring ranks.
fn inner(param: &Param) -> usize {
    let dims = param.shape().dims();
    param
        .info()
        .rank_axis
        .map_or(param.elem_count(), |axis| dims[axis + 1..].iter().product())
}

impl Arrays {
    fn zeros<R: Rule>(param: &Param, count: usize) -> Result<Self> {
        let len = param.elem_count();
        match param.dtype() {
            DType::F32 => Ok(Self::F32(vec![vec![0.0; len]; count])),
            DType::F64 => Ok(Self::F64(vec![vec![0.0; len]; count])),
            other => Err(lowrank_ops::Error::DType {
                op: R::NAME,
                dtype: other.as_str(),
            }
            .into()),
        }
    }

    fn read(dtype: DType, tensors: &[Tensor]) -> Result<Self> {
        Ok(match dtype {
            DType::F64 => Self::F64(from_tensors(tensors)?),
            _ => Self::F32(from_tensors(tensors)?),
        })
    }
}

fn from_tensors<T: Float>(tensors: &[Tensor]) -> Result<Vec<Vec<T>>> {
    let tensors = tensors.iter();
    tensors
        .map(|tensor| Ok(data::<T>(tensor)?.to_vec()))
        .collect()
}

fn as_tensors<T: Float>(arrays: &[Vec<T>], param: &Param) -> Result<Vec<Tensor>> {
    let tensor = |numbers: &Vec<T>| Ok(Tensor::from_slice(numbers, param.shape(), &Device::Cpu)?);
    arrays.iter().map(tensor).collect()
}

fn clear<T: Float>(arrays: &mut [Vec<T>], ranks: &[usize], of: usize, inner: usize) {
    for array in arrays {
        for (line, numbers) in array.chunks_mut(inner.max(1)).enumerate() {
            if ranks.contains(&(line % of)) {
                numbers.fill(T::ZERO);
            }
        }
    }
}

impl Slot {
    fn update<R: Rule>(&mut self, rule: &R, param: &Param, grad: &Tensor, now: &Now) -> Result<()> {
        for age in &mut self.ages {
            *age += 1;
        }
        // Ranks differ in age only after a revival.
        let same = self.ages.iter().all(|age| *age == self.ages[0]);
        let (ages, inner) = if same {
            (&self.ages[..self.ages.len().min(1)], param.elem_count())
        } else {
            (&self.ages[..], inner(param))
        };
        let ats: Vec<R::At> = ages.iter().map(|&age| rule.at(now, age)).collect();
        match &mut self.arrays {
            Arrays::F32(arrays) => change::<R, _>(arrays, param, grad, &ats, inner),
            Arrays::F64(arrays) => change::<R, _>(arrays, param, grad, &ats, inner),
        }
    }
}

/// A thread gets this many numbers at a time.
const CHUNK: usize = 16_384;

/// Some numbers of a tensor, and what belongs to them.
struct Piece<'a, T> {
    offset: usize,
    values: &'a mut [T],
    grad: &'a [T],
    arrays: [&'a mut [T]; ARRAYS],
}

fn change<R: Rule, T: Root>(
    arrays: &mut [Vec<T>],
    param: &Param,
    grad: &Tensor,
    ats: &[R::At],
    inner: usize,
) -> Result<()> {
    // Arrays live here. What lies on a GPU comes here and goes back: adapters are small.
    let grad = grad.to_device(&Device::Cpu)?.contiguous()?;
    let grad = data::<T>(&grad)?;
    param.change(|values: &mut [T]| {
        let mut held = arrays.iter_mut().map(|array| array.chunks_mut(CHUNK));
        let mut held: [_; ARRAYS] = std::array::from_fn(|_| held.next());
        let pieces = values.chunks_mut(CHUNK).zip(grad.chunks(CHUNK));
        let pieces = pieces.enumerate().map(|(chunk, (values, grad))| Piece {
            offset: chunk * CHUNK,
            values,
            grad,
            arrays: held
                .each_mut()
                .map(|array| array.as_mut().and_then(Iterator::next).unwrap_or_default()),
        });
        let pieces: Vec<Piece<'_, T>> = pieces.collect();
        pieces.into_par_iter().for_each(|mut piece| {
            let mut start = 0;
            while start < piece.values.len() {
                let line = (piece.offset + start) / inner;
                let end = piece.values.len().min((line + 1) * inner - piece.offset);
                let run = start..end;
                let arrays = piece
                    .arrays
                    .each_mut()
                    .map(|array| array.get_mut(run.clone()).unwrap_or_default());
                let values = &mut piece.values[run.clone()];
                R::update(&ats[line % ats.len()], values, &piece.grad[run], arrays);
                start = end;
            }
        });
    })?;
    Ok(())
}

/// The square root, which candle's trait of numbers lacks.
pub(crate) trait Root: Float {
    fn root(self) -> Self;
}

impl Root for f32 {
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
}

impl Root for f64 {
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
}
