//! Budgets: worked numbers, and what holds of every one.

use lowrank_schedule::{Budget, Shape, ramp};
use proptest::prelude::*;

#[test]
fn the_cubic_budget_is_adaloras() {
    let budget = Budget {
        first: 24,
        last: 16,
        shape: Shape::Cubic,
        warmup: 10,
        cooldown: 20,
        every: 5,
    };
    let expected = [
        (0, 24, false),
        (10, 24, false),
        (11, 23, false),
        (15, 22, true),
        (20, 21, true),
        (45, 17, true),
        (60, 16, true),
        (79, 16, false),
        (80, 16, true),
        (81, 16, true),
    ];
    for (step, ranks, due) in expected {
        let at = budget.at(step, 100);
        assert_eq!((at.ranks, at.due), (ranks, due), "step {step}");
    }
}

#[test]
fn a_linear_budget_halves_in_the_middle_and_a_constant_one_waits_for_the_cooldown() {
    let linear = Budget {
        first: 40,
        last: 10,
        shape: Shape::Linear,
        warmup: 20,
        cooldown: 20,
        every: 10,
    };
    let ranks = |budget: &Budget, step| budget.at(step, 100).ranks;
    assert_eq!(ranks(&linear, 50), 25);
    assert_eq!(ranks(&linear, 40), 30);
    let constant = Budget {
        shape: Shape::Constant,
        ..linear
    };
    assert_eq!(ranks(&constant, 80), 40);
    assert_eq!(ranks(&constant, 81), 10);
    let never = Budget { every: 0, ..linear };
    assert!((0..=80).all(|step| !never.at(step, 100).due));
}

#[test]
fn a_ramp_is_prilorras() {
    let expected = [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12];
    assert_eq!(ramp(4, 12, 12), expected);
    assert_eq!(expected.iter().sum::<usize>(), 96);
    assert_eq!(ramp(4, 12, 1), [4]);
    assert_eq!(ramp(7, 7, 3), [7, 7, 7]);
    assert_eq!(ramp(9, 3, 4), [9, 7, 5, 3]);
    assert!(ramp(3, 5, 0).is_empty());
}

proptest! {
    #[test]
    fn a_budget_goes_from_first_to_last_and_never_back(
        first in 0_usize..500,
        last in 0_usize..500,
        shape in prop_oneof![Just(Shape::Constant), Just(Shape::Linear), Just(Shape::Cubic)],
        warmup in 0_u64..40,
        cooldown in 0_u64..40,
        every in 0_u64..9,
        total in 1_u64..120,
    ) {
        let budget = Budget { first, last, shape, warmup, cooldown, every };
        let ranks: Vec<usize> = (0..=total).map(|step| budget.at(step, total).ranks).collect();
        prop_assert_eq!(ranks[0], first);
        let (low, high) = (first.min(last), first.max(last));
        prop_assert!(ranks.iter().all(|ranks| (low..=high).contains(ranks)));
        let falls = ranks.windows(2).all(|pair| pair[0] >= pair[1]);
        let rises = ranks.windows(2).all(|pair| pair[0] <= pair[1]);
        prop_assert!((first < last || falls) && (first > last || rises));
        if cooldown > 0 && total > warmup {
            prop_assert_eq!(ranks[total as usize], last);
        }
        prop_assert!((0..=warmup.min(total)).all(|step| !budget.at(step, total).due));
    }

    #[test]
    fn a_ramp_is_monotonic_and_keeps_its_mean(
        first in 0_usize..40,
        last in 0_usize..40,
        layers in 2_usize..50,
    ) {
        let ranks = ramp(first, last, layers);
        prop_assert_eq!((ranks[0], ranks[layers - 1]), (first, last));
        let sum = ranks.iter().sum::<usize>() as f64;
        let exact = (first + last) as f64 * layers as f64 / 2.0;
        prop_assert!((sum - exact).abs() <= layers as f64 / 2.0);
        prop_assert!(ranks.windows(2).all(|pair| (pair[0] <= pair[1]) == (first <= last) || pair[0] == pair[1]));
    }
}
