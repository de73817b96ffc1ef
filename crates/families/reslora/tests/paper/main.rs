//! Worked numbers: a chain of three layers by hand, gradients, merges, and where chains begin.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

mod chains;
mod dropout;
mod merging;
mod toy;

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Ask, Attached, Batch, KvCache, Linear, Memory, Merge, Model, Param, Part, Pass,
    Records, Result, Selection, Share, Source, Start, Step, Swept, Tokens, attach, sweep,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{Tracking, backward, leaf, sum_all};
use lowrank_reslora::Reslora;
use serde_json::{Value, json};

const NAME: &str = "default";

/// Linear layers one after the other, each a block of a model: the first hidden state is `x`, and the losses are half the
/// squares of the last one's numbers, a token each.
struct Layers {
    x: Tensor,
    layers: Vec<Linear>,
}

impl Model for Layers {
    fn model_type(&self) -> &str {
        "llama"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        self.layers
            .iter_mut()
            .for_each(|layer| visit(Part::Linear(layer)));
    }

    fn embed(&self, _: &Batch, _: &mut Pass) -> Result<Tensor> {
        Ok(self.x.clone())
    }

    fn blocks(&self) -> usize {
        self.layers.len()
    }

    fn block(
        &self,
        i: usize,
        h: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        self.layers[i].forward(h, pass)
    }

    fn head(&self, h: &Tensor, _: &Batch, _: &Ask, _: &mut Pass) -> Result<Tensor> {
        Ok((h.sqr()?.sum(1)? * 0.5)?)
    }
}

impl Layers {
    /// Layers called `q_proj` over these weights.
    fn new(x: Tensor, weights: Vec<Tensor>) -> Self {
        let linear = |(i, weight): (usize, Tensor)| {
            let path = format!("model.layers.{i}.self_attn.q_proj");
            Linear::new(path, FrozenLinear::new(weight, None).unwrap())
        };
        let layers = weights.into_iter().enumerate().map(linear).collect();
        Self { x, layers }
    }

    /// Random ones of these (n_out, n_in), in f64, whose first input is not used.
    fn random(dims: &[(usize, usize)], dtype: DType) -> Self {
        let weight = |(i, &(n_out, n_in)): (usize, &(usize, usize))| {
            let weight = random(&format!("W {i}"), &[n_out, n_in]);
            weight.to_dtype(dtype).unwrap()
        };
        let weights = dims.iter().enumerate().map(weight).collect();
        Self::new(matrix(&[&[0.0]]), weights)
    }

    /// Attaches the family to every layer.
    fn adapt(&mut self, keys: &Value) -> Attached {
        self.attach(keys, Start::Seed(3))
    }

    fn attach(&mut self, keys: &Value, start: Start) -> Attached {
        let config = config(keys);
        attach(self, NAME, &config, start).unwrap()
    }

    /// The last output, each layer's input being the output of the one before.
    fn run(&self, x: &Tensor, pass: &mut Pass) -> Tensor {
        let through = |x: Tensor, layer: &Linear| layer.forward(&x, pass).unwrap();
        self.layers.iter().fold(x.clone(), through)
    }

    /// Every layer's output for inputs of its own.
    fn outputs(&self, inputs: &[Tensor], pass: &mut Pass) -> Vec<Tensor> {
        let pairs = self.layers.iter().zip(inputs);
        pairs
            .map(|(layer, x)| layer.forward(x, pass).unwrap())
            .collect()
    }

    /// Every layer's merge, in order.
    fn merges(&self) -> Vec<Merge> {
        let mut pass = evaluation();
        let merges = self.layers.iter();
        merges
            .map(|layer| layer.merge(&mut pass).unwrap())
            .collect()
    }

    /// The merged weights, whether exact or not.
    fn merged(&self) -> Vec<Tensor> {
        let weight = |merge| match merge {
            Merge::Exact(merged) | Merge::Approximate(merged) => merged.weight,
            Merge::InputDependent => panic!("a layer does not merge"),
        };
        self.merges().into_iter().map(weight).collect()
    }

    /// A plain model of the merged weights.
    fn folded(&self) -> Self {
        Self::new(self.x.clone(), self.merged())
    }

    /// One micro-batch, forward and backward.
    fn sweep(&self, attached: &Attached, memory: Memory) -> Swept {
        let (rows, share) = (
            self.x.dim(0).unwrap(),
            Share {
                token: 1.0,
                auxiliary: 1.0,
            },
        );
        let batch = tokens(rows, rows);
        sweep(
            self,
            &batch,
            &mut training(),
            &attached.trained(),
            share,
            memory,
        )
        .unwrap()
    }
}

