//! Families that exist only to prove the traits: one chains its layers, one has a controller that masks and revives,
//! one depends on its input. None of them is worth training.

mod chained;
mod gated;
mod input_dependent;

pub use chained::{Carried, Chained, ChainedConfig};
pub use gated::{Gated, GatedConfig};
pub use input_dependent::{InputDependent, InputDependentConfig};

use candle_core::Tensor;
use lowrank_adapter::{Pass, Result};
use lowrank_ops as ops;
use lowrank_ops::rng::Purpose;
use std::num::NonZeroU32;

/// Dropout of one number in so many, in training only.
fn dropped(x: &Tensor, one_in: Option<NonZeroU32>, path: &str, pass: &Pass) -> Result<Tensor> {
    match one_in {
        Some(one_in) if pass.training() => {
            let key = pass.rng().purpose(Purpose::Dropout).site(path);
            Ok(ops::dropout(x, 1.0 / f64::from(one_in.get()), key)?)
        }
        _ => Ok(x.clone()),
    }
}
