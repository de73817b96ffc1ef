//! AdaLoRA's score: smoothed sensitivity times its uncertainty.

use crate::score::{Components, Score};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Param, Probe, State};
use lowrank_ops::{Float, Grads, data};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// For every number p of a component with gradient g: ipt = |p g|, I = β₁ I + (1 - β₁) ipt,
/// U = β₂ U + (1 - β₂) |ipt - I| with the new I; both start at 0. A slot's score is the sum, over the site's tensors, of
/// the mean of I U over the slot's part (AdaLoRA, Zhang et al. 2023, Eqs. 8 to 11, as PEFT computes them).
///
/// It takes p after the update and g from before it, as PEFT does.
#[derive(Debug, Clone)]
pub struct Sensitivity {
    beta1: f64,
    beta2: f64,
    averages: BTreeMap<Param, Averages>,
}

/// `[elements]` each, in the tensor's dtype.
#[derive(Debug, Clone)]
enum Averages {
    F32(Pair<f32>),
    F64(Pair<f64>),
}

#[derive(Debug, Clone)]
struct Pair<T> {
    importance: Vec<T>,
    uncertainty: Vec<T>,
}

const IMPORTANCE: &str = "importance.";
const UNCERTAINTY: &str = "uncertainty.";

impl Sensitivity {
    /// Both averages 0 for every number of the components; each β in [0, 1).
    ///
    /// # Errors
    /// If a tensor is neither f32 nor f64.
    pub fn new(sites: &[Components], beta1: f64, beta2: f64) -> Result<Self> {
        let params = sites.iter().flat_map(|site| &site.params);
        let averages = params.map(|param| Ok((param.clone(), Averages::zeros(param)?)));
        Ok(Self {
            beta1,
            beta2,
            averages: averages.collect::<Result<_>>()?,
        })
    }
}

impl Averages {
    fn zeros(param: &Param) -> Result<Self> {
        let len = param.elem_count();
        match param.dtype() {
            DType::F32 => Ok(Self::F32(Pair::zeros(len))),
            DType::F64 => Ok(Self::F64(Pair::zeros(len))),
            other => Err(Error::State {
                what: format!("`{}` is {}", param.name(), other.as_str()),
            }),
        }
    }
}

impl<T: Float> Pair<T> {
    fn zeros(len: usize) -> Self {
        Self {
            importance: vec![T::ZERO; len],
            uncertainty: vec![T::ZERO; len],
        }
    }

    fn observe(&mut self, value: &Tensor, grad: &Tensor, beta1: f64, beta2: f64) -> Result<()> {
        let (value, grad) = (data::<T>(value)?, data::<T>(grad)?);
        let absolute = |number: T| if number < T::ZERO { -number } else { number };
        let (keep1, new1) = (T::from_f64(beta1), T::from_f64(1.0 - beta1));
        let (keep2, new2) = (T::from_f64(beta2), T::from_f64(1.0 - beta2));
        let averages = self.importance.iter_mut().zip(&mut self.uncertainty);
        for ((importance, uncertainty), (&value, &grad)) in
            averages.zip(value.iter().zip(grad.iter()))
        {
            let sensitivity = absolute(value * grad);
            *importance = *importance * keep1 + sensitivity * new1;
            *uncertainty = *uncertainty * keep2 + absolute(sensitivity - *importance) * new2;
        }
        Ok(())
    }

    /// The mean of I U over each slot's part, for a tensor of `outer` x `slots` x `inner` numbers.
    fn means(&self, outer: usize, slots: usize, inner: usize) -> Vec<f64> {
        let mut sums = vec![0.0; slots];
        let pairs = self.importance.iter().zip(&self.uncertainty);
        let products: Vec<f64> = pairs
            .map(|(&importance, &uncertainty)| (importance * uncertainty).to_f64())
            .collect();
        for (at, part) in products.chunks(inner.max(1)).enumerate() {
            sums[at % slots] += part.iter().sum::<f64>();
        }
        let count = (outer * inner) as f64;
        sums.iter().map(|sum| sum / count).collect()
    }

    fn forget(&mut self, slots: usize, inner: usize, forgotten: &[usize]) {
        for numbers in [&mut self.importance, &mut self.uncertainty] {
            for (at, part) in numbers.chunks_mut(inner.max(1)).enumerate() {
                if forgotten.contains(&(at % slots)) {
                    part.fill(T::ZERO);
                }
            }
        }
    }
}

