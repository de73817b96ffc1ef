//! The hard-concrete distribution (Louizos et al. 2018): numbers in [0, 1] that are often exactly 0 or 1.

use candle_core::{Device, Tensor};
use lowrank_adapter::Result;
use lowrank_ops::rng::Key;

/// The distribution of gates given their phi: a concrete one of this temperature, stretched to (gamma, zeta) and cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HardConcrete {
    /// The temperature.
    pub beta: f64,
    /// Where 0 is stretched to, below 0.
    pub gamma: f64,
    /// Where 1 is stretched to, above 1.
    pub zeta: f64,
}

/// How far uniform numbers are kept from 0 and 1, whose logits are infinite.
const MARGIN: f64 = 1e-6;

/// `count` uniform numbers for [`HardConcrete::sample`].
#[must_use]
pub fn uniform(key: Key, count: usize) -> Vec<f64> {
    let mut stream = key.stream();
    let within = |u: f64| MARGIN + (1.0 - 2.0 * MARGIN) * u;
    (0..count).map(|_| within(stream.uniform())).collect()
}

impl HardConcrete {
    /// Samples for `phi` `[r]` from numbers that are uniform in (0, 1): g `[r]`, with a gradient in phi.
    ///
    /// # Errors
    /// If there are not as many numbers as ranks.
    pub fn sample(&self, phi: &Tensor, uniform: &[f64]) -> Result<Tensor> {
        let logits: Vec<f64> = uniform.iter().map(|u| u.ln() - (1.0 - u).ln()).collect();
        let logits = Tensor::new(logits, &Device::Cpu)?;
        let logits = logits.to_dtype(phi.dtype())?.to_device(phi.device())?;
        let s = sigmoid(&((phi + logits)? / self.beta)?)?;
        let stretched = s.affine(self.zeta - self.gamma, self.gamma)?;
        Ok(stretched.clamp(0.0, 1.0)?)
    }

    /// P(g != 0) for `phi` `[r]`, with a gradient in phi.
    ///
    /// # Errors
    /// If a result cannot be allocated.
    pub fn open(&self, phi: &Tensor) -> Result<Tensor> {
        sigmoid(&(phi + self.shift())?)
    }

    /// P(g != 0) = sigma(phi - beta log(-gamma / zeta)).
    #[must_use]
    pub fn open_at(&self, phi: f64) -> f64 {
        sigma(phi + self.shift())
    }

    /// The gate of evaluation, which is not drawn: sigma(phi), stretched and cut.
    #[must_use]
    pub fn settled(&self, phi: f64) -> f64 {
        (sigma(phi) * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)
    }

    fn shift(&self) -> f64 {
        -self.beta * (-self.gamma / self.zeta).ln()
    }
}

fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The logistic function by way of tanh, whose gradient is finite wherever it saturates: that of 1 / (1 + exp(-x)) is 0
/// times infinity for a temperature near 0.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x * 0.5)?.tanh()?.affine(0.5, 0.5)?)
}
