use crate::{Q0, assert_near, at, attached, matrix, param, random, toy};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Attached, Linear, Merge, Pass, Selection, detach, place};
use lowrank_conformance::toy::{Head, Toy};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};

/// Selected names with their weights.
type Weights<'a> = &'a [(&'a str, f64)];

/// alpha / r of the two adapters.
const SCALES: [f64; 2] = [5.0 / 2.0, -4.5 / 3.0];

fn two() -> (Toy, [Attached; 2]) {
    let mut toy = toy();
    let first = json!({"r": 2, "alpha": 5.0, "target_modules": [Q0]});
    let second = json!({"r": 3, "alpha": -4.5, "target_modules": [Q0]});
    let both = [
        attached(&mut toy, "one", first),
        attached(&mut toy, "two", second),
    ];
    (toy, both)
}

fn input() -> Tensor {
    random(&[4, 10], Key::new(1, Purpose::Test))
}

/// x W^T + bias + sum of weight * scale * (x A^T) B^T, in plain loops.
fn expected(toy: &mut Toy, adapters: &[(&Attached, f64)]) -> Vec<Vec<f64>> {
    let (weight, bias) = at(toy, Q0, |linear| {
        let bias = linear.base().bias().unwrap().to_vec1::<f64>().unwrap();
        (matrix(&linear.base().weight().unwrap()), bias)
    });
    let dot = |one: &[f64], other: &[f64]| -> f64 {
        one.iter().zip(other).map(|(one, other)| one * other).sum()
    };
    let updates: Vec<_> = adapters
        .iter()
        .map(|(attached, factor)| {
            let a = matrix(&param(attached, &format!("{Q0}.lora_A.weight")).value());
            let b = matrix(&param(attached, &format!("{Q0}.lora_B.weight")).value());
            (a, b, *factor)
        })
        .collect();
    let row = |x: Vec<f64>| -> Vec<f64> {
        let mut y: Vec<f64> = weight.iter().map(|row| dot(row, &x)).collect();
        for (y, bias) in y.iter_mut().zip(&bias) {
            *y += bias;
        }
        for (a, b, factor) in &updates {
            let h: Vec<f64> = a.iter().map(|row| dot(row, &x)).collect();
            for (y, row) in y.iter_mut().zip(b) {
                *y += factor * dot(row, &h);
            }
        }
        y
    };
    matrix(&input()).into_iter().map(row).collect()
}

fn forward(toy: &mut Toy, selection: Selection) -> Vec<Vec<f64>> {
    at(toy, Q0, |linear| {
        let mut pass = Pass::evaluation(selection);
        matrix(&linear.forward(&input(), &mut pass).unwrap())
    })
}

#[test]
fn selected_adapters_add_up_by_their_weights() {
    let (mut toy, [one, two]) = two();
    let [scale_one, scale_two] = SCALES;
    let weighted = |weights: &[(&str, f64)]| {
        Selection::weighted(weights.iter().map(|&(name, weight)| (name.into(), weight)))
    };
    let rows = [
        (Selection::none(), vec![]),
        (Selection::one("one"), vec![(&one, scale_one)]),
        (Selection::one("two"), vec![(&two, scale_two)]),
        (weighted(&[("one", 0.5)]), vec![(&one, 0.5 * scale_one)]),
        (
            weighted(&[("one", 0.75), ("two", -2.0)]),
            vec![(&one, 0.75 * scale_one), (&two, -2.0 * scale_two)],
        ),
        (
            weighted(&[("two", 1.0), ("one", 1.0)]),
            vec![(&one, scale_one), (&two, scale_two)],
        ),
        (
            weighted(&[("one", 1.0), ("elsewhere", 3.0)]),
            vec![(&one, scale_one)],
        ),
        (Selection::one("elsewhere"), vec![]),
    ];
    for (selection, adapters) in rows {
        let expected = expected(&mut toy, &adapters);
        assert_near(&forward(&mut toy, selection.clone()), &expected);
        assert_near(&merged_forward(&mut toy, selection), &expected);
    }
}

fn merged_forward(toy: &mut Toy, selection: Selection) -> Vec<Vec<f64>> {
    at(toy, Q0, |linear| {
        let Merge::Exact(merged) = linear.merge(&mut Pass::evaluation(selection)).unwrap() else {
            panic!("a low-rank update folds exactly");
        };
        let merged = FrozenLinear::new(merged.weight, merged.bias).unwrap();
        matrix(&merged.forward(&input()).unwrap())
    })
}

#[test]
fn a_watching_pass_stops_where_numbers_are_no_longer_finite() {
    let mut toy = toy();
    for (last, expected) in [
        (-3.5, None),
        (f64::NAN, Some("the output is not finite")),
        (f64::NEG_INFINITY, Some("the output is not finite")),
    ] {
        let mut numbers = vec![0.5; 20];
        numbers[19] = last;
        let x = Tensor::from_vec(numbers, (2, 10), &Device::Cpu).unwrap();
        let forward = |toy: &mut Toy, mut pass: Pass| {
            at(toy, Q0, |linear| linear.forward(&x, &mut pass).map(drop))
        };
        let pass = || Pass::evaluation(Selection::none());
        forward(&mut toy, pass()).unwrap();
        let message = forward(&mut toy, pass().watching()).map_err(|error| error.to_string());
        let expected = expected.map_or(Ok(()), |what| Err(format!("{Q0}: {what}")));
        assert_eq!(message, expected);
    }
}

#[test]
fn a_detached_adapter_leaves_the_others() {
    let (mut toy, [one, _two]) = two();
    detach(&mut toy, "two");
    let expected = [
        expected(&mut toy, &[(&one, SCALES[0])]),
        expected(&mut toy, &[]),
    ];
    assert_near(&forward(&mut toy, Selection::one("one")), &expected[0]);
    assert_near(&forward(&mut toy, Selection::one("two")), &expected[1]);
}

#[test]
fn a_replaced_weight_needs_its_adapter_alone() {
    let mut toy = toy();
    let keys = |more: Value| {
        let mut keys = json!({"r": 2, "target_modules": [Q0]});
        let more = more.as_object().unwrap().clone();
        keys.as_object_mut().unwrap().extend(more);
        keys
    };
    attached(&mut toy, "biased", keys(json!({"bias": "chained_only"})));
    attached(
        &mut toy,
        "headed",
        keys(json!({"modules_to_save": ["lm_head"]})),
    );
    attached(&mut toy, "plain", keys(json!({})));
    let x = random(&[4, 10], Key::new(2, Purpose::Test));
    let run = |linear: &Linear, selection: Weights<'_>| {
        let selection = selection
            .iter()
            .map(|&(name, weight)| (name.into(), weight));
        let mut pass = Pass::evaluation(Selection::weighted(selection));
        let merged = linear
            .merge(&mut pass)
            .map(drop)
            .map_err(|error| error.to_string());
        let run = linear.forward(&x, &mut pass).map(drop);
        let run = run.map_err(|error| error.to_string());
        assert_eq!(merged, run);
        run
    };
    let rows: [(&str, Weights<'_>, bool); 7] = [
        (Q0, &[("biased", 1.0)], true),
        (Q0, &[("biased", 0.5)], false),
        (Q0, &[("biased", 1.0), ("plain", 1.0)], false),
        (Q0, &[("headed", 1.0), ("plain", 1.0)], true),
        ("lm_head", &[("headed", 1.0)], true),
        ("lm_head", &[("plain", 1.0), ("headed", 1.0)], false),
        ("lm_head", &[("plain", 1.0), ("biased", 0.5)], true),
    ];
    for (path, selection, accepted) in rows {
        let result = at(&mut toy, path, |linear| run(linear, selection));
        assert_eq!(result.is_ok(), accepted, "{path} {selection:?} {result:?}");
        if let Err(message) = result {
            let start = format!("{path}: `{path}");
            assert!(message.starts_with(&start), "{message}");
            assert!(
                message.contains("is replaced by a selected adapter, which needs that adapter alone with weight 1"),
                "{message}"
            );
        }
    }
}

#[test]
fn a_model_is_moved_before_adapters_are_attached() {
    let mut toy = Toy::new(DType::F64, Head::Tied).unwrap();
    let weight = |toy: &mut Toy| at(toy, Q0, |layer| layer.base().weight().unwrap());
    let before = weight(&mut toy).to_vec2::<f64>().unwrap();
    place(&mut toy, &Device::Cpu).unwrap();
    assert_eq!(weight(&mut toy).to_vec2::<f64>().unwrap(), before);
    let attached = attached(&mut toy, "one", json!({"target_modules": [Q0]}));
    assert!(attached.params.iter().all(|param| param.device().is_cpu()));
    let error = place(&mut toy, &Device::Cpu).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`{Q0}` has adapters: a model is moved before they are attached")
    );
}
