//! How a router uses its experts.

use candle_core::{DType, Tensor};
use lowrank_adapter::Result;

/// How a router uses its experts over some tokens.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lowrank_mor::Usage;
/// let gates = Tensor::new(&[[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]], &Device::Cpu)?;
/// let usage = Usage::of(&gates, Some(&[true, true, false]))?;
/// assert_eq!((usage.tokens, usage.busiest), (2, vec![1.0, 0.0]));
/// # Ok::<(), lowrank_adapter::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// How many tokens there are.
    pub tokens: usize,
    /// P: the mean gate of each expert.
    pub mean: Vec<f64>,
    /// f: the share of tokens whose largest gate is that expert's; the first of equals counts.
    pub busiest: Vec<f64>,
    /// The mean entropy of a token's gates, log N at most.
    pub entropy: f64,
}

impl Usage {
    /// Of the rows of `gates` (.., N) that are `real`, or of all.
    ///
    /// # Errors
    /// If `gates` is not of numbers that can be read.
    pub fn of(gates: &Tensor, real: Option<&[bool]>) -> Result<Self> {
        let experts = gates.dims().last().copied().unwrap_or(0);
        let rows = gates.detach().to_dtype(DType::F64)?.flatten_all()?;
        let rows: Vec<f64> = rows.to_vec1()?;
        let mut usage = Self {
            tokens: 0,
            mean: vec![0.0; experts],
            busiest: vec![0.0; experts],
            entropy: 0.0,
        };
        for (at, gates) in rows.chunks(experts.max(1)).enumerate() {
            if real.is_some_and(|real| !real[at]) {
                continue;
            }
            usage.tokens += 1;
            let mut busiest = 0;
            for (expert, gate) in gates.iter().enumerate() {
                usage.mean[expert] += gate;
                if *gate > 0.0 {
                    usage.entropy -= gate * gate.ln();
                }
                if *gate > gates[busiest] {
                    busiest = expert;
                }
            }
            usage.busiest[busiest] += 1.0;
        }
        let count = usage.tokens.max(1) as f64;
        for sum in usage.mean.iter_mut().chain(&mut usage.busiest) {
            *sum /= count;
        }
        usage.entropy /= count;
        Ok(usage)
    }

    /// N sum f P, which is 1 where all experts are used alike.
    #[must_use]
    pub fn balance(&self) -> f64 {
        let products = self.mean.iter().zip(&self.busiest).map(|(p, f)| p * f);
        self.mean.len() as f64 * products.sum::<f64>()
    }
}
