//! The vocabulary of adapters, on the small model and with the small families of the conformance suite.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod attaching;
mod configuration;
mod footprints;
mod full_training;
mod gates;
mod layers;
mod replacing;
mod stored;
mod targets;

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, AnyFamily, Attached, Linear, Model, Param, Part, Source, Start, attach,
};
use lowrank_conformance::families::Chained;
use lowrank_conformance::toy::{Head, Toy};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::Value;

const Q0: &str = "model.layers.0.self_attn.q_proj";

fn toy() -> Toy {
    Toy::new(DType::F64, Head::Own).unwrap()
}

fn parse(family: &'static dyn AnyFamily, keys: Value) -> lowrank_adapter::Result<AdapterConfig> {
    AdapterConfig::parse(family, keys.as_object().unwrap(), Source::RunFile)
}

fn config(keys: Value) -> AdapterConfig {
    parse(&Chained, keys).unwrap()
}

/// Attaches a chained adapter whose trained tensors are all random. On a single site it is plain LoRA.
fn attached(toy: &mut Toy, name: &str, keys: Value) -> Attached {
    let attached = attach(toy, name, &config(keys), Start::Seed(3)).unwrap();
    for param in &attached.params {
        randomise(param, name);
    }
    attached
}

fn randomise(param: &Param, salt: &str) {
    let key = Key::new(21, Purpose::Test).site(&format!("{salt} {}", param.name()));
    let noise = random(param.shape().dims(), key);
    param
        .set(&(param.snapshot().unwrap() + noise).unwrap())
        .unwrap();
}

fn random(dims: &[usize], key: Key) -> Tensor {
    let mut stream = key.stream();
    let values: Vec<f64> = (0..dims.iter().product())
        .map(|_| 0.4 * stream.normal())
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn param<'a>(attached: &'a Attached, name: &str) -> &'a Param {
    let mut params = attached.params.iter();
    params.find(|param| param.name() == name).expect(name)
}

/// Shows the linear layer at `path`.
fn at<T>(toy: &mut Toy, path: &str, look: impl FnOnce(&Linear) -> T) -> T {
    let (mut look, mut seen) = (Some(look), None);
    toy.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part
            && linear.path() == path
            && let Some(look) = look.take()
        {
            seen = Some(look(linear));
        }
    });
    seen.expect(path)
}

fn matrix(tensor: &Tensor) -> Vec<Vec<f64>> {
    tensor.to_vec2().unwrap()
}

#[track_caller]
fn assert_near(got: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
        }
    }
}