/// How many numbers lie before, along and behind the axis of ranks.
fn extents(param: &Param) -> (usize, usize, usize) {
    let dims = param.shape().dims();
    let axis = param.info().rank_axis.unwrap_or_default();
    let product = |dims: &[usize]| dims.iter().product();
    (
        product(&dims[..axis]),
        dims[axis],
        product(&dims[axis + 1..]),
    )
}

impl Score for Sensitivity {
    fn observe(&mut self, _: &[Components], grads: &Grads) -> Result<()> {
        let (beta1, beta2) = (self.beta1, self.beta2);
        let work: Vec<_> = self.averages.iter_mut().collect();
        work.into_par_iter().try_for_each(|(param, averages)| {
            // A tensor that is not reached in this step (none of its slots lives) is not sensitive.
            let grad = match grads.get(param) {
                Some(grad) => grad.contiguous()?,
                None => param.value().zeros_like()?,
            };
            let value = param.value();
            match averages {
                Averages::F32(pair) => pair.observe(&value, &grad, beta1, beta2),
                Averages::F64(pair) => pair.observe(&value, &grad, beta1, beta2),
            }
        })
    }

    fn scores(&mut self, sites: &[Components], _: &mut dyn Probe) -> Result<Vec<Vec<f64>>> {
        let of_site = |site: &Components| -> Result<Vec<f64>> {
            let mut sum: Vec<f64> = Vec::new();
            for param in &site.params {
                let (outer, slots, inner) = extents(param);
                let averages = self.averages.get(param).ok_or_else(|| Error::State {
                    what: format!("nothing is known of `{}`", param.name()),
                })?;
                let means = match averages {
                    Averages::F32(pair) => pair.means(outer, slots, inner),
                    Averages::F64(pair) => pair.means(outer, slots, inner),
                };
                sum.resize(sum.len().max(means.len()), 0.0);
                for (sum, mean) in sum.iter_mut().zip(means) {
                    *sum += mean;
                }
            }
            Ok(sum)
        };
        sites.par_iter().map(of_site).collect()
    }

    fn forget(&mut self, site: &Components, forgotten: &[usize]) -> Result<()> {
        for param in &site.params {
            let (_, slots, inner) = extents(param);
            match self.averages.get_mut(param) {
                Some(Averages::F32(pair)) => pair.forget(slots, inner, forgotten),
                Some(Averages::F64(pair)) => pair.forget(slots, inner, forgotten),
                None => {}
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        for (param, averages) in &self.averages {
            let [importance, uncertainty] = match averages {
                Averages::F32(pair) => pair.tensors(param)?,
                Averages::F64(pair) => pair.tensors(param)?,
            };
            let name = param.name();
            state
                .tensors
                .insert(format!("{IMPORTANCE}{name}"), importance);
            state
                .tensors
                .insert(format!("{UNCERTAINTY}{name}"), uncertainty);
        }
        Ok(state)
    }

    fn restore(&mut self, mut state: State) -> Result<()> {
        for (param, averages) in &mut self.averages {
            let mut take = |prefix: &str| {
                let name = format!("{prefix}{}", param.name());
                let tensor = state.tensors.remove(&name);
                let fits = |tensor: &Tensor| {
                    tensor.shape() == param.shape() && tensor.dtype() == param.dtype()
                };
                tensor.filter(fits).ok_or_else(|| Error::State {
                    what: format!("tensor `{name}` is missing, or of another shape or dtype"),
                })
            };
            let (importance, uncertainty) = (take(IMPORTANCE)?, take(UNCERTAINTY)?);
            match averages {
                Averages::F32(pair) => *pair = Pair::read(&importance, &uncertainty)?,
                Averages::F64(pair) => *pair = Pair::read(&importance, &uncertainty)?,
            }
        }
        match state.tensors.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::State {
                what: format!("tensor `{name}` belongs to no component"),
            }),
        }
    }
}

impl<T: Float> Pair<T> {
    fn tensors(&self, param: &Param) -> Result<[Tensor; 2]> {
        let device = &candle_core::Device::Cpu;
        let tensor = |numbers: &Vec<T>| Tensor::from_vec(numbers.clone(), param.shape(), device);
        Ok([tensor(&self.importance)?, tensor(&self.uncertainty)?])
    }

    fn read(importance: &Tensor, uncertainty: &Tensor) -> Result<Self> {
        Ok(Self {
            importance: importance.flatten_all()?.to_vec1()?,
            uncertainty: uncertainty.flatten_all()?.to_vec1()?,
        })
    }
}