/// One row of `length` tokens, of which the first `real` are no padding.
fn tokens(real: usize, length: usize) -> Batch {
    let tokens = Tokens {
        rows: 1,
        length,
        ids: vec![0; length],
        segments: (0..length).map(|at| u32::from(at < real)).collect(),
        positions: (0..length as u32).collect(),
    };
    Batch::new(tokens, vec![-100; length]).unwrap()
}

/// The family under these keys; without dropout if they say nothing of it.
fn config(keys: &Value) -> AdapterConfig {
    let mut keys = keys.as_object().unwrap().clone();
    keys.entry("lora_dropout").or_insert(json!(0.0));
    AdapterConfig::parse(&Reslora, &keys, Source::RunFile).unwrap()
}

fn evaluation() -> Pass {
    Pass::evaluation(Selection::one(NAME))
}

fn training() -> Pass {
    let key = Key::new(41, Purpose::Dropout).step(3).micro(1);
    Pass::training_pass(Selection::one(NAME), key)
}

/// Shows a pass's records to the controller.
fn observe(attached: &mut Attached, records: &Records) {
    let step = Step {
        index: 1,
        total: 2,
        per_epoch: 2,
        seed: 3,
        learning_rate: 0.1,
    };
    let controller = attached.controller.as_mut().unwrap();
    controller.observe(step, records).unwrap();
}

/// The tensor of layer `i` that is called `name`.
fn param<'a>(attached: &'a Attached, i: usize, name: &str) -> &'a Param {
    let name = format!("model.layers.{i}.self_attn.q_proj.{name}");
    let mut params = attached.params.iter();
    params.find(|param| param.name() == name).unwrap()
}

/// Moves every A and B to random numbers.
fn randomise(attached: &Attached) {
    for param in attached.trained() {
        let value = random(param.name(), param.shape().dims());
        param.set(&value.to_dtype(param.dtype()).unwrap()).unwrap();
    }
}

/// A matrix in f64.
fn matrix(rows: &[&[f64]]) -> Tensor {
    let flat = rows.concat();
    Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
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
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1().unwrap()
}

/// Asserts equal numbers, up to `tolerance` times the largest (or 1).
#[track_caller]
fn assert_near(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(1f64, |size, x| size.max(x.abs()));
    for (a, b) in got.iter().zip(expected) {
        // A NaN is not near.
        let near = (a - b).abs() <= tolerance * size;
        assert!(near, "{got:?} instead of {expected:?}");
    }
}

#[track_caller]
fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims());
    assert_near(&numbers(got), &numbers(expected), tolerance);
}

#[track_caller]
fn assert_same_bits(got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims());
    let bits = |tensor| -> Vec<u64> { numbers(tensor).into_iter().map(f64::to_bits).collect() };
    assert_eq!(bits(got), bits(expected));
}

/// ||got - expected|| / ||expected||.
fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    let norm = |numbers: &[f64]| numbers.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (got, expected) = (numbers(got), numbers(expected));
    let gap: Vec<f64> = got.iter().zip(&expected).map(|(a, b)| a - b).collect();
    norm(&gap) / norm(&expected)
}

/// Half the sum of squares of a chain's last output, and its gradients: of every trained tensor, and of x.
fn whole_gradients(layers: &Layers, attached: &Attached) -> (Vec<Tensor>, Tensor) {
    let x = leaf(&layers.x).unwrap();
    let h = layers.run(x.as_tensor(), &mut training());
    let loss = (sum_all(&h.sqr().unwrap()).unwrap() * 0.5).unwrap();
    let (grads, leaves) = backward(&loss, &attached.trained(), &[&x]).unwrap();
    let of = |param: &Param| grads.get(param).unwrap().clone();
    let params = attached.trained().iter().map(of).collect();
    (params, leaves[0].clone().unwrap())
}

/// A loss by hand, for differences.
fn loss(layers: &Layers, x: &Tensor) -> f64 {
    let h = layers.run(x, &mut training());
    0.5 * numbers(&h).iter().map(|h| h * h).sum::<f64>()
}

#[test]
fn a_pass_trains_what_it_selects() {
    let mut layers = Layers::random(&[(4, 3)], DType::F64);
    let attached = layers.adapt(&json!({ "r": 2 }));
    assert!(
        attached
            .trained()
            .iter()
            .all(|param| training().trains(param))
    );
}
