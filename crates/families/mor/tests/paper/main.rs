//! Worked numbers: the layer by hand and its gradients, what it reduces to, invariances, counts, merges, and what training
//! finds.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

mod by_hand;
mod merging;
mod properties;
mod training;

use candle_core::{DType, Device, Tensor, Var};
use lowrank_adapter::{
    AdapterConfig, Attached, Linear, Param, Pass, Selection, Source, Start, attach,
};
use lowrank_conformance::layers::Layers;
use lowrank_frozen::FrozenLinear;
use lowrank_mor::Mor;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};

/// One layer called `up` with its adapter.
struct Adapted {
    model: Layers,
    attached: Attached,
}

impl Adapted {
    fn new(weight: &Tensor, mut keys: Value, start: Start) -> Self {
        keys["target_modules"] = json!(["up"]);
        let base = FrozenLinear::new(weight.clone(), None).unwrap();
        let mut model = Layers(vec![Linear::new("up", base)]);
        let config =
            AdapterConfig::parse(&Mor, keys.as_object().unwrap(), Source::RunFile).unwrap();
        let attached = attach(&mut model, "default", &config, start).unwrap();
        Self { model, attached }
    }

    fn layer(&self) -> &Linear {
        &self.model.0[0]
    }

    /// What the layer does to `x` in evaluation mode.
    fn output(&self, x: &Tensor) -> Tensor {
        let mut pass = Pass::evaluation(Selection::one("default"));
        self.layer().forward(x, &mut pass).unwrap()
    }

    fn param(&self, name: &str) -> &Param {
        let name = format!("up.{name}");
        let mut params = self.attached.params.iter();
        params.find(|param| param.name() == name).unwrap()
    }

    fn value(&self, name: &str) -> Vec<f64> {
        numbers(&self.param(name).value())
    }

    /// The gradients of the sum of v * y: of x, and of the named tensors.
    fn gradients(&self, x: &Tensor, v: &Tensor, names: &[&str]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let x: Var = ops::leaf(x).unwrap();
        let mut pass = training();
        let y = self.layer().forward(x.as_tensor(), &mut pass).unwrap();
        let loss = ops::sum_all(&(y * v).unwrap()).unwrap();
        let trained = self.attached.trained();
        let (grads, of_x) = ops::backward(&loss, &trained, &[&x]).unwrap();
        let of = |name: &&str| numbers(grads.get(self.param(name)).unwrap());
        let of_x = numbers(of_x[0].as_ref().unwrap());
        (of_x, names.iter().map(of).collect())
    }
}

const ALL: [&str; 5] = [
    "lora_A.weight",
    "lora_B.weight",
    "mor_scale_A",
    "mor_scale_B",
    "mor_router",
];

fn training() -> Pass {
    let key = Key::new(8, Purpose::Dropout).step(3).micro(1);
    Pass::training_pass(Selection::one("default"), key)
}

/// A matrix in f64.
fn matrix(rows: &[&[f64]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

/// Normal numbers in f64, keyed by `what`.
fn random(what: &str, shape: &[usize]) -> Tensor {
    let mut stream = Key::new(23, Purpose::Test).site(what).stream();
    let numbers: Vec<f64> = (0..shape.iter().product())
        .map(|_| stream.normal())
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().flatten_all().unwrap();
    flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Asserts equal numbers, up to `tolerance` times the largest (or 1).
#[track_caller]
fn assert_near(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(1f64, |size, x| size.max(x.abs()));
    for (a, b) in got.iter().zip(expected) {
        // A NaN is not near to anything.
        let near = (a - b).abs() <= tolerance * size;
        assert!(near, "{got:?} instead of {expected:?}");
    }
}

/// The tensors of a file, A, B, OA, OB and, if there is one, Wg.
fn saved(tensors: &[&Tensor]) -> Start {
    let named = |(name, tensor): (&&str, &&Tensor)| (format!("up.{name}"), (*tensor).clone());
    Start::Saved {
        tensors: ALL.iter().zip(tensors).map(named).collect(),
        seed: 1,
    }
}

/// The example of two experts that is worked by hand: r = 2, s = 2, [3, 2].
struct Worked {
    w: Tensor,
    a: Tensor,
    b: Tensor,
    oa: Tensor,
    ob: Tensor,
    wg: Tensor,
    x: Tensor,
}

impl Worked {
    fn new() -> Self {
        Self {
            w: matrix(&[&[1., 0.], &[0., 1.], &[1., 1.]]),
            a: matrix(&[&[1., 0.5], &[-0.5, 1.]]),
            b: matrix(&[&[0.2, -0.1], &[0.4, 0.3], &[-0.6, 0.5]]),
            oa: matrix(&[&[1., 1.], &[0.5, -1.]]),
            ob: matrix(&[&[1., 1., 1.], &[2., 0., -1.]]),
            wg: matrix(&[&[0.3, -0.2], &[-0.1, 0.4]]),
            x: matrix(&[&[1., 2.]]),
        }
    }

    fn start(&self) -> Start {
        saved(&[&self.a, &self.b, &self.oa, &self.ob, &self.wg])
    }

    fn adapted(&self) -> Adapted {
        Adapted::new(&self.w, keys(2, 4.0, 2), self.start())
    }
}

fn keys(r: usize, alpha: f64, experts: usize) -> Value {
    json!({ "r": r, "lora_alpha": alpha, "num_experts": experts })
}

/// A routed layer in f64 away from its start: n_in 5, n_out 7, r 3, N 4, s 1.5.
fn large(what: &str) -> ([Tensor; 6], Adapted) {
    let of = |name: &str, shape: &[usize]| random(&format!("{what} {name}"), shape);
    let tensors = [
        of("W", &[7, 5]),
        of("A", &[3, 5]),
        of("B", &[7, 3]),
        of("OA", &[4, 3]),
        of("OB", &[4, 7]),
        of("Wg", &[4, 5]),
    ];
    let [w, a, b, oa, ob, wg] = &tensors;
    let adapted = Adapted::new(w, keys(3, 4.5, 4), saved(&[a, b, oa, ob, wg]));
    (tensors, adapted)
}
