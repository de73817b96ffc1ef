//! Worked numbers: the division of sides, the update, its forms, starts, what dropout does, and the count of parameters.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Adapter, Param, Pass, Selection, Start};
use lowrank_conformance::layers::{ADAPTER, Layers, gap, matrix};
use lowrank_lokr::{Lokr, factorization};
use lowrank_ops::{
    self as ops,
    rng::{Key, Purpose},
};
use serde_json::{Value, json};

/// Normal numbers in f64, keyed by `what`.
fn random(what: &str, shape: (usize, usize)) -> Tensor {
    let mut stream = Key::new(23, Purpose::Test).site(what).stream();
    let numbers: Vec<f64> = (0..shape.0 * shape.1).map(|_| stream.normal()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn keys(more: Value) -> Value {
    let mut keys = json!({ "target_modules": ["up"] });
    let more = more.as_object().cloned().unwrap();
    keys.as_object_mut().unwrap().extend(more);
    keys
}

/// One layer `[n_out, n_in]` whose factors are random.
fn randomised(n_out: usize, n_in: usize, more: Value) -> (Layers, Vec<Param>) {
    let mut model = Layers::new([("up", random("weight", (n_out, n_in)))]).unwrap();
    let attached = model.adapt(&Lokr, &keys(more), Start::Seed(3)).unwrap();
    for param in &attached.params {
        let dims = param.shape().dims2().unwrap();
        param.set(&random(param.name(), dims)).unwrap();
    }
    (model, attached.params)
}

/// The matrix called `name`, formed.
fn matrix_of(params: &[Param], name: &str) -> Tensor {
    let find = |name: &str| {
        params
            .iter()
            .find(|param| param.name() == format!("up.{name}"))
    };
    match find(name) {
        Some(whole) => whole.value(),
        None => {
            let part = |end: &str| find(&format!("{name}_{end}")).unwrap().value();
            part("a").matmul(&part("b")).unwrap()
        }
    }
}

/// Kronecker's product, number by number.
fn kron(a: &Tensor, b: &Tensor) -> Tensor {
    let (a, b): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (a.to_vec2().unwrap(), b.to_vec2().unwrap());
    let mut rows = Vec::new();
    for a in &a {
        for b in &b {
            let row = a.iter().flat_map(|a| b.iter().map(move |b| a * b));
            rows.push(row.collect::<Vec<_>>());
        }
    }
    Tensor::new(rows, &Device::Cpu).unwrap()
}

fn formed(params: &[Param], scale: f64) -> Tensor {
    let (w1, w2) = (matrix_of(params, "lokr_w1"), matrix_of(params, "lokr_w2"));
    (kron(&w1, &w2) * scale).unwrap()
}

fn adapter(model: &Layers) -> &dyn Adapter {
    model.0[0].adapter(ADAPTER).unwrap()
}

/// The table of the note, and what its text says of (128, 4).
#[test]
fn sides_are_divided_as_peft_divides_them() {
    for (dimension, factor, expected) in [
        (768, -1, (24, 32)),
        (1024, -1, (32, 32)),
        (4096, -1, (64, 64)),
        (11008, -1, (86, 128)),
        (127, -1, (1, 127)),
        (250, 8, (5, 50)),
        (360, -1, (18, 20)),
        (12, 5, (3, 4)),
        (128, 4, (4, 32)),
        (128, -1, (8, 16)),
        (12, 6, (6, 2)),
        (1, -1, (1, 1)),
        (2, -1, (1, 2)),
        (10, 0, (1, 10)),
        (10, -3, (1, 10)),
    ] {
        assert_eq!(
            factorization(dimension, factor),
            expected,
            "{dimension} with {factor}"
        );
    }
    // (12 with 6) is left unsorted; whatever comes, the product is the side.
    for dimension in 1..200 {
        for factor in -2..15 {
            let (first, second) = factorization(dimension, factor);
            assert_eq!(first * second, dimension);
        }
    }
}

/// T-A10, scaled by 3 / 2.
#[test]
fn the_update_is_the_kronecker_product() {
    let weight = random("weight", (4, 4));
    let mut model = Layers::new([("up", weight.clone())]).unwrap();
    let saved = [
        ("up.lokr_w1", matrix(&[&[1., 2.], &[3., 4.]]).unwrap()),
        ("up.lokr_w2", matrix(&[&[1., 0.], &[0., -1.]]).unwrap()),
    ];
    let two = keys(json!({ "r": 2, "alpha": 3 }));
    model.adapt(&Lokr, &two, Layers::saved(saved)).unwrap();
    let expected = matrix(&[
        &[1., 0., 2., 0.],
        &[0., -1., 0., -2.],
        &[3., 0., 4., 0.],
        &[0., -3., 0., -4.],
    ]);
    let expected = (expected.unwrap() * 1.5).unwrap();
    let update = (model.merged(0).unwrap() - &weight).unwrap();
    assert!(gap(&update, &expected).unwrap() < 1e-14);
    let x = random("x", (5, 4));
    let y = model.output(0, &x).unwrap();
    let expected = x
        .matmul(&(weight + expected).unwrap().t().unwrap())
        .unwrap();
    assert!(gap(&y, &expected).unwrap() < 1e-13);
}

/// Every combination of whole matrices and products, and the rank of the plain low-rank form.
#[test]
fn every_form_is_the_update() {
    for (n_out, n_in, more, tensors, rank) in [
        // [4, 3] and [5, 4]: min(4, 3) min(5, 4).
        (20, 12, json!({ "r": 4 }), 2, 12),
        // [4, 4] and [8, 6], the second of rank 3: 4 * 3.
        (32, 24, json!({ "r": 3 }), 3, 12),
        // [8, 8] and [4, 3], the first of rank 3: 3 * 3.
        (
            32,
            24,
            json!({ "r": 3, "decompose_both": true, "decompose_factor": 8 }),
            3,
            9,
        ),
        // [6, 4] and [7, 10], both of rank 2.
        (
            42,
            40,
            json!({ "r": 2, "decompose_both": true, "decompose_factor": 6 }),
            4,
            4,
        ),
        // [2, 2] and [20, 3], the second of a rank above its columns: 2 * 3.
        (40, 6, json!({ "r": 5, "decompose_factor": 2 }), 3, 6),
    ] {
        let what = format!("[{n_out}, {n_in}] {more}");
        let r = more["r"].as_f64().unwrap();
        let mut more = more;
        more["alpha"] = json!(1.5 * r);
        let (model, params) = randomised(n_out, n_in, more);
        assert_eq!(params.len(), tensors, "{what}: {params:?}");
        let update = formed(&params, 1.5);
        let expected = (random("weight", (n_out, n_in)) + &update).unwrap();
        assert!(gap(&model.merged(0).unwrap(), &expected).unwrap() < 1e-12);
        let x = random("x", (37, n_in));
        let expected = x.matmul(&expected.t().unwrap()).unwrap();
        let y = model.output(0, &x).unwrap();
        assert!(gap(&y, &expected).unwrap() < 1e-11, "{what}");
        let found = adapter(&model).low_rank().unwrap().unwrap();
        assert_eq!(found.a.dims()[0], rank, "{what}");
        let product = (found.b.matmul(&found.a).unwrap() * found.scale).unwrap();
        assert!(gap(&product, &update).unwrap() < 1e-12, "{what}");
    }
}

/// 64 * 64 + 2 * 64 * 8 = 5,120 numbers for a weight of 4096 x 4096.
#[test]
fn parameters_of_a_large_module() {
    let weight = Tensor::zeros((4096, 4096), DType::F16, &Device::Cpu).unwrap();
    let mut model = Layers::new([("up", weight)]).unwrap();
    let attached = model
        .adapt(&Lokr, &keys(json!({})), Start::Seed(3))
        .unwrap();
    assert_eq!(attached.trainable_parameters(), 5120);
    let names: Vec<&str> = attached.params.iter().map(|param| param.name()).collect();
    assert_eq!(names, ["up.lokr_w1", "up.lokr_w2_a", "up.lokr_w2_b"]);
}

/// Which tensors start at 0.
#[test]
fn starts() {
    let zeros = |more: Value| -> Vec<String> {
        let mut model = Layers::new([("up", random("weight", (42, 40)))]).unwrap();
        let attached = model.adapt(&Lokr, &keys(more), Start::Seed(3)).unwrap();
        let is_zero = |param: &Param| {
            let sum = param.value().abs().unwrap().sum_all().unwrap();
            sum.to_scalar::<f64>().unwrap() == 0.0
        };
        let zeros = attached.params.iter().filter(|param| is_zero(param));
        zeros.map(|param| param.name().to_owned()).collect()
    };
    let both = |init: Value| json!({ "r": 2, "decompose_both": true, "decompose_factor": 6, "init_weights": init });
    let whole = |init: Value| json!({ "r": 6, "init_weights": init });
    assert_eq!(zeros(both(json!(true))), ["up.lokr_w1_a"]);
    assert_eq!(zeros(both(json!("lycoris"))), ["up.lokr_w2_b"]);
    assert!(zeros(both(json!(false))).is_empty());
    assert_eq!(zeros(whole(json!(true))), ["up.lokr_w1"]);
    assert_eq!(zeros(whole(json!("lycoris"))), ["up.lokr_w2"]);
    assert!(zeros(whole(json!(false))).is_empty());
}

/// In training whole rows of the update go; the others are divided by the share that is left only if asked.
#[test]
fn dropped_rows_are_outputs() {
    for scaled in [false, true] {
        let more = json!({
            "r": 2, "alpha": 3, "rank_dropout": 0.4, "rank_dropout_scale": scaled,
        });
        let (model, params) = randomised(40, 12, more);
        let x = random("x", (5, 12));
        let base = model.0[0].base().forward(&x).unwrap();
        let whole = x.matmul(&formed(&params, 1.5).t().unwrap()).unwrap();
        let key = Key::new(7, Purpose::Dropout).step(2);
        let mut pass = Pass::training_pass(Selection::one(ADAPTER), key);
        let y = (model.0[0].forward(&x, &mut pass).unwrap().detach() - &base).unwrap();
        let ratio: Vec<Vec<f64>> = (y / &whole).unwrap().to_vec2().unwrap();
        let live = ratio[0].iter().filter(|ratio| ratio.abs() > 1e-9).count();
        assert!((15..35).contains(&live), "{live} of 40 rows are left");
        let factor = if scaled { 40.0 / live as f64 } else { 1.0 };
        for row in &ratio {
            for (ratio, first) in row.iter().zip(&ratio[0]) {
                let expected = if first.abs() < 1e-9 { 0.0 } else { factor };
                assert!((ratio - expected).abs() < 1e-8, "{ratio} and {expected}");
            }
        }
        let y = (model.output(0, &x).unwrap() - base).unwrap();
        assert!(gap(&y, &whole).unwrap() < 1e-12);
    }
}

/// Over many passes a module is left out as often as is asked, whole or not at all.
#[test]
fn dropped_modules_are_the_base() {
    let (model, params) = randomised(9, 8, json!({ "r": 2, "alpha": 3, "module_dropout": 0.3 }));
    let x = random("x", (2, 8));
    let base = model.0[0].base().forward(&x).unwrap();
    let adapted = model.output(0, &x).unwrap();
    let mut left_out = 0;
    for step in 0..400 {
        let key = Key::new(7, Purpose::Dropout).step(step);
        let mut pass = Pass::training_pass(Selection::one(ADAPTER), key);
        let y = model.0[0].forward(&x, &mut pass).unwrap();
        if gap(&y, &base).unwrap() == 0.0 {
            left_out += 1;
            // Every tensor is in the gradients all the same, which is what the trainer looks for.
            let loss = ops::sum_all(&y).unwrap();
            let (grads, _) = ops::backward(&loss, &params, &[]).unwrap();
            for param in &params {
                let grad = grads.get(param).unwrap().abs().unwrap();
                assert_eq!(grad.sum_all().unwrap().to_scalar::<f64>().unwrap(), 0.0);
            }
        } else {
            assert!(gap(&y, &adapted).unwrap() < 1e-13);
        }
    }
    // Four standard deviations.
    assert!((83..=157).contains(&left_out), "{left_out} of 400");
}

#[test]
fn refusals() {
    let refused = |more: Value| {
        let weight = Tensor::ones((6, 4), DType::F32, &Device::Cpu).unwrap();
        let mut model = Layers::new([("up", weight)]).unwrap();
        let error = model.adapt(&Lokr, &keys(more), Start::Seed(1)).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        refused(json!({ "r": 5 })),
        "up: r = 5 is larger than the matrix [6, 4] allows; use at most 4"
    );
    assert_eq!(
        refused(json!({ "init_weights": "gaussian" })),
        "`init_weights = \"gaussian\"`: expected true, false or \"lycoris\""
    );
    assert_eq!(refused(json!({ "bias": "none" })), "unknown key `bias`");
}
