//! Which ranks stay.

use crate::{BudgetUnit, HardConcrete, Ranks};

/// The ranks with the largest phi: exactly round(b K) of K, or, where a rank counts by its numbers, every rank in this
/// order whose cost still fits into the share b of all. Ties go to the first module, then to its first rank.
#[must_use]
pub fn top_budget(modules: &[Ranks], unit: BudgetUnit, density: f64) -> Vec<Vec<bool>> {
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (module, ranks) in modules.iter().enumerate() {
        order.extend((0..ranks.phi.len()).map(|rank| (module, rank)));
    }
    let phi = |&(module, rank): &(usize, usize)| modules[module].phi[rank];
    // The sort is stable.
    order.sort_by(|one, other| phi(other).total_cmp(&phi(one)));
    let all: usize = order
        .iter()
        .map(|&(module, _)| unit.cost(modules[module].cost))
        .sum();
    let share = density * all as f64;
    let mut left = match unit {
        BudgetUnit::Ranks => share.round() as usize,
        // A share that is a whole number but for rounding.
        BudgetUnit::Parameters => (share + 1e-6).floor() as usize,
    };
    let mut keep: Vec<Vec<bool>> = modules
        .iter()
        .map(|ranks| vec![false; ranks.phi.len()])
        .collect();
    for (module, rank) in order {
        let cost = unit.cost(modules[module].cost);
        if cost <= left {
            left -= cost;
            keep[module][rank] = true;
        }
    }
    keep
}

/// The ranks whose test-time gate is above 0.
#[must_use]
pub fn positive(modules: &[Ranks], gates: HardConcrete) -> Vec<Vec<bool>> {
    let of_module = |ranks: &Ranks| {
        ranks
            .phi
            .iter()
            .map(|&phi| gates.settled(phi) > 0.0)
            .collect()
    };
    modules.iter().map(of_module).collect()
}
