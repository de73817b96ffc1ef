//! What lives: worked tables, and what holds of random scores.

use lowrank_schedule::{Allocator, Error, above_threshold};
use proptest::prelude::*;

/// Masks in which every slot lives.
fn all(scores: &[Vec<f64>]) -> Vec<Vec<bool>> {
    scores.iter().map(|site| vec![true; site.len()]).collect()
}

/// Room for as many more slots as `more` in each site, none of which lives.
fn with_room(scores: &[Vec<f64>], more: usize) -> (Vec<Vec<f64>>, Vec<Vec<bool>>) {
    let mut live = all(scores);
    let mut scores = scores.to_vec();
    for (scores, live) in scores.iter_mut().zip(&mut live) {
        // A score of a slot that does not live means nothing.
        scores.extend(vec![f64::NAN; more]);
        live.extend(vec![false; more]);
    }
    (scores, live)
}

#[test]
fn adaloras_threshold_lets_equals_fall_together() {
    let scores = [vec![0.1, 0.5, 0.3], vec![0.3, 0.9, 0.2]];
    let kept = |budget| above_threshold(&scores, budget).unwrap();
    assert_eq!(kept(3), [[false, true, false], [false, true, false]]);
    assert_eq!(kept(4), [[false, true, true], [true, true, false]]);
    assert_eq!(kept(6), [[true; 3]; 2]);
    assert_eq!(kept(0), [[false; 3]; 2]);
}

#[test]
fn additions_go_to_the_best_sites_evenly() {
    let mut scores = vec![vec![0.9], vec![0.5], vec![0.2]];
    scores.push((0..8).map(|slot| 0.01 * f64::from(slot)).collect());
    let (scores, live) = with_room(&scores, 8);
    let moves = Allocator::default().reallocate(&scores, &live, 8).unwrap();
    assert_eq!(moves.added, [3, 3, 2, 0]);
    assert!(moves.removed.iter().all(|&(site, _)| site == 3));
    // Fewer than there are sites: one for each of the best.
    let moves = Allocator::default().reallocate(&scores, &live, 2).unwrap();
    assert_eq!(moves.added, [1, 1, 0, 0]);
}

#[test]
fn the_table_of_the_paper_is_reproduced_over_two_rounds() {
    let scores = [
        vec![0.9, 0.8],
        vec![0.1, 0.7],
        vec![0.05, 0.02],
        vec![0.6, 0.5, 0.55],
        vec![0.3, 0.35],
    ];
    let (mut scores, mut live) = with_room(&scores, 4);
    let allocator = Allocator::default();
    let moves = allocator.reallocate(&scores, &live, 4).unwrap();
    assert_eq!(moves.removed, [(2, 1), (2, 0), (1, 0), (4, 0)]);
    assert_eq!(moves.added, [2, 0, 0, 2, 0]);
    for (site, slot) in moves.removed {
        live[site][slot] = false;
    }
    for (site, count) in moves.added.into_iter().enumerate() {
        for _ in 0..count {
            let free = live[site].iter().position(|live| !live).unwrap();
            (live[site][free], scores[site][free]) = (true, 0.4);
        }
    }
    let ranks = |live: &[Vec<bool>]| -> Vec<usize> {
        let count = |site: &Vec<bool>| site.iter().filter(|live| **live).count();
        live.iter().map(count).collect()
    };
    assert_eq!(ranks(&live), [4, 1, 0, 5, 1]);
    // The next round: the best on average is the one rank of the second site; the emptied site never receives any.
    let moves = allocator.reallocate(&scores, &live, 1).unwrap();
    assert_eq!(moves.removed, [(4, 1)]);
    assert_eq!(moves.added, [0, 1, 0, 0, 0]);
}

