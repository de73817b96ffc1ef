//! Families that exist only to prove the traits: one chains its layers, one has a controller that masks and revives,
//! one depends on its input. None of them is worth training.

mod chained;
mod gated;
mod input_dependent;

pub use chained::{Carried, Chained, ChainedConfig};
pub use gated::{Gated, GatedConfig};
pub use input_dependent::{InputDependent, InputDependentConfig};

use candle_core::Tensor;
use lowrank_adapter::{Pass, Probability, Result};
use lowrank_ops as ops;
use lowrank_ops::rng::Purpose;

/// Dropout in training only.
fn dropped(x: &Tensor, p: Probability, path: &str, pass: &Pass) -> Result<Tensor> {
    if !pass.training() {
        return Ok(x.clone());
    }
    let key = pass.rng().purpose(Purpose::Dropout).site(path);
    Ok(ops::dropout(x, p.get(), key)?)
}
