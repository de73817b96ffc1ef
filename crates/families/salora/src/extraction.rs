//! Which ranks stay.

use crate::{BudgetUnit, HardConcrete, Ranks};
use lowrank_adapter::Result;
use lowrank_schedule::Allocator;

/// The ranks with the largest phi: exactly round(b K) of K, or, where a rank counts by its numbers, every rank in this
/// order whose cost still fits into the share b of all. Ties go to the first module, then to its first rank.
///
/// # Errors
/// If a phi is not finite.
pub fn top_budget(modules: &[Ranks], unit: BudgetUnit, density: f64) -> Result<Vec<Vec<bool>>> {
    let of_module = |ranks: &Ranks| unit.cost(ranks.cost) * ranks.phi.len();
    let share = density * modules.iter().map(of_module).sum::<usize>() as f64;
    let phi: Vec<Vec<f64>> = modules.iter().map(|ranks| ranks.phi.clone()).collect();
    let allocator = Allocator::default();
    Ok(match unit {
        BudgetUnit::Ranks => allocator.top(&phi, share.round() as usize)?,
        BudgetUnit::Parameters => {
            let costs: Vec<f64> = modules.iter().map(|ranks| ranks.cost as f64).collect();
            allocator.top_by_cost(&phi, &costs, share)?
        }
    })
}

/// The ranks whose test-time gate is above 0.
#[must_use]
pub fn positive(modules: &[Ranks], gates: HardConcrete) -> Vec<Vec<bool>> {
    let of_module = |ranks: &Ranks| {
        let phi = ranks.phi.iter();
        phi.map(|&phi| gates.settled(phi) > 0.0).collect()
    };
    modules.iter().map(of_module).collect()
}
