//! Which token comes next: against distributions computed by hand, and those of transformers' filters
//! (`golden/sampling.py`).
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use lowrank_models::{Sampling, Temperature, TopP};
use serde_json::Value;
use std::num::NonZeroUsize;

fn sampling(temperature: f64, top_k: usize, top_p: f64) -> Sampling {
    Sampling {
        temperature: Temperature::new(temperature).unwrap(),
        top_k: NonZeroUsize::new(top_k),
        top_p: TopP::new(top_p).unwrap(),
        seed: 9,
    }
}

#[track_caller]
fn check(sampling: Sampling, logits: &[f64], expected: &[(u32, f64)]) {
    let kept = sampling.probabilities(logits).unwrap();
    let tokens = |kept: &[(u32, f64)]| kept.iter().map(|(token, _)| *token).collect::<Vec<_>>();
    assert_eq!(tokens(&kept), tokens(expected));
    for ((token, got), (_, expected)) in kept.iter().zip(expected) {
        assert!(
            (got - expected).abs() < 1e-12,
            "token {token}: {got} against {expected}"
        );
    }
}

/// Logits of these probabilities.
fn logs(probabilities: &[f64]) -> Vec<f64> {
    probabilities.iter().map(|p| 2.75 + p.ln()).collect()
}

#[test]
fn filters_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/sampling.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 13);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let numbers =
            |key: &str| -> Vec<f64> { serde_json::from_value(case[key].clone()).unwrap() };
        let top_k = case["top_k"].as_u64().unwrap_or(0) as usize;
        let sampling = sampling(number("temperature"), top_k, number("top_p"));
        let expected: Vec<(u32, f64)> = (0..)
            .zip(numbers("probabilities"))
            .filter(|(_, p)| *p > 0.0)
            .collect();
        check(sampling, &numbers("logits"), &expected);
    }
}

#[test]
fn each_filter_does_what_its_name_says() {
    let logits = logs(&[0.1, 0.4, 0.05, 0.25, 0.2]);
    check(
        sampling(1.0, 0, 1.0),
        &logits,
        &[(0, 0.1), (1, 0.4), (2, 0.05), (3, 0.25), (4, 0.2)],
    );
    // At temperature 1/2 probabilities are squared: 100, 1600, 25, 625, 400 of 2750.
    let squared =
        [(0, 100.0), (1, 1600.0), (2, 25.0), (3, 625.0), (4, 400.0)].map(|(t, p)| (t, p / 2750.0));
    check(sampling(0.5, 0, 1.0), &logits, &squared);
    check(
        sampling(1.0, 2, 1.0),
        &logits,
        &[(1, 0.4 / 0.65), (3, 0.25 / 0.65)],
    );
    // 0.4 + 0.25 is less than 0.7, so the third stays.
    let three = [(1, 0.4 / 0.85), (3, 0.25 / 0.85), (4, 0.2 / 0.85)];
    check(sampling(1.0, 0, 0.7), &logits, &three);
    check(sampling(1.0, 0, 0.3), &logits, &[(1, 1.0)]);
    // Top-k first: of 0.4, 0.25, 0.2 and 0.1 the first two have 0.65 / 0.95 = 0.684 together.
    check(
        sampling(1.0, 4, 0.68),
        &logits,
        &[(1, 0.4 / 0.65), (3, 0.25 / 0.65)],
    );
    // The temperature before it: of squares 1600 and 625 already have 0.81.
    check(
        sampling(0.5, 0, 0.8),
        &logits,
        &[(1, 1600.0 / 2225.0), (3, 625.0 / 2225.0)],
    );
}

#[test]
fn equal_tokens_are_told_apart_by_their_order() {
    let logits = logs(&[0.2, 0.3, 0.3, 0.2]);
    check(Sampling::GREEDY, &logits, &[(1, 1.0)]);
    check(sampling(1.0, 0, 0.25), &logits, &[(1, 1.0)]);
    // As transformers does, the last place may be shared.
    check(
        sampling(1.0, 3, 1.0),
        &logits,
        &[(0, 0.2), (1, 0.3), (2, 0.3), (3, 0.2)],
    );
    check(sampling(1.0, 1, 1.0), &logits, &[(1, 0.5), (2, 0.5)]);
}

