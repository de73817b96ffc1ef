//! LoRA-FA (arXiv 2308.03303) as PEFT's `create_lorafa_optimizer` has it: A stays as it started, and B follows
//!
//! ```text
//! g' = g (A Aᵀ + 1e-8 I)⁻¹ / s²
//! ```
//!
//! so that the layer's weight moves along its own gradient, projected on the rows of A, whatever their lengths. g' enters
//! the AdamW of older transformers: eps is added before the correction of the second moment, and decay follows the update.
//! Everything else that trains (biases, whole modules) takes the same steps with its own gradient.
//!
//! PEFT computes the product with the inverse in bf16; here it is in f64.

use super::adamw::{self, AdamW};
use super::elements::{Elements, Now, Root, Rule, check_gradient};
use super::{Ages, Algorithm, Chosen, Listed, Optimizer, Updated};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Kind, LORA_B, Pair, Param, Revival};
use lowrank_ops::{Grads, leveled, linalg::svd, simd::Level};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use toml::Value;

/// The constants of LoRA-FA: AdamW's, with another eps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraFa(pub AdamW);

impl Default for LoraFa {
    fn default() -> Self {
        Self(AdamW {
            eps: 1e-6,
            ..AdamW::default()
        })
    }
}

pub(super) const LISTED: Listed = Listed {
    name: "lora_fa",
    keys: adamw::LISTED.keys,
    read: |keys| Ok(Chosen::new(LoraFa(adamw::read(keys, LoraFa::default().0)?))),
};

impl Algorithm for LoraFa {
    fn name(&self) -> &'static str {
        LISTED.name
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        self.0.keys()
    }

    fn start(&self, updated: &Updated<'_>) -> Result<Box<dyn Optimizer>> {
        check_pairs(LISTED.name, updated)?;
        let held = updated.pairs.iter().map(|pair| pair.a.clone()).collect();
        let paces = updated.paces(self.0.weight_decay, &held)?;
        Ok(Box::new(Projected {
            elements: Elements::new(self.0.into(), paces)?,
            pairs: updated.pairs.to_vec(),
            inverses: None,
        }))
    }
}

/// Refuses an adapter whose second factors are not all in pairs of a scale that can be divided by.
fn check_pairs(optimizer: &'static str, updated: &Updated<'_>) -> Result<()> {
    let paired: BTreeSet<&Param> = updated.pairs.iter().map(|pair| &pair.b).collect();
    let refuse = |what: String| Err(Error::Unpaired { optimizer, what });
    let alone = updated.params.iter().find(|param| {
        let info = param.info();
        info.kind == Kind::Trained && info.group == LORA_B && !paired.contains(param)
    });
    if let Some(param) = alone {
        return refuse(format!("`{}` is not of such a product", param.name()));
    }
    match updated.pairs.iter().find(|pair| pair.scale == 0.0) {
        _ if paired.is_empty() => refuse("there is none".into()),
        Some(pair) => refuse(format!(
            "that of `{}` is multiplied by a scale of 0",
            pair.b.name()
        )),
        None => Ok(()),
    }
}

#[derive(Debug)]
struct Projected {
    elements: Elements<Plain>,
    pairs: Vec<Pair>,
    /// One a pair, `[r, r]` in f64. What is frozen has them once; a checkpoint brings another A.
    inverses: Option<Vec<Tensor>>,
}

