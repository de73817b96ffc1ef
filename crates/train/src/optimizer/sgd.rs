//! Stochastic gradient descent with torch's arithmetic, keys and defaults.

use super::elements::{Elements, Now, Root, Rule};
use super::{Algorithm, Chosen, Listed, NOT_NEGATIVE, Optimizer, Updated, not_negative};
use crate::error::Result;
use crate::keys::Keys;
use lowrank_ops::{leveled, simd::Level};
use toml::Value;

/// The constants of SGD; the defaults are torch's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sgd {
    /// How much of the direction of the last step is kept; with 0 there is no direction to keep in memory.
    pub momentum: f64,
    /// The share of a gradient that does not enter the direction; a tensor's first one enters whole.
    pub dampening: f64,
    /// Whether a step looks ahead along its direction; only with momentum, and without dampening.
    pub nesterov: bool,
    /// This share of each value is added to its gradient.
    pub weight_decay: f64,
}

pub(super) const LISTED: Listed = Listed {
    name: "sgd",
    keys: &["momentum", "dampening", "nesterov", "weight_decay"],
    read: |keys| Ok(Chosen::new(read(keys)?)),
};

fn read(keys: &mut Keys<'_>) -> Result<Sgd> {
    let mut number = |key| keys.number(key, NOT_NEGATIVE, not_negative);
    let sgd = Sgd {
        momentum: number("momentum")?.unwrap_or_default(),
        dampening: number("dampening")?.unwrap_or_default(),
        weight_decay: number("weight_decay")?.unwrap_or_default(),
        nesterov: keys.boolean("nesterov")?.unwrap_or_default(),
    };
    if sgd.nesterov && (sgd.momentum == 0.0 || sgd.dampening != 0.0) {
        let expected = "false, or `train.momentum` above 0 and `train.dampening` 0";
        return Err(keys.wrong("nesterov", &true.into(), expected));
    }
    Ok(sgd)
}

impl Algorithm for Sgd {
    fn name(&self) -> &'static str {
        LISTED.name
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("momentum", self.momentum.into()),
            ("dampening", self.dampening.into()),
            ("nesterov", self.nesterov.into()),
            ("weight_decay", self.weight_decay.into()),
        ]
    }

    fn start(&self, updated: &Updated<'_>) -> Result<Box<dyn Optimizer>> {
        Elements::of_all(*self, self.weight_decay, updated)
    }
}

/// What the kernel needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<T> {
    factor: T,
    decay: T,
    rate: T,
    /// The share of the last direction that is kept, and that of the gradient that is added.
    keep: T,
    add: T,
    /// What the step is made of: so much of the gradient, so much of the direction.
    of_gradient: T,
    of_direction: T,
}

impl At<f64> {
    fn cast<T: Root>(&self) -> At<T> {
        At {
            factor: T::from_f64(self.factor),
            decay: T::from_f64(self.decay),
            rate: T::from_f64(self.rate),
            keep: T::from_f64(self.keep),
            add: T::from_f64(self.add),
            of_gradient: T::from_f64(self.of_gradient),
            of_direction: T::from_f64(self.of_direction),
        }
    }
}

impl Rule for Sgd {
    const NAME: &'static str = "SGD";
    type At = At<f64>;

    fn arrays(&self) -> &'static [&'static str] {
        match self.momentum {
            0.0 => &[],
            _ => &["momentum"],
        }
    }

    fn at(&self, now: &Now, age: u64) -> At<f64> {
        // The first direction is the gradient.
        let (keep, add) = match age {
            1 => (0.0, 1.0),
            _ => (self.momentum, 1.0 - self.dampening),
        };
        let (of_gradient, of_direction) = match self.nesterov {
            true => (1.0, self.momentum),
            false => (0.0, 1.0),
        };
        At {
            factor: now.factor,
            decay: now.decay,
            rate: now.rate,
            keep,
            add,
            of_gradient,
            of_direction,
        }
    }

    fn update<T: Root>(at: &At<f64>, p: &mut [T], g: &[T], [directions, _]: [&mut [T]; 2]) {
        match directions {
            [] => plain(Level::used(), p, g, &at.cast()),
            _ => moved(Level::used(), p, g, directions, &at.cast()),
        }
    }
}

leveled! {
    fn plain<T: Root>(p: &mut [T], g: &[T], at: &At<T>) {
        for (p, &g) in p.iter_mut().zip(g) {
            let g = at.factor * g + at.decay * *p;
            *p -= at.rate * g;
        }
    }
}

leveled! {
    /// The order of operations is that of `torch.optim.SGD` for a single tensor.
    fn moved<T: Root>(p: &mut [T], g: &[T], directions: &mut [T], at: &At<T>) {
        for ((p, &g), direction) in p.iter_mut().zip(g).zip(directions) {
            let g = at.factor * g + at.decay * *p;
            *direction = *direction * at.keep + at.add * g;
            *p -= at.rate * (at.of_gradient * g + at.of_direction * *direction);
        }
    }
}
