//! AdamW with torch's arithmetic.

use super::elements::{Elements, Now, Root, Rule};
use super::{Algorithm, Chosen, Listed, NOT_NEGATIVE, Optimizer, Updated, not_negative};
use crate::error::Result;
use crate::keys::{Keys, as_number};
use lowrank_ops::{leveled, simd::Level};
use toml::Value;

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

pub(super) const LISTED: Listed = Listed {
    name: "adamw",
    keys: &["betas", "eps", "weight_decay"],
    read: |keys| Ok(Chosen::new(read(keys, AdamW::default())?)),
};

/// The keys that AdamW shares with its relatives.
pub(super) fn read(keys: &mut Keys<'_>, default: AdamW) -> Result<AdamW> {
    let eps = keys.number("eps", "a finite number above 0", |eps| eps > 0.0)?;
    let weight_decay = keys.number("weight_decay", NOT_NEGATIVE, not_negative)?;
    Ok(AdamW {
        betas: betas(keys)?.unwrap_or(default.betas),
        eps: eps.unwrap_or(default.eps),
        weight_decay: weight_decay.unwrap_or(default.weight_decay),
    })
}

fn betas(keys: &mut Keys<'_>) -> Result<Option<(f64, f64)>> {
    let Some(value) = keys.take("betas") else {
        return Ok(None);
    };
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers: Vec<f64> = list.iter().filter_map(as_number).collect();
    match numbers[..] {
        [first, second]
            if list.len() == 2 && (0.0..1.0).contains(&first) && (0.0..1.0).contains(&second) =>
        {
            Ok(Some((first, second)))
        }
        _ => Err(keys.wrong(
            "betas",
            &value,
            "two numbers from 0 to below 1, for example [0.9, 0.999]",
        )),
    }
}

impl Algorithm for AdamW {
    fn name(&self) -> &'static str {
        LISTED.name
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        let (beta1, beta2) = self.betas;
        vec![
            ("betas", Value::Array(vec![beta1.into(), beta2.into()])),
            ("eps", self.eps.into()),
            ("weight_decay", self.weight_decay.into()),
        ]
    }

    fn start(&self, updated: &Updated<'_>) -> Result<Box<dyn Optimizer>> {
        Elements::of_all(*self, self.weight_decay, updated)
    }
}

/// What the kernel needs; the last two depend on the age.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<T> {
    factor: T,
    keep: T,
    forget1: T,
    beta2: T,
    forget2: T,
    eps: T,
    step_size: T,
    root: T,
}

impl At<f64> {
    fn cast<T: Root>(&self) -> At<T> {
        At {
            factor: T::from_f64(self.factor),
            keep: T::from_f64(self.keep),
            forget1: T::from_f64(self.forget1),
            beta2: T::from_f64(self.beta2),
            forget2: T::from_f64(self.forget2),
            eps: T::from_f64(self.eps),
            step_size: T::from_f64(self.step_size),
            root: T::from_f64(self.root),
        }
    }
}

impl Rule for AdamW {
    const NAME: &'static str = "AdamW";
    type At = At<f64>;

    fn arrays(&self) -> &'static [&'static str] {
        &["first", "second"]
    }

    fn at(&self, now: &Now, age: u64) -> At<f64> {
        let (beta1, beta2) = self.betas;
        At {
            factor: now.factor,
            keep: 1.0 - now.rate * now.decay,
            forget1: 1.0 - beta1,
            beta2,
            forget2: 1.0 - beta2,
            eps: self.eps,
            step_size: now.rate / (1.0 - beta1.powf(age as f64)),
            root: (1.0 - beta2.powf(age as f64)).sqrt(),
        }
    }

    fn update<T: Root>(at: &At<f64>, p: &mut [T], g: &[T], [m, v]: [&mut [T]; 2]) {
        adamw(Level::used(), p, g, m, v, &at.cast());
    }
}

leveled! {
    /// The order of operations is that of `torch.optim.AdamW` for a single tensor, and the same at every level.
    fn adamw<T: Root>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], at: &At<T>) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = at.factor * g;
            *p *= at.keep;
            *m += at.forget1 * (g - *m);
            *v = *v * at.beta2 + at.forget2 * g * g;
            let denominator = v.root() / at.root + at.eps;
            *p -= at.step_size * *m / denominator;
        }
    }
}