/// (A Aᵀ + 1e-8 I)⁻¹ / s² in f64. As in torch, directions count as missing if they are shorter than the dtype resolves.
fn inverse(pair: &Pair) -> Result<Tensor> {
    let (a, dtype) = (pair.a.value().to_device(&Device::Cpu)?, pair.a.dtype());
    let a = a.to_dtype(DType::F64)?;
    let rank = a.dim(0)?;
    let damped = (a.matmul(&a.t()?)? + (Tensor::eye(rank, DType::F64, &Device::Cpu)? * 1e-8)?)?;
    let found = svd(&damped, rank)?;
    let resolution = match dtype {
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    let largest = found.values.first().copied().unwrap_or_default();
    let least = resolution * rank as f64 * largest;
    let inverted = found.values.iter().map(|&value| match value > least {
        true => 1.0 / (value * pair.scale * pair.scale),
        false => 0.0,
    });
    let inverted = Tensor::from_iter(inverted, &Device::Cpu)?;
    let right = found.right.t()?.broadcast_mul(&inverted)?;
    Ok(right.matmul(&found.left.t()?)?)
}

impl Optimizer for Projected {
    fn params(&self) -> &[Param] {
        self.elements.params()
    }

    fn update(&mut self, grads: &Grads, factor: f64, learning_rate: f64) -> Result<()> {
        let inverses = match self.inverses.take() {
            Some(inverses) => inverses,
            None => self.pairs.par_iter().map(inverse).collect::<Result<_>>()?,
        };
        let work = self.pairs.par_iter().zip(&inverses);
        let projected = work.map(|(pair, inverse)| {
            let Some(grad) = grads.get(&pair.b) else {
                return Ok(None);
            };
            check_gradient(Plain::NAME, &pair.b, grad)?;
            let grad = grad.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
            Ok(Some(grad.matmul(inverse)?.to_dtype(pair.b.dtype())?))
        });
        let projected: Vec<Option<Tensor>> = projected.collect::<Result<_>>()?;
        let mut grads = grads.clone();
        for (pair, grad) in self.pairs.iter().zip(projected) {
            if let Some(grad) = grad {
                grads.insert(&pair.b, grad);
            }
        }
        self.inverses = Some(inverses);
        self.elements.update(&grads, factor, learning_rate)
    }

    fn restart(&mut self, revival: &Revival) -> Result<()> {
        self.elements.restart(revival)
    }

    fn state(&self) -> Result<(BTreeMap<String, Tensor>, Ages)> {
        self.elements.state()
    }

    fn restore(&mut self, tensors: BTreeMap<String, Tensor>, ages: Ages) -> Result<(), String> {
        self.inverses = None;
        self.elements.restore(tensors, ages)
    }

    fn bytes(&self) -> usize {
        let ranks = self.pairs.iter().map(|pair| pair.b.shape().dims()[1]);
        let inverses: usize = ranks.map(|rank| rank * rank * size_of::<f64>()).sum();
        self.elements.bytes() + inverses
    }
}

/// The AdamW of older transformers.
#[derive(Debug, Clone, Copy)]
struct Plain(AdamW);

impl From<AdamW> for Plain {
    fn from(constants: AdamW) -> Self {
        Self(constants)
    }
}

/// What the kernel needs.
#[derive(Debug, Clone, Copy)]
struct At<T> {
    factor: T,
    beta1: T,
    forget1: T,
    beta2: T,
    forget2: T,
    eps: T,
    step_size: T,
    keep: T,
}

impl At<f64> {
    fn cast<T: Root>(&self) -> At<T> {
        At {
            factor: T::from_f64(self.factor),
            beta1: T::from_f64(self.beta1),
            forget1: T::from_f64(self.forget1),
            beta2: T::from_f64(self.beta2),
            forget2: T::from_f64(self.forget2),
            eps: T::from_f64(self.eps),
            step_size: T::from_f64(self.step_size),
            keep: T::from_f64(self.keep),
        }
    }
}

impl Rule for Plain {
    const NAME: &'static str = "LoRA-FA";
    type At = At<f64>;

    fn arrays(&self) -> &'static [&'static str] {
        self.0.arrays()
    }

    fn at(&self, now: &Now, age: u64) -> At<f64> {
        let (beta1, beta2) = self.0.betas;
        let root = (1.0 - beta2.powf(age as f64)).sqrt();
        At {
            factor: now.factor,
            beta1,
            forget1: 1.0 - beta1,
            beta2,
            forget2: 1.0 - beta2,
            eps: self.0.eps,
            step_size: now.rate * root / (1.0 - beta1.powf(age as f64)),
            keep: 1.0 - now.rate * now.decay,
        }
    }

    fn update<T: Root>(at: &At<f64>, p: &mut [T], g: &[T], [m, v]: [&mut [T]; 2]) {
        plain(Level::used(), p, g, m, v, &at.cast());
    }
}

leveled! {
    fn plain<T: Root>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], at: &At<T>) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = at.factor * g;
            *m = *m * at.beta1 + at.forget1 * g;
            *v = *v * at.beta2 + at.forget2 * g * g;
            *p -= at.step_size * *m / (v.root() + at.eps);
            *p *= at.keep;
        }
    }
}
