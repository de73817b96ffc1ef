//! AdamW and SGD against torch, groups, revivals and clipping.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Kind, Param, ParamInfo, Revival};
use lowrank_ops::Grads;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_train::{
    AdamW, Algorithm, Group, Optimizer, Sgd, Updated, clip_factor, find_non_finite, global_norm,
};
use serde::Deserialize;
use std::collections::BTreeMap;

fn param(index: usize, group: &'static str, rank_axis: Option<usize>, value: &Tensor) -> Param {
    let info = ParamInfo {
        owner: "test".into(),
        index,
        name: format!("layer.{index}.weight"),
        kind: Kind::Trained,
        group,
        rank_axis,
        decay: group != "exempt",
        learning_rate: None,
    };
    Param::new(info, value).unwrap()
}

fn tensor(rows: &[Vec<f64>], dtype: DType) -> Tensor {
    Tensor::new(rows.to_vec(), &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1().unwrap()
}

type Groups = BTreeMap<String, Group>;

fn start(params: &[Param], algorithm: &dyn Algorithm) -> Box<dyn Optimizer> {
    algorithm
        .start(&Updated::all(params, &Groups::new()))
        .unwrap()
}

fn one(param: &Param, grad: Tensor) -> Grads {
    let mut grads = Grads::default();
    grads.insert(param, grad);
    grads
}

#[derive(Deserialize)]
struct Golden<S> {
    versions: BTreeMap<String, String>,
    cases: Vec<Case<S>>,
}

#[derive(Deserialize)]
struct Case<S> {
    name: String,
    dtype: String,
    rates: Vec<f64>,
    #[serde(flatten)]
    settings: S,
    revive: Option<Revive>,
    start: Vec<Vec<f64>>,
    steps: Vec<Made>,
}

#[derive(Deserialize)]
struct OfAdamW {
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct OfSgd {
    settings: SgdSettings,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SgdSettings {
    momentum: f64,
    dampening: f64,
    nesterov: bool,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Revive {
    rank: usize,
}

#[derive(Deserialize)]
struct Made {
    grad: Vec<Vec<f64>>,
    fresh: Option<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

/// Follows a case of a golden file; `turned` has the ranks along the last axis.
fn follow<S>(case: &Case<S>, algorithm: &dyn Algorithm, turned: bool) {
    let (dtype, tolerance) = match case.dtype.as_str() {
        "float64" => (DType::F64, 1e-12),
        _ => (DType::F32, 2e-6),
    };
    let turn = |rows: &[Vec<f64>]| {
        let tensor = tensor(rows, dtype);
        if turned {
            tensor.t().unwrap().contiguous().unwrap()
        } else {
            tensor
        }
    };
    let axis = usize::from(turned);
    let param = param(0, "default", Some(axis), &turn(&case.start));
    let new = || start(std::slice::from_ref(&param), algorithm);
    let mut optimizer = new();
    for (step, (rate, made)) in (1..).zip(case.rates.iter().zip(&case.steps)) {
        optimizer
            .update(&one(&param, turn(&made.grad)), 1.0, *rate)
            .unwrap();
        if let (Some(fresh), Some(Revive { rank })) = (&made.fresh, &case.revive) {
            let mut rows = made.values.clone();
            rows[*rank].clone_from(fresh);
            param.set(&turn(&rows)).unwrap();
            optimizer
                .restart(&Revival {
                    param: param.clone(),
                    axis,
                    slots: vec![*rank],
                })
                .unwrap();
        }
        // A resumed optimiser goes on as if nothing had happened.
        let (tensors, ages) = optimizer.state().unwrap();
        optimizer = new();
        optimizer.restore(tensors, ages).unwrap();
        for (got, expected) in values(&param.value())
            .iter()
            .zip(values(&turn(&made.values)))
        {
            let error = (got - expected).abs();
            assert!(
                error <= tolerance * expected.abs().max(1.0),
                "{} at step {step}: {got}, torch has {expected}",
                case.name
            );
        }
    }
}

#[test]
fn adamw_does_what_torch_does() {
    let golden: Golden<OfAdamW> =
        serde_json::from_str(include_str!("../golden/adamw.json")).unwrap();
    assert!(golden.versions["torch"].starts_with("2."));
    assert_eq!(golden.cases.len(), 5);
    for case in &golden.cases {
        let OfAdamW {
            betas,
            eps,
            weight_decay,
        } = case.settings;
        let adamw = AdamW {
            betas,
            eps,
            weight_decay,
        };
        follow(case, &adamw, false);
        follow(case, &adamw, true);
    }
}

#[test]
fn sgd_does_what_torch_does() {
    let golden: Golden<OfSgd> = serde_json::from_str(include_str!("../golden/sgd.json")).unwrap();
    assert!(golden.versions["torch"].starts_with("2."));
    assert_eq!(golden.cases.len(), 8);
    for case in &golden.cases {
        let settings = &case.settings.settings;
        let sgd = Sgd {
            momentum: settings.momentum,
            dampening: settings.dampening,
            nesterov: settings.nesterov,
            weight_decay: settings.weight_decay,
        };
        follow(case, &sgd, false);
        follow(case, &sgd, true);
    }
}

#[test]
fn large_tensors_are_updated_whole_and_ages_count_per_rank() {
    // More numbers than a thread takes at a time, with a line of ranks that no chunk ends with.
    let (ranks, n) = (7, 9001);
    let ramp = |factor: f64| {
        let numbers: Vec<f64> = (0..ranks * n)
            .map(|i| factor * (i as f64 * 0.37).sin())
            .collect();
        Tensor::from_vec(numbers, (ranks, n), &Device::Cpu).unwrap()
    };
    let param = param(0, "default", Some(0), &ramp(2.0));
    let mut optimizer = start(std::slice::from_ref(&param), &AdamW::default());
    optimizer.update(&one(&param, ramp(0.5)), 1.0, 0.1).unwrap();
    let before = values(&param.value());
    let revival = Revival {
        param: param.clone(),
        axis: 0,
        slots: vec![2, 5],
    };
    optimizer.restart(&revival).unwrap();
    let grad = ramp(-3.0);
    optimizer
        .update(&one(&param, grad.clone()), 1.0, 0.1)
        .unwrap();
    let (_, ages) = optimizer.state().unwrap();
    assert_eq!(ages["layer.0.weight"], [2, 2, 1, 2, 2, 1, 2]);
    let (grad, old_grad) = (values(&grad), values(&ramp(0.5)));
    for (i, value) in values(&param.value()).into_iter().enumerate() {
        let (mut m, mut v, age) = match i / n {
            2 | 5 => (0.0, 0.0, 1),
            _ => (0.1 * old_grad[i], 0.001 * old_grad[i] * old_grad[i], 2),
        };
        m = 0.9 * m + 0.1 * grad[i];
        v = 0.999 * v + 0.001 * grad[i] * grad[i];
        let (m, v) = (m / (1.0 - 0.9f64.powi(age)), v / (1.0 - 0.999f64.powi(age)));
        let expected = before[i] - 0.1 * m / (v.sqrt() + 1e-8);
        assert!(
            (value - expected).abs() < 1e-9,
            "{i}: {value}, expected {expected}"
        );
    }
}

/// The numbers of ALoRA's note: with an age of its own a new rank's first step is the learning rate; with the others' age its
/// first steps would be so many times as far.
#[test]
fn a_new_rank_steps_as_far_as_a_first_step() {
    let value = tensor(
        &[vec![0.5, -1.5], vec![2.5, 0.25], vec![-0.75, 1.0]],
        DType::F64,
    );
    let param = param(0, "default", Some(0), &value);
    let params = std::slice::from_ref(&param);
    let constants = AdamW {
        eps: 1e-30,
        ..AdamW::default()
    };
    let mut optimizer = start(params, &constants);
    let ones = tensor(&vec![vec![1.0; 2]; 3], DType::F64);
    let rate = 1e-3;
    for _ in 0..10_000 {
        optimizer
            .update(&one(&param, ones.clone()), 1.0, rate)
            .unwrap();
    }
    let (before, _) = optimizer.state().unwrap();
    let revival = Revival {
        param: param.clone(),
        axis: 0,
        slots: vec![1],
    };
    optimizer.restart(&revival).unwrap();
    let (after, ages) = optimizer.state().unwrap();
    assert_eq!(ages["layer.0.weight"], [10_000, 0, 10_000]);
    for (name, moment) in &before {
        let (was, is) = (values(moment), values(&after[name]));
        assert_eq!(
            (&is[..2], &is[2..4], &is[4..]),
            (&was[..2], &[0.0; 2][..], &was[4..])
        );
    }
    let mut last = values(&param.value());
    for _ in 0..3 {
        optimizer
            .update(&one(&param, ones.clone()), 1.0, rate)
            .unwrap();
        let now = values(&param.value());
        for (was, is) in last.iter().zip(&now) {
            assert!((was - is - 1e-3).abs() < 1e-9, "{was} {is}");
        }
        last = now;
    }

    // The same moments with one age for all.
    let (mut tensors, mut ages) = (after, ages);
    ages.insert("layer.0.weight".to_owned(), vec![10_000; 3]);
    for (name, moment) in &mut tensors {
        *moment = before[name]
            .slice_assign(&[1..2, 0..2], &moment.narrow(0, 1, 1).unwrap())
            .unwrap();
    }
    optimizer.restore(tensors, ages).unwrap();
    let expected = [
        (1, 3.1623),
        (2, 4.2496),
        (5, 5.7971),
        (10, 6.5279),
        (12, 6.5685),
        (20, 6.2409),
        (100, 3.2408),
    ];
    let mut expected = expected.into_iter().peekable();
    for k in 1..=100 {
        optimizer
            .update(&one(&param, ones.clone()), 1.0, rate)
            .unwrap();
        let now = values(&param.value());
        if let Some((_, times)) = expected.next_if(|(at, _)| *at == k) {
            let step = (last[2] - now[2]) / rate;
            assert!((step - times).abs() < 2e-4, "{k}: {step}");
        }
        last = now;
    }
    assert!(expected.next().is_none());
}

#[test]
fn groups_change_rate_and_decay_and_exempt_tensors_never_decay() {
    let start = tensor(&[vec![1.0, -2.0, 3.0]], DType::F64);
    let params = [
        param(0, "default", None, &start),
        param(1, "gate", None, &start),
        param(2, "exempt", None, &start),
    ];
    let group = Group {
        learning_rate_factor: 3.0,
        weight_decay: Some(0.5),
    };
    let groups = BTreeMap::from([("gate".to_owned(), group)]);
    let constants = AdamW {
        weight_decay: 0.25,
        ..AdamW::default()
    };
    let mut optimizer = constants.start(&Updated::all(&params, &groups)).unwrap();
    let mut grads = Grads::default();
    // The last one has no gradient and stays.
    grads.insert(&params[0], start.zeros_like().unwrap());
    grads.insert(&params[1], start.zeros_like().unwrap());
    optimizer.update(&grads, 1.0, 0.1).unwrap();
    let keep = [1.0 - 0.1 * 0.25, 1.0 - 0.3 * 0.5, 1.0];
    for (param, keep) in params.iter().zip(keep) {
        for (got, start) in values(&param.value()).iter().zip([1.0, -2.0, 3.0]) {
            assert!((got - start * keep).abs() < 1e-15);
        }
    }
    let mut grads = Grads::default();
    grads.insert(&params[2], start.zeros_like().unwrap());
    optimizer.update(&grads, 1.0, 0.1).unwrap();
    assert_eq!(values(&params[2].value()), [1.0, -2.0, 3.0]);
    let (_, ages) = optimizer.state().unwrap();
    assert_eq!(ages.into_values().collect::<Vec<_>>(), [[1], [1], [1]]);

    let unknown = BTreeMap::from([("router".to_owned(), group)]);
    let error = constants
        .start(&Updated::all(&params, &unknown))
        .unwrap_err();
    assert!(error.is_usage());
    assert_eq!(
        error.to_string(),
        "`train.groups.router` names a group that no trained tensor belongs to; there are `default`, `exempt`, `gate`"
    );
    let error = constants
        .start(&Updated::all(&[], &Groups::new()))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "nothing is trained: no parameter of the adapter receives gradients"
    );
}

#[test]
fn a_state_that_does_not_fit_is_named() {
    let value = tensor(&[vec![1.0, -2.0, 3.0]], DType::F64);
    let param = param(0, "default", None, &value);
    let new = || start(std::slice::from_ref(&param), &AdamW::default());
    let (tensors, ages) = new().state().unwrap();
    let check =
        |tensors: BTreeMap<String, Tensor>, ages: BTreeMap<String, Vec<u64>>, message: &str| {
            assert_eq!(new().restore(tensors, ages).unwrap_err(), message);
        };
    let mut less = tensors.clone();
    less.remove("second.layer.0.weight");
    check(
        less,
        ages.clone(),
        "tensor `second.layer.0.weight` is missing",
    );
    let mut more = tensors.clone();
    more.insert("first.other".into(), value.clone());
    check(
        more,
        ages.clone(),
        "`first.other` belongs to no trained tensor",
    );
    let mut narrow = tensors.clone();
    narrow.insert(
        "first.layer.0.weight".into(),
        value.to_dtype(DType::F32).unwrap(),
    );
    check(
        narrow,
        ages,
        "tensor `first.layer.0.weight` is f32 [1, 3], expected f64 [1, 3]",
    );
    let ages = BTreeMap::from([("layer.0.weight".to_owned(), vec![1, 2])]);
    check(tensors, ages, "the ages of `layer.0.weight` do not fit");
}

#[test]
fn one_factor_clips_all_gradients() {
    let start = tensor(&[vec![0.5, 0.5]], DType::F64);
    let params = [
        param(0, "default", None, &start),
        param(1, "default", None, &start),
    ];
    let gradients = || {
        let mut grads = Grads::default();
        grads.insert(&params[0], tensor(&[vec![2.0, -4.0]], DType::F64));
        grads.insert(&params[1], tensor(&[vec![5.0, 6.0]], DType::F32));
        grads
    };
    let norm = global_norm(&gradients()).unwrap();
    assert_eq!(norm, 9.0);
    for (max, factor) in [
        (0.0, 1.0),
        (20.0, 1.0),
        (3.0, 3.0 / (9.0 + 1e-6)),
        (9.0, 9.0 / (9.0 + 1e-6)),
    ] {
        assert!((clip_factor(norm, max) - factor).abs() < 1e-15);
    }
    assert_eq!(find_non_finite(&gradients()).unwrap(), None);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut grads = gradients();
        grads.insert(&params[1], tensor(&[vec![5.0, bad]], DType::F64));
        assert_eq!(find_non_finite(&grads).unwrap(), Some("layer.1.weight"));
    }
}

/// Many tensors of many sizes, in both dtypes, some longer than what one thread gets: the same bits as each of them
/// updated alone with gradients that were scaled before, from any number of threads.
#[test]
fn one_sweep_over_all_tensors_does_what_one_after_the_other_does() {
    let mut stream = Key::new(31, Purpose::Test).stream();
    let mut draw = |dims: (usize, usize), dtype: DType| {
        let numbers: Vec<f64> = (0..dims.0 * dims.1).map(|_| stream.normal()).collect();
        let tensor = Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap();
        tensor.to_dtype(dtype).unwrap()
    };
    let sizes = [(3, 5), (1, 1), (7, 9000), (2, 16_384), (33, 17), (5, 3)];
    let starts: Vec<Tensor> = (sizes.iter().zip([DType::F32, DType::F64].iter().cycle()))
        .map(|(dims, dtype)| draw(*dims, *dtype))
        .collect();
    let steps: Vec<Vec<Tensor>> = (0..3)
        .map(|_| {
            let gradients = starts.iter();
            gradients
                .map(|start| draw(start.dims2().unwrap(), start.dtype()))
                .collect()
        })
        .collect();
    let constants = AdamW {
        weight_decay: 0.1,
        ..AdamW::default()
    };
    let new = || -> Vec<Param> {
        let starts = (0..).zip(&starts);
        starts
            .map(|(i, start)| param(i, "default", Some(0), start))
            .collect()
    };
    let factor = 0.37;
    let end = |params: &[Param], optimizers: &[Box<dyn Optimizer>]| {
        let mut all: Vec<Vec<f64>> = params.iter().map(|param| values(&param.value())).collect();
        for optimizer in optimizers {
            all.extend(optimizer.state().unwrap().0.values().map(values));
        }
        all.sort_by(|one, other| one.partial_cmp(other).unwrap());
        all
    };
    let revival = |param: &Param| Revival {
        param: param.clone(),
        axis: 0,
        slots: vec![1],
    };

    let apart = new();
    let mut optimizers: Vec<Box<dyn Optimizer>> = apart
        .iter()
        .map(|param| start(std::slice::from_ref(param), &constants))
        .collect();
    for (step, gradients) in steps.iter().enumerate() {
        for ((param, optimizer), gradient) in apart.iter().zip(&mut optimizers).zip(gradients) {
            let scaled = (gradient * factor).unwrap();
            optimizer.update(&one(param, scaled), 1.0, 0.01).unwrap();
        }
        if step == 0 {
            optimizers[2].restart(&revival(&apart[2])).unwrap();
        }
    }
    let expected = end(&apart, &optimizers);

    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let together = new();
        let mut optimizer = start(&together, &constants);
        pool.build().unwrap().install(|| {
            for (step, gradients) in steps.iter().enumerate() {
                let mut grads = Grads::default();
                for (param, gradient) in together.iter().zip(gradients) {
                    grads.insert(param, gradient.clone());
                }
                optimizer.update(&grads, factor, 0.01).unwrap();
                if step == 0 {
                    optimizer.restart(&revival(&together[2])).unwrap();
                }
            }
        });
        assert!(
            end(&together, &[optimizer]) == expected,
            "{threads} threads"
        );
    }
}

#[test]
fn a_gradient_that_does_not_fit_changes_nothing() {
    let value = tensor(&[vec![1.0, -2.0, 3.0]], DType::F64);
    let params = [
        param(0, "default", None, &value),
        param(1, "default", None, &value),
    ];
    let mut optimizer = start(&params, &AdamW::default());
    let wide = tensor(&[vec![1.0, 2.0, 3.0, 4.0]], DType::F64);
    let single = value.to_dtype(DType::F32).unwrap();
    for (bad, message) in [
        (
            wide,
            "AdamW: the gradient has shape [1, 4], expected [1, 3] (layer.1.weight)",
        ),
        (
            single,
            "AdamW: the gradient of `layer.1.weight` has dtype f32, the tensor has f64",
        ),
    ] {
        let mut grads = one(&params[0], value.clone());
        grads.insert(&params[1], bad);
        let error = optimizer.update(&grads, 1.0, 0.1).unwrap_err();
        assert_eq!(error.to_string(), message);
        for param in &params {
            assert_eq!(values(&param.value()), [1.0, -2.0, 3.0]);
        }
        let (_, ages) = optimizer.state().unwrap();
        assert_eq!(ages.into_values().collect::<Vec<_>>(), [[0], [0]]);
    }
}