#[test]
fn extremes_stay_distributions() {
    let logits = [3.0, f64::NEG_INFINITY, -700.0, 2.0];
    check(sampling(1e-300, 0, 1.0), &logits, &[(0, 1.0)]);
    check(sampling(5e-324, 3, 0.5), &logits, &[(0, 1.0)]);
    check(
        sampling(1e300, 0, 1.0),
        &[3.0, f64::NEG_INFINITY, 2.0],
        &[(0, 0.5), (2, 0.5)],
    );
    check(sampling(1.0, 0, f64::MIN_POSITIVE), &logits, &[(0, 1.0)]);
    check(
        sampling(1.0, 9, 1.0 - f64::EPSILON / 2.0),
        &[0.0, 0.0],
        &[(0, 0.5), (1, 0.5)],
    );
}

#[test]
fn draws_follow_the_distribution_and_their_seed() {
    let (expected, draws) = ([0.1, 0.45, 0.05, 0.15, 0.25], 20_000u64);
    let logits = logs(&expected);
    let all = sampling(1.0, 0, 1.0);
    let drawn: Vec<u32> = (0..draws)
        .map(|index| all.choose(&logits, index).unwrap())
        .collect();
    for (token, expected) in expected.iter().enumerate() {
        let share = drawn
            .iter()
            .filter(|&&drawn| drawn as usize == token)
            .count() as f64
            / draws as f64;
        // Five standard deviations.
        let slack = 5.0 * (expected * (1.0 - expected) / draws as f64).sqrt();
        assert!(
            (share - expected).abs() < slack,
            "token {token}: {share} against {expected}"
        );
    }
    let again: Vec<u32> = (0..draws)
        .map(|index| all.choose(&logits, index).unwrap())
        .collect();
    assert_eq!(again, drawn);
    let other = Sampling { seed: 10, ..all };
    let others: Vec<u32> = (0..draws)
        .map(|index| other.choose(&logits, index).unwrap())
        .collect();
    let same = others.iter().zip(&drawn).filter(|(a, b)| a == b).count() as f64 / draws as f64;
    // Two independent draws agree as often as the squares of the probabilities say.
    assert!((same - 0.3).abs() < 0.02, "{same}");

    let kept = sampling(1.0, 2, 1.0);
    assert!((0..200).all(|index| [1, 4].contains(&kept.choose(&logits, index).unwrap())));
    assert!((0..9).all(|index| Sampling::GREEDY.choose(&logits, index).unwrap() == 1));
}

#[test]
fn logits_that_say_nothing_are_refused() {
    let refused = |logits: &[f64]| {
        let messages = [Sampling::GREEDY, sampling(0.7, 2, 0.9)]
            .map(|sampling| sampling.choose(logits, 0).unwrap_err().to_string());
        assert_eq!(messages[0], messages[1]);
        messages[0].clone()
    };
    let reason = "the model or an adapter (or its weight) makes numbers that are not finite";
    assert_eq!(
        refused(&[1.0, f64::NAN, 2.0]),
        format!("the logit of token 1 is NaN: {reason}")
    );
    assert_eq!(
        refused(&[1.0, 2.0, f64::INFINITY]),
        format!("the logit of token 2 is inf: {reason}")
    );
    assert_eq!(
        refused(&[f64::NEG_INFINITY; 2]),
        format!("the logit of token 0 is -inf: {reason}")
    );
}

#[test]
fn numbers_out_of_range_are_refused() {
    for text in ["-1", "-0.001", "NaN", "inf", "1e400", "warm", ""] {
        let message = text.parse::<Temperature>().unwrap_err();
        assert_eq!(
            message, "expected a finite number that is not below 0",
            "{text}"
        );
    }
    for text in ["0", "-0.5", "1.0001", "NaN", "inf", "most", ""] {
        let message = text.parse::<TopP>().unwrap_err();
        assert_eq!(message, "expected a number above 0 and at most 1", "{text}");
    }
    assert_eq!("0.75".parse::<Temperature>().unwrap().get(), 0.75);
    assert_eq!("1".parse::<TopP>().unwrap(), TopP::ALL);
}
