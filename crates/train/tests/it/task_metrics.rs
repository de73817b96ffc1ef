//! Metrics equal scikit-learn's and scipy's (golden/task_metrics.py), and have the properties that define them.

use lowrank_train::task_metrics::{
    accuracy, f1, f1_macro, matthews, mean_squared_error, of_classes, of_values, pearson, spearman,
};
use proptest::prelude::*;
use serde_json::Value;

fn golden(part: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(include_str!("../golden/task_metrics.json")).unwrap();
    golden[part].as_array().unwrap().clone()
}

/// A number; NaN is null.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn classes(value: &Value) -> Vec<usize> {
    numbers(value)
        .into_iter()
        .map(|class| class as usize)
        .collect()
}

#[track_caller]
fn near(ours: f64, theirs: &Value, what: &Value) {
    let theirs = number(theirs);
    let same =
        ours.is_nan() && theirs.is_nan() || (ours - theirs).abs() < 1e-12 * theirs.abs().max(1.0);
    assert!(same, "{ours} and {theirs}: {what}");
}

#[test]
fn classes_are_judged_as_scikit_learn_does() {
    let cases = golden("classes");
    assert!(cases.len() > 10);
    for case in cases {
        let (given, there) = (classes(&case["predictions"]), classes(&case["answers"]));
        let count = case["classes"].as_u64().unwrap() as usize;
        let metrics = of_classes(&given, &there, count);
        assert_eq!(
            metrics.keys().collect::<Vec<_>>(),
            ["accuracy", "f1", "matthews"]
        );
        for (name, value) in metrics {
            near(value, &case[&name], &case);
        }
    }
}

#[test]
fn values_are_judged_as_scipy_does() {
    let cases = golden("values");
    assert!(cases.len() > 10);
    for case in cases {
        let (given, there) = (numbers(&case["predictions"]), numbers(&case["answers"]));
        let metrics = of_values(&given, &there);
        assert_eq!(
            metrics.keys().collect::<Vec<_>>(),
            ["mse", "pearson", "spearman"]
        );
        for (name, value) in metrics {
            near(value, &case[&name], &case);
        }
    }
}

#[test]
fn nothing_to_judge_by_is_not_a_panic() {
    assert!(accuracy(&[], &[]).is_nan() && mean_squared_error(&[], &[]).is_nan());
    assert!(pearson(&[], &[]).is_nan() && spearman(&[1.0], &[2.0]).is_nan());
    assert!(pearson(&[1.0, 2.0, 3.0], &[1.0, 2.0]).is_nan());
    assert_eq!(
        (f1(&[], &[], 1), f1_macro(&[], &[]), matthews(&[], &[])),
        (0.0, 0.0, 0.0)
    );
    assert!(pearson(&[f64::INFINITY, 1.0], &[1.0, 2.0]).is_nan());
    // What is infinite still has a rank.
    assert!((spearman(&[f64::INFINITY, 1.0], &[1.0, 2.0]) + 1.0).abs() < 1e-12);
}

fn pairs() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    let pair = (-5i32..5, -5i32..5).prop_map(|(a, b)| (f64::from(a) / 2.0, f64::from(b) / 2.0));
    proptest::collection::vec(pair, 2..40).prop_map(|pairs| pairs.into_iter().unzip())
}

proptest! {
    #[test]
    fn correlations_are_symmetric_bounded_and_blind_to_scale((a, b) in pairs()) {
        for correlation in [pearson, spearman] {
            let (one, other) = (correlation(&a, &b), correlation(&b, &a));
            prop_assume!(!one.is_nan());
            prop_assert!((one - other).abs() < 1e-12 && (-1.0..=1.0).contains(&one));
            let scaled: Vec<f64> = a.iter().map(|x| 3.0 * x - 7.0).collect();
            prop_assert!((correlation(&scaled, &b) - one).abs() < 1e-9);
            let turned: Vec<f64> = a.iter().map(|x| -x).collect();
            prop_assert!((correlation(&turned, &b) + one).abs() < 1e-9);
            prop_assert!((correlation(&a, &a) - 1.0).abs() < 1e-12);
        }
        // Ranks do not change under what keeps their order.
        let bent: Vec<f64> = a.iter().map(|x| x.exp()).collect();
        let (bent, plain) = (spearman(&bent, &b), spearman(&a, &b));
        prop_assert!((bent - plain).abs() < 1e-12 || plain.is_nan());
    }

    #[test]
    fn matthews_of_two_classes_is_pearsons_correlation(
        pairs in proptest::collection::vec((0usize..2, 0usize..2), 2..60),
    ) {
        let (given, there): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
        let values = |list: &[usize]| list.iter().map(|&x| x as f64).collect::<Vec<f64>>();
        let expected = pearson(&values(&given), &values(&there));
        let found = matthews(&given, &there);
        prop_assert!((found - expected).abs() < 1e-9 || expected.is_nan() && found == 0.0);
    }

    #[test]
    fn what_classes_are_called_does_not_matter(
        pairs in proptest::collection::vec((0usize..4, 0usize..4), 1..60),
    ) {
        let (given, there): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
        let other = |list: &[usize]| list.iter().map(|class| 3 - class).collect::<Vec<usize>>();
        let (given_other, there_other) = (other(&given), other(&there));
        prop_assert!((f1_macro(&given, &there) - f1_macro(&given_other, &there_other)).abs() < 1e-12);
        prop_assert!((matthews(&given, &there) - matthews(&given_other, &there_other)).abs() < 1e-12);
        prop_assert_eq!(accuracy(&given, &there), accuracy(&given_other, &there_other));
        let perfect = matthews(&there, &there);
        prop_assert!((perfect - 1.0).abs() < 1e-12 || there.windows(2).all(|two| two[0] == two[1]));
    }
}