#[test]
fn extremes_remove_and_add_what_can_be() {
    let allocator = Allocator::default();
    // Every site loses a rank: nothing is added.
    let scores = [vec![0.1, 0.9], vec![0.2, 0.8]];
    let moves = allocator.reallocate(&scores, &all(&scores), 2).unwrap();
    assert_eq!(
        (moves.removed, moves.added),
        (vec![(0, 0), (1, 0)], vec![0, 0])
    );
    // All equal: the first ones go.
    let scores = vec![vec![0.5; 2]; 3];
    let (scores, live) = with_room(&scores, 3);
    let moves = allocator.reallocate(&scores, &live, 3).unwrap();
    assert_eq!(moves.removed, [(0, 0), (0, 1), (1, 0)]);
    assert_eq!(moves.added, [0, 0, 3]);
    // More than there are.
    let moves = allocator.reallocate(&scores, &live, 60).unwrap();
    assert_eq!((moves.removed.len(), moves.added), (6, vec![0, 0, 0]));
}

#[test]
fn limits_hold_back_and_pass_on() {
    let scores = [vec![0.1, 0.2], vec![0.3, 0.4], vec![0.9], vec![0.8]];
    let (scores, live) = with_room(&scores, 2);
    let allocator = Allocator {
        floor: 1,
        ceilings: Some(vec![4, 4, 2, 3]),
    };
    let moves = allocator.reallocate(&scores, &live, 2).unwrap();
    // The second of the first site is worse than the first of the second, but the last one there.
    assert_eq!(moves.removed, [(0, 0), (1, 0)]);
    assert_eq!(moves.added, [0, 0, 1, 1]);
    let tight = Allocator {
        ceilings: Some(vec![4, 4, 1, 3]),
        ..allocator
    };
    assert_eq!(
        tight.reallocate(&scores, &live, 2).unwrap().added,
        [0, 0, 0, 2]
    );

    let scores = [vec![0.9, 0.8, 0.7], vec![0.1, 0.2], vec![0.6, 0.5]];
    let keep = |floor, ceilings: Option<Vec<usize>>, budget| {
        let kept = Allocator { floor, ceilings }.top(&scores, budget).unwrap();
        let count = |site: &Vec<bool>| site.iter().filter(|kept| **kept).count();
        kept.iter().map(count).collect::<Vec<_>>()
    };
    assert_eq!(keep(0, None, 4), [3, 0, 1]);
    assert_eq!(keep(1, None, 4), [2, 1, 1]);
    assert_eq!(keep(0, Some(vec![1, 2, 2]), 4), [1, 1, 2]);
}

#[test]
fn costs_are_paid_from_the_best_down() {
    let scores = [vec![0.9, 0.2], vec![0.8, 0.7, 0.6]];
    let allocator = Allocator::default();
    // 5 + 10 are paid; 10 more would not fit, a rank of the cheaper site does.
    let kept = allocator.top_by_cost(&scores, &[5.0, 10.0], 22.0).unwrap();
    assert_eq!(kept, [vec![true, true], vec![true, false, false]]);
}

#[test]
fn a_score_that_is_no_number_stops_the_round() {
    let scores = [vec![0.3, 0.4], vec![f64::NAN, 0.2]];
    let error = Allocator::default()
        .reallocate(&scores, &all(&scores), 1)
        .unwrap_err();
    assert!(matches!(
        error,
        Error::NotFinite {
            site: 1,
            slot: 0,
            ..
        }
    ));
    let message = "the score of rank 0 of site 1 is NaN: no ranks can be allocated by it";
    assert_eq!(error.to_string(), message);
    assert!(above_threshold(&scores, 2).is_err());
    assert!(Allocator::default().top(&scores, 2).is_err());
}

