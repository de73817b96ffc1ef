//! DoRA's worked numbers, and its gradients against a dense twin whose norm is a constant.

use crate::{
    Layers, adapt, assert_near, matrix, merged, numbers, one_layer, output, random, saved, value,
};
use candle_core::{DType, Device, Tensor, Var};
use lowrank_adapter::{Attached, Pass, Selection, Start};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};

fn worked() -> (Tensor, Tensor, Tensor, Tensor, Tensor) {
    (
        matrix(&[&[1., 2., 3.], &[4., 5., 6.]]),
        Tensor::new(&[0.5, -0.5], &Device::Cpu).unwrap(),
        matrix(&[&[0.5, -0.5, 1.]]),
        matrix(&[&[1.], &[2.]]),
        matrix(&[&[1., 2., 3.]]),
    )
}

const KEYS: &str = r#"{"r": 1, "lora_alpha": 2, "use_dora": true, "target_modules": ["up"]}"#;

fn keys() -> Value {
    serde_json::from_str(KEYS).unwrap()
}

fn training() -> Pass {
    let key = Key::new(8, Purpose::Dropout).step(3).micro(1);
    Pass::training_pass(Selection::one("default"), key)
}

#[test]
fn a_layer_by_hand() {
    let (weight, bias, a, b, x) = worked();
    let mut fresh = one_layer(weight.clone(), Some(bias.clone()));
    let attached = adapt(&mut fresh, &keys(), Start::Seed(2));
    let start = [14f64.sqrt(), 77f64.sqrt()];
    assert_near(&value(&attached, "up.lora_magnitude_vector"), &start, 1e-15);
    assert_near(&start, &[3.741_657, 8.774_964], 1e-6);

    let mut model = one_layer(weight, Some(bias));
    let m = Tensor::new(&[2f64, 10.], &Device::Cpu).unwrap();
    let start = saved(&[
        ("lora_A.weight", &a),
        ("lora_B.weight", &b),
        ("lora_magnitude_vector", &m),
    ]);
    let attached = adapt(&mut model, &keys(), start);
    assert_eq!(attached.trainable_parameters(), 3 + 2 + 2);
    let expected = [7.437_819, 34.379_102];
    assert_near(&numbers(&output(&model, &x)), &expected, 1e-6);
    let weight = merged(&model);
    let rows = [
        0.730_297, 0.365_148, 1.825_742, 4.982_729, 2.491_364, 8.304_548,
    ];
    assert_near(&numbers(&weight), &rows, 1e-6);
    let folded = FrozenLinear::new(weight, model.0[0].base().bias().cloned()).unwrap();
    assert_near(&numbers(&folded.forward(&x).unwrap()), &expected, 1e-6);

    let y = model.0[0].forward(&x, &mut training()).unwrap();
    let loss = ops::sum_all(&y).unwrap();
    let (grads, _) = ops::backward(&loss, &attached.params, &[]).unwrap();
    let grad = |index: usize| numbers(grads.get(&attached.params[index]).unwrap());
    assert_near(&grad(0), &[4.052_116, 8.104_232, 12.156_348], 1e-6);
    // With a norm that is not constant this would be [-0.718125, -1.380273].
    assert_near(&grad(1), &[1.825_742, 4.152_274], 1e-6);
    assert_near(&grad(2), &[3.468_910, 3.487_910], 1e-6);
}

/// A layer `[6, 9]` of rank 4 with every number random.
struct Scene {
    weight: Tensor,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    m: Tensor,
    x: Tensor,
    scale: f64,
}

impl Scene {
    fn new() -> Self {
        Self {
            weight: random("weight", &[6, 9]),
            bias: random("bias", &[6]),
            a: random("a", &[4, 9]),
            b: random("b", &[6, 4]),
            m: random("m", &[6]),
            x: random("x", &[2, 5, 9]),
            scale: 0.75,
        }
    }

    fn keys(&self, dropout: f64) -> Value {
        json!({
            "r": 4, "lora_alpha": 4.0 * self.scale, "use_dora": true, "lora_dropout": dropout,
            "target_modules": ["up"],
        })
    }

    fn layer(&self, dropout: f64, m: &Tensor) -> (Layers, Attached) {
        let mut model = one_layer(self.weight.clone(), Some(self.bias.clone()));
        let start = saved(&[
            ("lora_A.weight", &self.a),
            ("lora_B.weight", &self.b),
            ("lora_magnitude_vector", m),
        ]);
        let attached = adapt(&mut model, &self.keys(dropout), start);
        (model, attached)
    }

    fn direction(&self) -> Tensor {
        let update = (self.b.matmul(&self.a).unwrap() * self.scale).unwrap();
        (&self.weight + update).unwrap()
    }

    /// The row norms of W + s B A `[6]`.
    fn norms(&self) -> Tensor {
        let squares = self.direction().sqr().unwrap().sum(1).unwrap();
        squares.sqrt().unwrap()
    }
}

