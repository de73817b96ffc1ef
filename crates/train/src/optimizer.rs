//! AdamW with torch's arithmetic, groups of tensors, and an age for every rank.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Kind, Param, Revival};
use lowrank_ops::{Float, Grads, data, leveled, simd::Level};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The constants of AdamW; the defaults are torch's but for the decay, which is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How fast the two moments forget, each in [0, 1).
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Every step takes this share, times the learning rate, from each value before the update.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// What is different for the tensors of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Multiplies the learning rate.
    pub learning_rate_factor: f64,
    /// Replaces the decay.
    pub weight_decay: Option<f64>,
}

/// The moments of every trained tensor, in the tensor's dtype.
///
/// A tensor with a rank axis has an age for each rank, so that a revived rank starts anew while the others go on;
/// every other tensor has one.
#[derive(Debug)]
pub struct Optimizer {
    constants: AdamW,
    slots: BTreeMap<Param, Slot>,
}

/// The ages of every tensor, by its name.
pub type Ages = BTreeMap<String, Vec<u64>>;

const FIRST: &str = "first.";
const SECOND: &str = "second.";

impl Optimizer {
    /// All moments and ages 0. Of `params` only the trained ones are taken.
    ///
    /// # Errors
    /// If nothing is trained, a group has no tensor, or a tensor is neither f32 nor f64.
    pub fn new(
        params: &[Param],
        constants: AdamW,
        groups: &BTreeMap<String, Group>,
    ) -> Result<Self> {
        let trained = || {
            params
                .iter()
                .filter(|param| param.info().kind == Kind::Trained)
        };
        if trained().next().is_none() {
            return Err(Error::NothingTrained);
        }
        let mut known: Vec<String> = trained()
            .map(|param| param.info().group.to_owned())
            .collect();
        known.sort();
        known.dedup();
        if let Some(group) = groups.keys().find(|group| !known.contains(group)) {
            return Err(Error::UnknownGroup {
                group: group.clone(),
                known,
            });
        }
        let slots = trained().map(|param| {
            let group = groups.get(param.info().group);
            let decay = group
                .and_then(|group| group.weight_decay)
                .unwrap_or(constants.weight_decay);
            let ranks = param
                .info()
                .rank_axis
                .map_or(1, |axis| param.shape().dims()[axis]);
            let slot = Slot {
                factor: group.map_or(1.0, |group| group.learning_rate_factor),
                decay: if param.info().decay { decay } else { 0.0 },
                moments: Moments::zeros(param)?,
                ages: vec![0; ranks],
            };
            Ok((param.clone(), slot))
        });
        Ok(Self {
            constants,
            slots: slots.collect::<Result<_>>()?,
        })
    }

    /// Tensors with a base learning rate of their own differ from the others by the factor between it and the run's.
    /// If the run's is 0, nothing moves.
    #[must_use]
    pub fn relative_to(mut self, learning_rate: f64) -> Self {
        for (param, slot) in &mut self.slots {
            if let Some(own) = param.info().learning_rate
                && learning_rate != 0.0
            {
                slot.factor *= own / learning_rate;
            }
        }
        self
    }