fn some_scores() -> impl Strategy<Value = Vec<Vec<f64>>> {
    // Few values, so that there are ties.
    let site = prop::collection::vec((0_u8..12).prop_map(|score| f64::from(score) / 4.0), 0..6);
    prop::collection::vec(site, 1..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn ranks_are_moved_and_not_made(scores in some_scores(), count in 0_usize..20, shift in -3_i8..4) {
        let total: usize = scores.iter().map(Vec::len).sum();
        let (padded, live) = with_room(&scores, 20);
        let allocator = Allocator::default();
        let moves = allocator.reallocate(&padded, &live, count).unwrap();
        let removed = count.min(total);
        prop_assert_eq!(moves.removed.len(), removed);
        let lost: Vec<usize> = (0..scores.len())
            .map(|site| moves.removed.iter().filter(|(of, _)| *of == site).count())
            .collect();
        let untouched: Vec<usize> = (0..scores.len())
            .filter(|&site| lost[site] == 0 && !scores[site].is_empty())
            .collect();
        let added: usize = moves.added.iter().sum();
        prop_assert_eq!(added, if untouched.is_empty() { 0 } else { removed });
        for site in 0..scores.len() {
            prop_assert!(untouched.contains(&site) || moves.added[site] == 0);
        }
        // Better sites get at least as much, and none more than one more than another.
        let mean = |site: usize| scores[site].iter().sum::<f64>() / scores[site].len() as f64;
        for &one in &untouched {
            for &other in &untouched {
                let (a, b) = (moves.added[one], moves.added[other]);
                prop_assert!(a.abs_diff(b) <= 1);
                prop_assert!(mean(one) <= mean(other) || a >= b);
            }
        }
        // What is kept is worth at least what is removed.
        let worst_kept = (0..scores.len())
            .flat_map(|site| (0..scores[site].len()).map(move |slot| (site, slot)))
            .filter(|rank| !moves.removed.contains(rank))
            .map(|(site, slot)| scores[site][slot])
            .fold(f64::INFINITY, f64::min);
        for &(site, slot) in &moves.removed {
            prop_assert!(scores[site][slot] <= worst_kept);
        }
        // Only differences matter.
        let shifted: Vec<Vec<f64>> = padded
            .iter()
            .map(|site| site.iter().map(|score| score + f64::from(shift)).collect())
            .collect();
        prop_assert_eq!(allocator.reallocate(&shifted, &live, count).unwrap(), moves);
    }

    #[test]
    fn the_best_fill_the_budget_within_the_limits(
        scores in some_scores(),
        budget in 0_usize..30,
        floor in 0_usize..3,
        ceiling in 0_usize..7,
    ) {
        let total: usize = scores.iter().map(Vec::len).sum();
        let count = |kept: &[Vec<bool>]| kept.iter().flatten().filter(|kept| **kept).count();
        let kept = Allocator::default().top(&scores, budget).unwrap();
        prop_assert_eq!(count(&kept), budget.min(total));
        let ranked = |wanted: bool| {
            let pairs = scores.iter().flatten().zip(kept.iter().flatten());
            pairs.filter(move |(_, kept)| **kept == wanted).map(|(score, _)| *score)
        };
        let worst = ranked(true).fold(f64::INFINITY, f64::min);
        prop_assert!(ranked(false).all(|score| score <= worst));

        let ceilings = vec![ceiling; scores.len()];
        let limited = Allocator { floor, ceilings: Some(ceilings) };
        let kept = limited.top(&scores, budget).unwrap();
        let room: usize = scores.iter().map(|site| site.len().min(ceiling)).sum();
        let floors: usize = scores.iter().map(|site| site.len().min(ceiling).min(floor)).sum();
        prop_assert_eq!(count(&kept), budget.min(room).max(floors));
        for (site, kept) in scores.iter().zip(&kept) {
            let count = kept.iter().filter(|kept| **kept).count();
            prop_assert!(count <= ceiling && count >= site.len().min(ceiling).min(floor));
        }
    }

    #[test]
    fn a_threshold_leaves_at_most_the_budget(scores in some_scores(), budget in 0_usize..30) {
        let kept = above_threshold(&scores, budget).unwrap();
        let total: usize = scores.iter().map(Vec::len).sum();
        let count = kept.iter().flatten().filter(|kept| **kept).count();
        prop_assert!(count <= budget.min(total));
        // Only equals at the threshold may be missing.
        let dropped: Vec<f64> = scores
            .iter()
            .flatten()
            .zip(kept.iter().flatten())
            .filter_map(|(score, kept)| (!kept).then_some(*score))
            .collect();
        let highest = dropped.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let below = dropped.iter().filter(|score| **score < highest).count();
        prop_assert!(below <= total.saturating_sub(budget));
    }
}
