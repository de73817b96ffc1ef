//! LoRA+ and LoRA-FA: what is faster, what is held, and what is refused.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Kind, LORA_B, Pair, Param, ParamInfo, Revival};
use lowrank_ops::Grads;
use lowrank_train::{AdamW, Algorithm, Group, LoraFa, Optimizer, Result, Sgd, Updated};
use std::collections::BTreeMap;

fn param(index: usize, name: &str, group: &'static str, value: &Tensor) -> Param {
    let info = ParamInfo {
        owner: "test".into(),
        index,
        name: name.into(),
        kind: Kind::Trained,
        group,
        rank_axis: None,
        decay: true,
        learning_rate: (name == "own").then_some(0.75),
    };
    Param::new(info, value).unwrap()
}

fn matrix(rows: &[&[f64]]) -> Tensor {
    let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.to_vec()).collect();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1().unwrap()
}

fn ensure_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= tolerance,
            "{got}, expected {expected}"
        );
    }
}

/// With gradients of 0 what is left after a step of 0.5 tells rate and decay; with gradients of 1 and no decay, the rate.
#[test]
fn lora_plus_raises_second_factors_and_vectors() {
    let two = matrix(&[&[2.0, 2.0]]);
    let flat = Tensor::new(&[2.0f64, 2.0], &Device::Cpu).unwrap();
    let tensors = [
        ("x.lora_A.weight", "default", &two, 1.0, 1.0),
        ("x.lora_B.weight", LORA_B, &two, 4.0, 1.0),
        ("x.lora_magnitude_vector", "default", &flat, 4.0, 1.0),
        ("x.bias", "default", &flat, 4.0, 0.0),
        // A norm without bias decays, one with a bias does not, as in PEFT.
        ("rms.weight", "default", &flat, 4.0, 1.0),
        ("norm.weight", "default", &flat, 4.0, 0.0),
        ("norm.bias", "default", &flat, 4.0, 0.0),
        ("head.weight", "default", &two, 1.0, 1.0),
        // A rate of its own is what it says: 0.75 / 0.5 of the run's.
        ("own", "default", &flat, 1.5, 1.0),
        ("gate", "gate", &flat, 8.0, 0.25),
    ];
    let params: Vec<Param> = (0..)
        .zip(tensors)
        .map(|(index, (name, group, value, ..))| param(index, name, group, value))
        .collect();
    let gate = Group {
        learning_rate_factor: 2.0,
        weight_decay: Some(0.025),
    };
    let groups = BTreeMap::from([("gate".to_owned(), gate)]);
    let updated = Updated {
        params: &params,
        pairs: &[],
        groups: &groups,
        lora_plus_ratio: Some(4.0),
        learning_rate: 0.5,
    };
    let step = |weight_decay: f64, gradient: f64| -> Vec<f64> {
        for (param, (_, _, value, ..)) in params.iter().zip(&tensors) {
            param.set(value).unwrap();
        }
        let sgd = Sgd {
            weight_decay,
            ..Sgd::default()
        };
        let mut grads = Grads::default();
        for param in &params {
            let one = param.value().ones_like().unwrap();
            grads.insert(param, (one * gradient).unwrap());
        }
        sgd.start(&updated)
            .unwrap()
            .update(&grads, 1.0, 0.5)
            .unwrap();
        params
            .iter()
            .map(|param| 2.0 - values(&param.value())[1])
            .collect()
    };
    let rates: Vec<f64> = tensors.iter().map(|(.., rate, _)| 0.5 * rate).collect();
    let mut moved = step(0.0, 1.0);
    // The group has a decay of its own.
    moved[9] -= 0.5 * 8.0 * 0.025 * 2.0;
    ensure_close(&moved, &rates, 1e-14);
    let decays = tensors
        .iter()
        .map(|(.., rate, decay)| 0.5 * rate * decay * 0.1 * 2.0);
    ensure_close(&step(0.1, 0.0), &decays.collect::<Vec<_>>(), 1e-14);
}

#[test]
fn lora_plus_without_second_factors_is_refused() {
    let value = matrix(&[&[1.0, 2.0]]);
    let params = [
        param(0, "hada_w1_a", "default", &value),
        param(1, "router", "router", &value),
    ];
    let groups = BTreeMap::new();
    let updated = Updated {
        lora_plus_ratio: Some(16.0),
        ..Updated::all(&params, &groups)
    };
    for algorithm in [&AdamW::default() as &dyn Algorithm, &Sgd::default()] {
        let error = algorithm.start(&updated).unwrap_err();
        assert!(error.is_usage());
        assert_eq!(
            error.to_string(),
            "`train.lora_plus_ratio` raises the learning rate of group `lora_B`, which no trained tensor belongs to; \
             there are `default`, `router`"
        );
    }
}

