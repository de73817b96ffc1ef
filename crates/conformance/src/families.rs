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

/// What each token counts for in a mean over the pass's tokens: padding nothing. None if the pass runs no model.
fn shares(pass: &Pass) -> Option<Vec<f64>> {
    let tokens = pass.tokens()?;
    let count = tokens.count() as f64;
    let share = |&segment: &u32| f64::from(u8::from(segment != 0)) / count;
    Some(tokens.segments.iter().map(share).collect())
}

/// Dropout in training only.
fn dropped(x: &Tensor, p: Probability, path: &str, pass: &Pass) -> Result<Tensor> {
    if !pass.training() {
        return Ok(x.clone());
    }
    let key = pass.rng().purpose(Purpose::Dropout).site(path);
    Ok(ops::dropout(x, p.get(), key)?)
}
