//! Worked numbers: the update, its forms, starts, what dropout does, and the count of parameters.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Adapter, Param, Pass, Selection, Start};
use lowrank_conformance::layers::{ADAPTER, Layers, gap, matrix};
use lowrank_loha::Loha;
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

/// One layer `[n_out, n_in]` whose four factors are random.
fn randomised(n_out: usize, n_in: usize, more: Value) -> (Layers, Vec<Param>) {
    let mut model = Layers::new([("up", random("weight", (n_out, n_in)))]).unwrap();
    let attached = model.adapt(&Loha, &keys(more), Start::Seed(3)).unwrap();
    for param in &attached.params {
        let dims = param.shape().dims2().unwrap();
        param.set(&random(param.name(), dims)).unwrap();
    }
    (model, attached.params)
}

/// The update as the paper writes it.
fn formed(params: &[Param], scale: f64) -> Tensor {
    let product = |a: &Param, b: &Param| a.value().matmul(&b.value()).unwrap();
    let [a1, b1, a2, b2] = params else {
        panic!("{params:?}")
    };
    ((product(a1, b1) * product(a2, b2)).unwrap() * scale).unwrap()
}

fn adapter(model: &Layers) -> &dyn Adapter {
    model.0[0].adapter(ADAPTER).unwrap()
}

/// T-A10.
#[test]
fn the_update_is_the_product_number_by_number() {
    let weight = random("weight", (2, 3));
    let mut model = Layers::new([("up", weight.clone())]).unwrap();
    let saved = [
        ("up.hada_w1_a", matrix(&[&[1., 2.], &[0., 1.]]).unwrap()),
        (
            "up.hada_w1_b",
            matrix(&[&[1., 0., 1.], &[2., 1., 0.]]).unwrap(),
        ),
        ("up.hada_w2_a", matrix(&[&[1., 0.], &[1., 1.]]).unwrap()),
        (
            "up.hada_w2_b",
            matrix(&[&[0., 1., 1.], &[1., 1., 0.]]).unwrap(),
        ),
    ];
    let two = keys(json!({ "r": 2, "alpha": 4 }));
    model.adapt(&Loha, &two, Layers::saved(saved)).unwrap();
    let expected = matrix(&[&[0., 4., 2.], &[4., 4., 0.]]).unwrap();
    let update = (model.merged(0).unwrap() - &weight).unwrap();
    assert!(gap(&update, &expected).unwrap() < 1e-14);
    let x = random("x", (5, 3));
    let y = model.output(0, &x).unwrap();
    let expected = x
        .matmul(&(weight + expected).unwrap().t().unwrap())
        .unwrap();
    assert!(gap(&y, &expected).unwrap() < 1e-13);
}

/// A layer so large that the update is a product of rank 9, and one that is too small for that.
#[test]
fn both_forms_are_the_update() {
    for (n_out, n_in) in [(30, 24), (14, 10)] {
        let (model, params) = randomised(n_out, n_in, json!({ "r": 3, "alpha": 4.5 }));
        let update = formed(&params, 1.5);
        let weight = random("weight", (n_out, n_in));
        let expected = (&weight + &update).unwrap();
        assert!(gap(&model.merged(0).unwrap(), &expected).unwrap() < 1e-12);

        let x = random("x", (5, n_in));
        let expected = x.matmul(&expected.t().unwrap()).unwrap();
        let y = model.output(0, &x).unwrap();
        assert!(gap(&y, &expected).unwrap() < 1e-11);

        let found = adapter(&model).low_rank().unwrap().unwrap();
        assert_eq!(found.a.dims()[0], 9.min(n_in));
        let product = (found.b.matmul(&found.a).unwrap() * found.scale).unwrap();
        assert!(gap(&product, &update).unwrap() < 1e-12);
        let norm = update.sqr().unwrap().sum_all().unwrap();
        let norm = norm.to_scalar::<f64>().unwrap().sqrt();
        assert!((found.norm().unwrap() - norm).abs() < 1e-10 * norm);
    }
}

/// A rank whose square is above the smaller side becomes a product of that side's size.
#[test]
fn plain_lora_of_a_large_rank_is_as_small_as_the_weight() {
    for (n_out, n_in) in [(6, 9), (9, 6)] {
        let (model, params) = randomised(n_out, n_in, json!({ "r": 4, "alpha": 6 }));
        let found = adapter(&model).low_rank().unwrap().unwrap();
        assert_eq!(found.a.dims(), [6, n_in]);
        let product = (found.b.matmul(&found.a).unwrap() * found.scale).unwrap();
        assert!(gap(&product, &formed(&params, 1.5)).unwrap() < 1e-12);
    }
}