/// The method note's formulas in candle's own operations: n is given, and so a constant.
fn twin(scene: &Scene, n: &Tensor, leaves: &[Var], dropped: Option<f64>) -> Tensor {
    let [x, a, b, m] = leaves else {
        panic!("four leaves")
    };
    let rows = |x: &Tensor, w: &Tensor| x.reshape((10, ())).unwrap().matmul(&w.t().unwrap());
    let factor = (m.as_tensor() / n).unwrap();
    let d = match dropped {
        Some(p) => {
            let key = training().rng().purpose(Purpose::Dropout).site("up");
            ops::dropout(x, p, key).unwrap()
        }
        None => x.as_tensor().clone(),
    };
    let update = rows(&rows(&d, a).unwrap(), b).unwrap();
    let update = (update * scene.scale).unwrap();
    let y = match dropped {
        None => (rows(x, &scene.weight).unwrap() + update)
            .unwrap()
            .broadcast_mul(&factor)
            .unwrap(),
        Some(_) => {
            let less = (&factor - 1.0).unwrap();
            let base = rows(&d, &scene.weight).unwrap().broadcast_mul(&less);
            let changed = (base.unwrap() + update.broadcast_mul(&factor).unwrap()).unwrap();
            (rows(x, &scene.weight).unwrap() + changed).unwrap()
        }
    };
    let y = y.broadcast_add(&scene.bias).unwrap();
    y.reshape((2, 5, 6)).unwrap()
}

#[test]
fn outputs_and_gradients_are_those_of_the_formula() {
    let scene = Scene::new();
    let weights = random("loss", &[2, 5, 6]);
    let loss = |y: &Tensor| ops::sum_all(&(y * &weights).unwrap()).unwrap();
    for dropout in [0.0, 0.4] {
        let (model, attached) = scene.layer(dropout, &scene.m);
        let x = ops::leaf(&scene.x).unwrap();
        let y = model.0[0].forward(&x, &mut training()).unwrap();
        let (grads, of_x) = ops::backward(&loss(&y), &attached.params, &[&x]).unwrap();

        let leaves = [&scene.x, &scene.a, &scene.b, &scene.m].map(|t| ops::leaf(t).unwrap());
        let dropped = (dropout > 0.0).then_some(dropout);
        let expected = twin(&scene, &scene.norms(), &leaves, dropped);
        assert_near(&numbers(&y), &numbers(&expected), 1e-13);
        let all: Vec<&Var> = leaves.iter().collect();
        let (_, theirs) = ops::backward(&loss(&expected), &[], &all).unwrap();
        let theirs: Vec<Vec<f64>> = theirs
            .iter()
            .map(|grad| numbers(grad.as_ref().unwrap()))
            .collect();
        assert_near(&numbers(of_x[0].as_ref().unwrap()), &theirs[0], 1e-13);
        for (param, theirs) in attached.params.iter().zip(&theirs[1..]) {
            assert_near(&numbers(grads.get(param).unwrap()), theirs, 1e-13);
        }
    }
}

/// The norm by W Aᵀ and A Aᵀ against that of the dense sum, in f32.
#[test]
fn norms_in_single_precision_are_those_of_the_dense_weight() {
    let mut scene = Scene::new();
    for part in [&mut scene.weight, &mut scene.bias, &mut scene.x] {
        *part = part.to_dtype(DType::F32).unwrap();
    }
    let (model, _) = scene.layer(0.0, &scene.m);
    let y = output(&model, &scene.x);
    assert_eq!(y.dtype(), DType::F32);
    let folded = FrozenLinear::new(merged(&model), Some(scene.bias.clone())).unwrap();
    let expected = folded.forward(&scene.x).unwrap();
    assert_near(&numbers(&y), &numbers(&expected), 2e-6);
}

#[test]
fn at_the_norm_it_is_lora() {
    let scene = Scene::new();
    let (model, _) = scene.layer(0.0, &scene.norms());
    let mut plain = one_layer(scene.weight.clone(), Some(scene.bias.clone()));
    let mut keys = scene.keys(0.0);
    keys["use_dora"] = false.into();
    let start = saved(&[("lora_A.weight", &scene.a), ("lora_B.weight", &scene.b)]);
    adapt(&mut plain, &keys, start);
    assert_near(
        &numbers(&output(&model, &scene.x)),
        &numbers(&output(&plain, &scene.x)),
        1e-13,
    );
}

#[test]
fn with_every_input_dropped_it_is_the_base() {
    let scene = Scene::new();
    let (model, _) = scene.layer(1.0 - 1e-12, &scene.m);
    let y = model.0[0].forward(&scene.x, &mut training()).unwrap();
    let base = model.0[0].base().forward(&scene.x).unwrap();
    assert_eq!(numbers(&y), numbers(&base));
}

/// A row of zeros has no direction: it gives the bias, and gradients are finite.
#[test]
fn a_row_of_zeros_stays_one() {
    let (_, bias, _, _, x) = worked();
    let mut model = one_layer(matrix(&[&[0., 0., 0.], &[4., 5., 6.]]), Some(bias));
    let attached = adapt(&mut model, &keys(), Start::Seed(2));
    assert_eq!(numbers(&output(&model, &x))[0], 0.5);
    assert_eq!(numbers(&merged(&model))[..3], [0.0; 3]);
    let y = model.0[0].forward(&x, &mut training()).unwrap();
    let loss = ops::sum_all(&y).unwrap();
    let (grads, _) = ops::backward(&loss, &attached.params, &[]).unwrap();
    for (_, grad) in grads.iter() {
        assert!(ops::all_finite(grad).unwrap());
    }
}