    /// The tensors that are updated, in order of declaration.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.slots.keys()
    }

    /// Updates every tensor that has a gradient, as if gradients were multiplied by `factor`, in one sweep over all of
    /// them; the other tensors stay as they are and do not age.
    ///
    /// # Errors
    /// If a gradient has another shape or dtype than its tensor; nothing is updated then.
    pub fn update(&mut self, grads: &Grads, factor: f64, learning_rate: f64) -> Result<()> {
        let mut work = Vec::with_capacity(grads.len());
        for (param, slot) in &mut self.slots {
            if let Some(grad) = grads.get(param) {
                check_gradient(param, grad)?;
                work.push((param, slot, grad.contiguous()?));
            }
        }
        let constants = &self.constants;
        // Threads that have no tensor left take chunks of the others' tensors.
        work.into_par_iter().try_for_each(|(param, slot, grad)| {
            slot.update(param, &grad, constants, factor, learning_rate)
        })
    }

    /// Moments and ages of revived ranks become 0.
    ///
    /// # Errors
    /// If the tensor is not trained, or its ranks lie along another axis.
    pub fn restart(&mut self, revival: &Revival) -> Result<()> {
        let Revival { param, axis, slots } = revival;
        let refuse =
            |what: &str| lowrank_adapter::Error::Other(format!("`{}` {what}", param.name()));
        let Some(slot) = self.slots.get_mut(param) else {
            return Err(refuse("was revived, and is not trained").into());
        };
        if param.info().rank_axis != Some(*axis)
            || slots.iter().any(|&rank| rank >= slot.ages.len())
        {
            return Err(refuse("was revived along another axis than its ranks'").into());
        }
        let inner = inner(param);
        match &mut slot.moments {
            Moments::F32(pair) => pair.clear(slots, slot.ages.len(), inner),
            Moments::F64(pair) => pair.clear(slots, slot.ages.len(), inner),
        }
        for &rank in slots {
            slot.ages[rank] = 0;
        }
        Ok(())
    }

    /// Everything that a checkpoint needs: moments under the tensors' names, and ages.
    ///
    /// # Errors
    /// If a tensor cannot be allocated.
    pub fn state(&self) -> Result<(BTreeMap<String, Tensor>, Ages)> {
        let (mut tensors, mut ages) = (BTreeMap::new(), Ages::new());
        for (param, slot) in &self.slots {
            let (first, second) = match &slot.moments {
                Moments::F32(pair) => pair.tensors(param)?,
                Moments::F64(pair) => pair.tensors(param)?,
            };
            tensors.insert(format!("{FIRST}{}", param.name()), first);
            tensors.insert(format!("{SECOND}{}", param.name()), second);
            ages.insert(param.name().to_owned(), slot.ages.clone());
        }
        Ok((tensors, ages))
    }

    /// Takes back what [`state`](Self::state) gave; on an error nothing has changed.
    ///
    /// # Errors
    /// Names the tensor that is missing, superfluous, or of another shape or dtype.
    pub fn restore(
        &mut self,
        mut tensors: BTreeMap<String, Tensor>,
        mut ages: Ages,
    ) -> Result<(), String> {
        let mut restored = Vec::new();
        for (param, slot) in &self.slots {
            let name = param.name();
            let mut moment = |prefix: &str| {
                let name = format!("{prefix}{name}");
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
            };
            let (first, second) = (moment(FIRST)?, moment(SECOND)?);
            let moments = Moments::read(&first, &second).map_err(|error| error.to_string())?;
            let ages = ages
                .remove(name)
                .filter(|ages| ages.len() == slot.ages.len());
            let ages = ages.ok_or_else(|| format!("the ages of `{name}` do not fit"))?;
            restored.push((moments, ages));
        }
        if let Some(name) = tensors.keys().chain(ages.keys()).next() {
            return Err(format!("`{name}` belongs to no trained tensor"));
        }
        for (slot, (moments, ages)) in self.slots.values_mut().zip(restored) {
            slot.moments = moments;
            slot.ages = ages;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Slot {
    factor: f64,
    decay: f64,
    moments: Moments,
    /// How many updates, one number a rank or one for all.
    ages: Vec<u64>,
}

#[derive(Debug)]
enum Moments {
    F32(Pair<f32>),
    F64(Pair<f64>),
}

#[derive(Debug)]
struct Pair<T> {
    first: Vec<T>,
    second: Vec<T>,
}

/// How many numbers lie between two of neighbouring ranks.
fn inner(param: &Param) -> usize {
    let dims = param.shape().dims();
    param
        .info()
        .rank_axis
        .map_or(param.elem_count(), |axis| dims[axis + 1..].iter().product())
}

impl Moments {
    fn zeros(param: &Param) -> Result<Self> {
        let len = param.elem_count();
        match param.dtype() {
            DType::F32 => Ok(Self::F32(Pair::zeros(len))),
            DType::F64 => Ok(Self::F64(Pair::zeros(len))),
            other => Err(lowrank_ops::Error::DType {
                op: "AdamW",
                dtype: other.as_str(),
            }
            .into()),
        }
    }

    fn read(first: &Tensor, second: &Tensor) -> Result<Self> {
        Ok(match first.dtype() {
            DType::F64 => Self::F64(Pair::read(first, second)?),
            _ => Self::F32(Pair::read(first, second)?),
        })
    }
}

fn check_gradient(param: &Param, grad: &Tensor) -> Result<()> {
    if grad.shape() != param.shape() {
        return Err(lowrank_ops::Error::Shape {
            op: "AdamW",
            what: "the gradient",
            got: grad.dims().to_vec(),
            expected: format!("{:?} ({})", param.shape().dims(), param.name()),
        }
        .into());
    }
    if grad.dtype() != param.dtype() {
        return Err(lowrank_ops::Error::Argument {
            op: "AdamW",
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

impl Slot {
    fn update(
        &mut self,
        param: &Param,
        grad: &Tensor,
        constants: &AdamW,
        factor: f64,
        learning_rate: f64,
    ) -> Result<()> {
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
        let rate = learning_rate * self.factor;
        let scalars = Scalars {
            constants,
            factor,
            rate,
            keep: 1.0 - rate * self.decay,
        };
        match &mut self.moments {
            Moments::F32(pair) => pair.update(param, grad, &scalars, ages, inner),
            Moments::F64(pair) => pair.update(param, grad, &scalars, ages, inner),
        }
    }
}

struct Scalars<'a> {
    constants: &'a AdamW,
    factor: f64,
    rate: f64,
    keep: f64,
}

/// What depends on the age of a rank.
#[derive(Clone, Copy)]
struct Bias<T> {
    step_size: T,
    root: T,
}

/// A thread gets this many numbers at a time.
const CHUNK: usize = 16_384;

impl<T: Root> Pair<T> {
    fn zeros(len: usize) -> Self {
        Self {
            first: vec![T::ZERO; len],
            second: vec![T::ZERO; len],
        }
    }

    fn read(first: &Tensor, second: &Tensor) -> Result<Self> {
        Ok(Self {
            first: data::<T>(first)?.to_vec(),
            second: data::<T>(second)?.to_vec(),
        })
    }

    fn tensors(&self, param: &Param) -> Result<(Tensor, Tensor)> {
        let tensor = |numbers: &[T]| Tensor::from_slice(numbers, param.shape(), &Device::Cpu);
        Ok((tensor(&self.first)?, tensor(&self.second)?))
    }

    fn clear(&mut self, ranks: &[usize], of: usize, inner: usize) {
        for moment in [&mut self.first, &mut self.second] {
            for (line, numbers) in moment.chunks_mut(inner.max(1)).enumerate() {
                if ranks.contains(&(line % of)) {
                    numbers.fill(T::ZERO);
                }
            }
        }
    }

    fn update(
        &mut self,
        param: &Param,
        grad: &Tensor,
        scalars: &Scalars<'_>,
        ages: &[u64],
        inner: usize,
    ) -> Result<()> {
        let (beta1, beta2) = scalars.constants.betas;
        let biases: Vec<Bias<T>> = ages
            .iter()
            .map(|&age| Bias {
                step_size: T::from_f64(scalars.rate / (1.0 - beta1.powf(age as f64))),
                root: T::from_f64((1.0 - beta2.powf(age as f64)).sqrt()),
            })
            .collect();
        let kernel = Kernel {
            factor: T::from_f64(scalars.factor),
            keep: T::from_f64(scalars.keep),
            forget1: T::from_f64(1.0 - beta1),
            beta2: T::from_f64(beta2),
            forget2: T::from_f64(1.0 - beta2),
            eps: T::from_f64(scalars.constants.eps),
        };
        // Moments live here. What lies on a GPU comes here and goes back: adapters are small.
        let grad = grad.to_device(&Device::Cpu)?.contiguous()?;
        let grad = data::<T>(&grad)?;
        let Self { first, second } = self;
        param.change(|values: &mut [T]| {
            values
                .par_chunks_mut(CHUNK)
                .zip(grad.par_chunks(CHUNK))
                .zip(first.par_chunks_mut(CHUNK))
                .zip(second.par_chunks_mut(CHUNK))
                .enumerate()
                .for_each(|(chunk, (((p, g), m), v))| {
                    let offset = chunk * CHUNK;
                    let mut start = 0;
                    while start < p.len() {
                        let line = (offset + start) / inner;
                        let end = p.len().min((line + 1) * inner - offset);
                        let run = start..end;
                        let (g, m, v) = (&g[run.clone()], &mut m[run.clone()], &mut v[run.clone()]);
                        let bias = biases[line % biases.len()];
                        adamw(Level::used(), &mut p[run], g, m, v, &kernel, bias);
                        start = end;
                    }
                });
        })?;
        Ok(())
    }
}

struct Kernel<T> {
    factor: T,
    keep: T,
    forget1: T,
    beta2: T,
    forget2: T,
    eps: T,
}

leveled! {
    /// The order of operations is that of `torch.optim.AdamW` for a single tensor, and the same at every level.
    fn adamw<T: Root>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], kernel: &Kernel<T>, bias: Bias<T>) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = kernel.factor * g;
            *p *= kernel.keep;
            *m += kernel.forget1 * (g - *m);
            *v = *v * kernel.beta2 + kernel.forget2 * g * g;
            let denominator = v.root() / bias.root + kernel.eps;
            *p -= bias.step_size * *m / denominator;
        }
    }
}

/// The square root, which candle's trait of numbers lacks.
trait Root: Float {
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