/// PEFT's start: uniform in ±1 / sqrt(columns), and `hada_w2_b` 0.
#[test]
fn starts() {
    let start = |init: bool| {
        let mut model = Layers::new([("up", random("weight", (60, 50)))]).unwrap();
        let keys = keys(json!({ "r": 4, "init_weights": init }));
        let attached = model.adapt(&Loha, &keys, Start::Seed(3)).unwrap();
        let largest = |param: &Param| {
            let values = param.value().abs().unwrap().max_all().unwrap();
            values.to_scalar::<f64>().unwrap()
        };
        attached.params.iter().map(largest).collect::<Vec<_>>()
    };
    let (half, small) = (0.5, 1.0 / 50f64.sqrt());
    let within = |largest: f64, bound: f64| largest <= bound && largest > 0.9 * bound;
    for init in [true, false] {
        let [w1_a, w1_b, w2_a, w2_b] = start(init)[..] else {
            panic!("four factors")
        };
        assert!(within(w1_a, half) && within(w2_a, half));
        assert!(within(w1_b, small));
        assert!(if init {
            w2_b == 0.0
        } else {
            within(w2_b, small)
        });
    }
}

/// 2 r (n_in + n_out); the note's 4096 x 4096 at rank 8, a hundredth in size.
#[test]
fn a_module_has_four_factors() {
    let (_, params) = randomised(41, 39, json!({ "r": 8 }));
    let count: usize = params.iter().map(Param::elem_count).sum();
    assert_eq!(count, 2 * 8 * (41 + 39));
    let names: Vec<&str> = params.iter().map(|param| param.name()).collect();
    assert_eq!(
        names,
        [
            "up.hada_w1_a",
            "up.hada_w1_b",
            "up.hada_w2_a",
            "up.hada_w2_b"
        ]
    );
}

/// In training whole rows of the update go, the others are divided by the share that is left; in evaluation nothing goes.
#[test]
fn dropped_rows_are_outputs() {
    let (model, params) = randomised(40, 12, json!({ "r": 2, "alpha": 3, "rank_dropout": 0.4 }));
    let update = formed(&params, 1.5);
    let x = random("x", (5, 12));
    let base = model.0[0].base().forward(&x).unwrap();
    let whole = x.matmul(&update.t().unwrap()).unwrap();
    let key = Key::new(7, Purpose::Dropout).step(2);
    let mut pass = Pass::training_pass(Selection::one(ADAPTER), key);
    let y = (model.0[0].forward(&x, &mut pass).unwrap().detach() - &base).unwrap();
    let ratio: Vec<Vec<f64>> = (y / &whole).unwrap().to_vec2().unwrap();
    let live = ratio[0].iter().filter(|ratio| **ratio != 0.0).count();
    assert!((15..35).contains(&live), "{live} of 40 rows are left");
    let factor = 40.0 / live as f64;
    for row in &ratio {
        for (ratio, first) in row.iter().zip(&ratio[0]) {
            let expected = if *first == 0.0 { 0.0 } else { factor };
            assert!((ratio - expected).abs() < 1e-9, "{ratio} and {expected}");
        }
    }
    let y = (model.output(0, &x).unwrap() - base).unwrap();
    assert!(gap(&y, &whole).unwrap() < 1e-12);
}

/// Over many passes a module is left out as often as is asked, whole or not at all.
#[test]
fn dropped_modules_are_the_base() {
    let (model, params) = randomised(9, 7, json!({ "r": 2, "alpha": 3, "module_dropout": 0.3 }));
    let x = random("x", (2, 7));
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
        let error = model.adapt(&Loha, &keys(more), Start::Seed(1)).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        refused(json!({ "r": 5 })),
        "up: r = 5 is larger than the matrix [6, 4] allows; use at most 4"
    );
    assert_eq!(
        refused(json!({ "r": 0 })),
        "`r = 0`, expected an integer above 0"
    );
    assert_eq!(
        refused(json!({ "bias": "loha_only" })),
        "unknown key `bias`"
    );
    assert_eq!(
        refused(json!({ "lora_alpha": 5 })),
        "unknown key `lora_alpha`"
    );
}
