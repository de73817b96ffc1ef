//! The numbers of the method: gates, densities, the multiplier, orthogonality, routing, extraction.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

mod budget;
mod extraction;
mod gates;
mod layer;
mod refusals;

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Ask, Attached, Batch, Error, KvCache, Linear, Masks, Merge, Model, Outcome,
    Param, Part, Pass, Probe, Result, Selection, Source, Start, Step, attach,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Grads};
use lowrank_salora::{HardConcrete, Salora};
use serde_json::Value;

/// The constants of Louizos et al.
const LOUIZOS: HardConcrete = HardConcrete {
    beta: 2.0 / 3.0,
    gamma: -0.1,
    zeta: 1.1,
};

/// The same at the temperature 1.
const WARM: HardConcrete = HardConcrete {
    beta: 1.0,
    ..LOUIZOS
};

/// Linear layers without a model around them.
struct Layers(Vec<Linear>);

impl Layers {
    /// Layers of random weights, (path, n_out, n_in).
    fn random(shapes: &[(&str, usize, usize)], dtype: DType) -> Self {
        let layer = |&(path, n_out, n_in): &(&str, usize, usize)| {
            let weight = random(path, &[n_out, n_in]).to_dtype(dtype).unwrap();
            Linear::new(path, FrozenLinear::new(weight, None).unwrap())
        };
        Self(shapes.iter().map(layer).collect())
    }

    fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass) -> Tensor {
        self.0[layer].forward(x, pass).unwrap()
    }

    fn evaluated(&self, layer: usize, x: &Tensor) -> Tensor {
        self.forward(layer, x, &mut Pass::evaluation(selection()))
    }

    /// The weight of a layer with its adapter folded in.
    fn merged(&self, layer: usize) -> Tensor {
        match self.0[layer].merge(&mut Pass::evaluation(selection())) {
            Ok(Merge::Exact(merged)) => merged.weight,
            other => panic!("{other:?}"),
        }
    }
}

impl Model for Layers {
    fn model_type(&self) -> &str {
        "layers"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        for layer in &mut self.0 {
            visit(Part::Linear(layer));
        }
    }

    fn embed(&self, _: &Batch, _: &mut Pass) -> Result<Tensor> {
        Err(Error::Other("layers embed nothing".into()))
    }

    fn blocks(&self) -> usize {
        0
    }

    fn block(
        &self,
        _: usize,
        h: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        _: &mut Pass,
    ) -> Result<Tensor> {
        Ok(h.clone())
    }

    fn head(&self, h: &Tensor, _: &Batch, _: &Ask, _: &mut Pass) -> Result<Tensor> {
        Ok(h.clone())
    }
}

fn selection() -> Selection {
    Selection::one("default")
}

fn adapt(model: &mut Layers, mut keys: Value) -> Attached {
    keys["target_modules"] = "all-linear".into();
    let keys = keys.as_object().unwrap();
    let config = AdapterConfig::parse(&Salora, keys, Source::RunFile).unwrap();
    attach(model, "default", &config, Start::Seed(3)).unwrap()
}

/// The place of step `index` in a run.
fn key(index: u64) -> Key {
    Key::new(7, Purpose::Dropout).step(index)
}

fn training(index: u64) -> Pass {
    Pass::training_pass(selection(), key(index))
}

fn step(index: u64, total: u64) -> Step {
    Step {
        index,
        total,
        per_epoch: 1,
        seed: 7,
        learning_rate: 0.1,
    }
}

/// The gradient of the penalty at this step, and the penalty, before the controller has seen the gradient.
fn penalty(attached: &Attached, at: Step) -> (Grads, f64) {
    let controller = attached.controller.as_ref().unwrap();
    let Some(penalty) = controller.penalty(at, &training(at.index)).unwrap() else {
        return (Grads::default(), 0.0);
    };
    let value = penalty.detach().to_dtype(DType::F64).unwrap();
    let (grads, _) = ops::backward(&penalty, &attached.params, &[]).unwrap();
    (grads, value.to_scalar().unwrap())
}

/// Lets the controller see a step's gradients, without an update.
fn after(attached: &mut Attached, at: Step, grads: &mut Grads) -> Outcome {
    let controller = attached.controller.as_mut().unwrap();
    controller.after_backward(at, grads).unwrap();
    controller.after_update(at, grads, &mut Silent).unwrap()
}

struct Silent;

impl Probe for Silent {
    fn losses(&mut self, _: &[Masks]) -> Result<Vec<f64>> {
        Err(Error::Other("nobody asks".into()))
    }
}

fn param(attached: &Attached, name: &str) -> Param {
    let mut params = attached.params.iter();
    params.find(|param| param.name() == name).unwrap().clone()
}

fn set(attached: &Attached, name: &str, value: &Tensor) {
    let param = param(attached, name);
    param.set(&value.to_dtype(param.dtype()).unwrap()).unwrap();
}

fn value(attached: &Attached, name: &str) -> Vec<f64> {
    numbers(&param(attached, name).value())
}

fn vector(numbers: &[f64]) -> Tensor {
    Tensor::new(numbers, &Device::Cpu).unwrap()
}

fn matrix(rows: &[&[f64]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

/// Normal numbers in f64, keyed by `what`.
fn random(what: &str, shape: &[usize]) -> Tensor {
    let mut stream = Key::new(29, Purpose::Test).site(what).stream();
    let numbers: Vec<f64> = (0..shape.iter().product())
        .map(|_| stream.normal())
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().flatten_all().unwrap();
    flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_near(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        // The negation catches a NaN.
        let near = (got - expected).abs() <= tolerance;
        assert!(
            near,
            "{got} instead of {expected}, allowed is {tolerance:e}"
        );
    }
}
