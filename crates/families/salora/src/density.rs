//! The expected density, the penalty that holds it to its target, and the orthogonality term.

use crate::{BudgetUnit, HardConcrete};
use candle_core::{Device, Tensor};
use lowrank_adapter::Result;
use lowrank_ops as ops;

/// The ranks of one module.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranks {
    /// How many numbers a rank has, n_out + n_in.
    pub cost: usize,
    /// phi of each.
    pub phi: Vec<f64>,
}

impl BudgetUnit {
    /// What one rank of a module counts that has `cost` numbers a rank.
    #[must_use]
    pub const fn cost(self, cost: usize) -> usize {
        match self {
            Self::Parameters => cost,
            Self::Ranks => 1,
        }
    }

    /// What each rank is of all ranks together, module by module: the sum is 1. Modules are (cost, ranks).
    #[must_use]
    pub fn shares(self, modules: impl Iterator<Item = (usize, usize)> + Clone) -> Vec<f64> {
        let costs = modules.flat_map(|(cost, ranks)| std::iter::repeat_n(self.cost(cost), ranks));
        let all: usize = costs.clone().sum();
        costs.map(|cost| cost as f64 / all as f64).collect()
    }
}

/// C, the expected density of ranks that are not 0.
#[must_use]
pub fn expected_density(modules: &[Ranks], unit: BudgetUnit, gates: HardConcrete) -> f64 {
    let shares = unit.shares(modules.iter().map(|ranks| (ranks.cost, ranks.phi.len())));
    let phi = modules.iter().flat_map(|ranks| &ranks.phi);
    let open = phi
        .zip(shares)
        .map(|(phi, share)| share * gates.open_at(*phi));
    open.sum()
}

/// (C - b)² as a scalar with a gradient in `phi`, the tensors `[r]` of all modules; `shares` has a number for each rank.
///
/// # Errors
/// If there are not as many shares as ranks.
pub fn density_gap(
    phi: &[Tensor],
    shares: &[f64],
    target: f64,
    gates: HardConcrete,
) -> Result<Tensor> {
    let phi = Tensor::cat(phi, 0)?;
    let shares = Tensor::new(shares, &Device::Cpu)?;
    let shares = shares.to_dtype(phi.dtype())?.to_device(phi.device())?;
    let density = ops::sum_all(&(gates.open(&phi)? * shares)?)?;
    Ok((density - target)?.sqr()?)
}

/// ||PᵀP - I||² + ||QQᵀ - I||² of one module, `p` `[n_out, r]` and `q` `[r, n_in]`, as a scalar.
///
/// # Errors
/// If the ranks differ.
pub fn orthogonality(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let grams = [p.t()?.matmul(p)?, q.matmul(&q.t()?)?];
    let unit = Tensor::eye(q.dim(0)?, q.dtype(), q.device())?;
    let [of_p, of_q] = grams.map(|gram| Ok(ops::sum_all(&(gram - &unit)?.sqr()?)?));
    let of_p: Result<Tensor> = of_p;
    Ok((of_p? + of_q?)?)
}