/// A layer of rank r: its factors, and the pair that they are.
fn pair(index: usize, a: &Tensor, b: &Tensor, scale: f64) -> Pair {
    Pair {
        a: param(index, &format!("{index}.lora_A.weight"), "default", a),
        b: param(index + 1, &format!("{index}.lora_B.weight"), LORA_B, b),
        scale,
    }
}

fn params(pairs: &[Pair]) -> Vec<Param> {
    let both = |pair: &Pair| [pair.a.clone(), pair.b.clone()];
    pairs.iter().flat_map(both).collect()
}

/// LoRA-FA of `params`, of which these pairs are products.
fn lora_fa(pairs: &[Pair], params: &[Param]) -> Result<Box<dyn Optimizer>> {
    let groups = BTreeMap::new();
    LoraFa::default().start(&Updated {
        pairs,
        ..Updated::all(params, &groups)
    })
}

/// What it has of the second factor of layer 0, as wide as `a`: the first moment times A.
fn direction(optimizer: &dyn Optimizer, a: &Tensor) -> Tensor {
    let first = &optimizer.state().unwrap().0["first.0.lora_B.weight"];
    let first = first.to_dtype(DType::F64).unwrap();
    first.matmul(a).unwrap()
}

#[test]
fn lora_fa_follows_the_projected_gradient() {
    // A = [3 4], dL/dW = [[1 2], [0 1]], s = 2: the gradient of B is [22, 8], and the projected one [0.22, 0.08].
    let pairs = [pair(
        0,
        &matrix(&[&[3.0, 4.0]]),
        &matrix(&[&[0.0], &[0.0]]),
        2.0,
    )];
    let mut optimizer = lora_fa(&pairs, &params(&pairs)).unwrap();
    assert_eq!(optimizer.params(), std::slice::from_ref(&pairs[0].b));
    let mut grads = Grads::default();
    grads.insert(&pairs[0].b, matrix(&[&[22.0], &[8.0]]));
    // A gradient of A would be ignored.
    grads.insert(&pairs[0].a, matrix(&[&[1.0, 1.0]]));
    optimizer.update(&grads, 1.0, 1e-3).unwrap();
    let (moments, ages) = optimizer.state().unwrap();
    let names: Vec<&str> = moments.keys().map(String::as_str).collect();
    assert_eq!(names, ["first.0.lora_B.weight", "second.0.lora_B.weight"]);
    assert_eq!(
        ages,
        BTreeMap::from([("0.lora_B.weight".to_owned(), vec![1])])
    );
    ensure_close(&values(&moments[names[0]]), &[0.022, 0.008], 1e-9);
    let squares = [1e-3 * 0.22 * 0.22, 1e-3 * 0.08 * 0.08];
    ensure_close(&values(&moments[names[1]]), &squares, 1e-12);
    // eps is added before the correction: it counts as if it were 1e-6 / sqrt(0.001).
    let step = |g: f64| -1e-3 * g / (g + 1e-6 / 1e-3f64.sqrt());
    let b = values(&pairs[0].b.value());
    ensure_close(&b, &[step(0.22), step(0.08)], 1e-11);
    assert_eq!(values(&pairs[0].a.value()), [3.0, 4.0]);

    // s g' A is the gradient of W projected on the rows of A: [[1.32 1.76], [0.48 0.64]].
    let step = (matrix(&[&[0.22], &[0.08]])
        .matmul(&pairs[0].a.value())
        .unwrap()
        * 2.0)
        .unwrap();
    ensure_close(&values(&step), &[1.32, 1.76, 0.48, 0.64], 1e-12);
}

