//! Which ranks live, from their scores.

use crate::{Error, Result};

/// Limits of every decision, and the decisions. Scores are by site and slot; a higher one is worth more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allocator {
    /// No site gets fewer ranks than this, if it has as many.
    pub floor: usize,
    /// No site gets more than this many ranks; none: as many as it has slots.
    pub ceilings: Option<Vec<usize>>,
}

/// What [`Allocator::reallocate`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moves {
    /// The ranks that are removed, as (site, slot), the least first.
    pub removed: Vec<(usize, usize)>,
    /// How many ranks each site gains.
    pub added: Vec<usize>,
}

impl Allocator {
    /// The `budget` best ranks of all sites, within the limits. Among equals the earlier site, then the earlier slot, is kept.
    /// Where floors ask for more than the budget, floors count.
    ///
    /// # Errors
    /// If a score is not finite, or there is not a ceiling a site.
    pub fn top(&self, scores: &[Vec<f64>], budget: usize) -> Result<Vec<Vec<bool>>> {
        let costs = vec![1.0; scores.len()];
        self.top_by_cost(scores, &costs, budget as f64)
    }

    /// The best ranks whose costs together fit into a budget: from the best down, each is kept that still fits. A site's
    /// ranks cost the same. Floors come first. Among equals the earlier site, then the earlier slot, is kept.
    ///
    /// # Errors
    /// As [`top`](Self::top), or if there is not a cost a site.
    pub fn top_by_cost(
        &self,
        scores: &[Vec<f64>],
        costs: &[f64],
        budget: f64,
    ) -> Result<Vec<Vec<bool>>> {
        same("costs of sites", costs.len(), scores.len())?;
        let mut order = ordered(scores, |_, _| true)?;
        // The sort is stable: among equals the earlier one stays in front.
        order.sort_by(|one, other| other.0.total_cmp(&one.0));
        let mut kept: Vec<Vec<bool>> = scores.iter().map(|site| vec![false; site.len()]).collect();
        let mut counts = vec![0; scores.len()];
        let mut left = budget;
        for floors in [true, false] {
            for &(_, site, slot) in &order {
                let fits = match floors {
                    true => counts[site] < self.floor,
                    // Sums of costs are rounded; a budget that is a sum of them must hold them.
                    false => costs[site] <= left + 1e-9 * budget.abs(),
                };
                if fits && !kept[site][slot] && counts[site] < self.ceiling(scores, site)? {
                    kept[site][slot] = true;
                    counts[site] += 1;
                    left -= costs[site];
                }
            }
        }
        Ok(kept)
    }

    /// Moves ranks (AB-LoRA, Liu et al. 2024, section 3.3): the `count` live ones with the least scores are removed, among
    /// equals the earlier site's, then the earlier slot's, and as many are added to the sites that lost none and had some,
    /// evenly, the better ones on average first. If there is no such site, nothing is added. Floors keep ranks from being
    /// removed, ceilings pass additions on to the next site.
    ///
    /// # Errors
    /// As [`top`](Self::top), or if `live` is of another shape than `scores`.
    pub fn reallocate(
        &self,
        scores: &[Vec<f64>],
        live: &[Vec<bool>],
        count: usize,
    ) -> Result<Moves> {
        same("sites with a mask", live.len(), scores.len())?;
        for (scores, live) in scores.iter().zip(live) {
            same("slots with a mask", live.len(), scores.len())?;
        }
        let mut order = ordered(scores, |site, slot| live[site][slot])?;
        order.sort_by(|one, other| one.0.total_cmp(&other.0));
        let ranks = |site: usize| live[site].iter().filter(|live| **live).count();
        let before: Vec<usize> = (0..scores.len()).map(ranks).collect();
        let mut after = before.clone();
        let mut removed = Vec::new();
        for (_, site, slot) in order {
            if removed.len() < count && after[site] > self.floor {
                after[site] -= 1;
                removed.push((site, slot));
            }
        }
        let mean = |site: usize| {
            let scores = scores[site].iter().zip(&live[site]);
            let sum: f64 = scores
                .filter(|(_, live)| **live)
                .map(|(score, _)| score)
                .sum();
            sum / before[site] as f64
        };
        let unpruned =
            (0..scores.len()).filter(|&site| before[site] > 0 && after[site] == before[site]);
        let mut unpruned: Vec<(f64, usize)> = unpruned.map(|site| (mean(site), site)).collect();
        unpruned.sort_by(|one, other| other.0.total_cmp(&one.0));
        let mut added = vec![0; scores.len()];
        let mut left = removed.len();
        // Round by round, one for each: what divides evenly, and the remainder to the best.
        while left > 0 {
            let start = left;
            for &(_, site) in &unpruned {
                if left > 0 && after[site] < self.ceiling(scores, site)? {
                    added[site] += 1;
                    after[site] += 1;
                    left -= 1;
                }
            }
            if left == start {
                break;
            }
        }
        Ok(Moves { removed, added })
    }

    fn ceiling(&self, scores: &[Vec<f64>], site: usize) -> Result<usize> {
        match &self.ceilings {
            None => Ok(scores[site].len()),
            Some(ceilings) => {
                same("ceilings of sites", ceilings.len(), scores.len())?;
                Ok(ceilings[site].min(scores[site].len()))
            }
        }
    }
}

/// PEFT's rule for AdaLoRA: with `k` ranks too many, whatever scores no more than the k-th least is masked. Equals at the
/// threshold fall together, so that fewer than `budget` may be left.
///
/// # Errors
/// If a score is not finite.
pub fn above_threshold(scores: &[Vec<f64>], budget: usize) -> Result<Vec<Vec<bool>>> {
    let mut order = ordered(scores, |_, _| true)?;
    order.sort_by(|one, other| one.0.total_cmp(&other.0));
    let excess = order.len().saturating_sub(budget);
    let threshold = match excess {
        0 => f64::NEG_INFINITY,
        excess => order[excess - 1].0,
    };
    let keep = |site: &Vec<f64>| site.iter().map(|&score| score > threshold).collect();
    Ok(scores.iter().map(keep).collect())
}

/// Finite scores with site and slot, in that order.
fn ordered(
    scores: &[Vec<f64>],
    counts: impl Fn(usize, usize) -> bool,
) -> Result<Vec<(f64, usize, usize)>> {
    let mut order = Vec::new();
    for (site, scores) in scores.iter().enumerate() {
        for (slot, &score) in scores.iter().enumerate() {
            if !counts(site, slot) {
                continue;
            }
            if !score.is_finite() {
                return Err(Error::NotFinite { site, slot, score });
            }
            order.push((score, site, slot));
        }
    }
    Ok(order)
}

fn same(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Length {
        what,
        got,
        expected,
    })
}