#[test]
fn lora_fa_does_not_depend_on_the_lengths_of_rows() {
    let a = matrix(&[&[0.3, -1.1, 0.4, 0.9], &[1.3, 0.2, -0.7, 0.5]]);
    let b = matrix(&[&[0.1, 0.4], &[-0.3, 0.2], &[0.6, -0.5]]);
    let gradient = matrix(&[
        &[0.5, -1.0, 0.25, 2.0],
        &[1.5, 0.75, -0.5, 1.0],
        &[-0.25, 0.3, 0.8, -1.2],
    ]);
    // What W moves by in one step of SGD on g' is read from the first moment, 0.1 g'.
    let moved = |a: &Tensor, scale: f64, dtype: DType| {
        let cast = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
        let pairs = [pair(0, &cast(a), &cast(&b), scale)];
        let mut optimizer = lora_fa(&pairs, &params(&pairs)).unwrap();
        let of_b = (gradient.matmul(&a.t().unwrap()).unwrap() * scale).unwrap();
        let mut grads = Grads::default();
        grads.insert(&pairs[0].b, cast(&of_b));
        // Half of what is asked for: the factor that clips.
        optimizer.update(&grads, 0.5, 1e-3).unwrap();
        values(&(direction(&*optimizer, a) * (scale * 20.0)).unwrap())
    };
    let expected = moved(&a, 1.0, DType::F64);
    let norm: f64 = expected.iter().map(|value| value * value).sum();
    assert!(norm > 1.0, "{norm}");
    let longer = matrix(&[&[3.0, 0.0], &[1.0, -0.5]]).matmul(&a).unwrap();
    ensure_close(&moved(&longer, 0.7, DType::F64), &expected, 1e-7);
    ensure_close(&moved(&a, 1.7, DType::F32), &expected, 1e-5);
    // Projected once is projected: nothing but the part in the rows of A is left, and the rows that depend on each other
    // are as good as the ones that do not.
    let doubled = Tensor::cat(&[&a, &a.narrow(0, 0, 1).unwrap()], 0).unwrap();
    let b3 = Tensor::zeros((3, 3), DType::F32, &Device::Cpu).unwrap();
    let pairs = [pair(0, &doubled.to_dtype(DType::F32).unwrap(), &b3, 1.0)];
    let mut optimizer = lora_fa(&pairs, &params(&pairs)).unwrap();
    let of_b = gradient.matmul(&doubled.t().unwrap()).unwrap();
    let mut grads = Grads::default();
    grads.insert(&pairs[0].b, of_b.to_dtype(DType::F32).unwrap());
    optimizer.update(&grads, 0.5, 1e-3).unwrap();
    let moved = (direction(&*optimizer, &doubled) * 20.0).unwrap();
    ensure_close(&values(&moved), &expected, 1e-4);
}

#[test]
fn lora_fa_refuses_what_is_not_plain() {
    let (a, b) = (matrix(&[&[3.0, 4.0]]), matrix(&[&[0.5], &[0.25], &[1.0]]));
    let pairs = [pair(0, &a, &b, 2.0), pair(2, &a, &b, 0.0)];
    let all = params(&pairs);
    let refused = |pairs: &[Pair], params: &[Param]| {
        let error = lora_fa(pairs, params).unwrap_err();
        assert!(error.is_usage());
        let text = error.to_string();
        let start = "`train.optimizer = \"lora_fa\"` trains layers that learn a product of two factors and nothing else, \
                     as plain LoRA's do: ";
        text.strip_prefix(start).unwrap().to_owned()
    };
    assert_eq!(refused(&[], &all[..1]), "there is none");
    assert_eq!(
        refused(&pairs[..1], &all),
        "`2.lora_B.weight` is not of such a product"
    );
    assert_eq!(
        refused(&pairs, &all),
        "that of `2.lora_B.weight` is multiplied by a scale of 0"
    );
    // What does not fit changes nothing, whatever comes before it.
    let mut optimizer = lora_fa(&pairs[..1], &all[..2]).unwrap();
    let mut grads = Grads::default();
    grads.insert(
        &pairs[0].b,
        matrix(&[&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0]]),
    );
    let error = optimizer.update(&grads, 1.0, 0.1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "LoRA-FA: the gradient has shape [3, 2], expected [3, 1] (0.lora_B.weight)"
    );
    assert_eq!(values(&pairs[0].b.value()), [0.5, 0.25, 1.0]);
    // Nothing of it has ranks that could be revived.
    let revival = Revival {
        param: pairs[0].a.clone(),
        axis: 0,
        slots: vec![0],
    };
    assert!(optimizer.restart(&revival).is_err());
}

/// A checkpoint brings another A: the inverse is that of the A that is there.
#[test]
fn a_restored_lora_fa_projects_on_the_restored_factor() {
    let (a, b) = (matrix(&[&[3.0, 4.0]]), matrix(&[&[0.5], &[0.25]]));
    let other = matrix(&[&[1.0, -2.0]]);
    let grads = |pair: &Pair| {
        let mut grads = Grads::default();
        grads.insert(&pair.b, matrix(&[&[2.0], &[-1.0]]));
        grads
    };
    let end = |first: &Tensor| {
        let pairs = [pair(0, first, &b, 2.0)];
        let mut optimizer = lora_fa(&pairs, &params(&pairs)).unwrap();
        let (tensors, ages) = optimizer.state().unwrap();
        optimizer.update(&grads(&pairs[0]), 1.0, 0.1).unwrap();
        optimizer.restore(tensors, ages).unwrap();
        pairs[0].a.set(&other).unwrap();
        pairs[0].b.set(&b).unwrap();
        optimizer.update(&grads(&pairs[0]), 1.0, 0.1).unwrap();
        let moments = optimizer.state().unwrap().0;
        values(&moments["second.0.lora_B.weight"])
    };
    assert_eq!(end(&a), end(&other));
}
