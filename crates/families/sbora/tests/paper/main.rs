//! Worked numbers: both variants by hand, one-hot oracles, merges that leave the rest alone, training of some columns
//! alone, the sampler, counts, several adapters, and quantised bases.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

mod by_hand;
mod files;
mod merging;
mod quantised;
mod sampling;
mod training;

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Attached, Kind, Linear, LowRank, Merge, Param, Pass, Result, Selection, Source,
    Start, attach,
};
use lowrank_conformance::layers::Layers;
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_sbora::{Sbora, Variant};
use serde_json::{Value, json};

/// One layer called `up` with its adapter.
struct Adapted {
    model: Layers,
    attached: Attached,
}

impl Adapted {
    fn new(weight: &Tensor, keys: Value, start: Start) -> Self {
        let base = FrozenLinear::new(weight.clone(), None).unwrap();
        Self::on(base, keys, start).unwrap()
    }

    fn on(base: FrozenLinear, mut keys: Value, start: Start) -> Result<Self> {
        keys["target_modules"] = json!(["up"]);
        let mut model = Layers(vec![Linear::new("up", base)]);
        let config = AdapterConfig::parse(&Sbora, keys.as_object().unwrap(), Source::RunFile)?;
        let attached = attach(&mut model, "default", &config, start)?;
        Ok(Self { model, attached })
    }

    fn layer(&self) -> &Linear {
        &self.model.0[0]
    }

    /// What the layer does to `x` in evaluation mode.
    fn output(&self, x: &Tensor) -> Tensor {
        let mut pass = Pass::evaluation(Selection::one("default"));
        self.layer().forward(x, &mut pass).unwrap()
    }

    fn merged(&self) -> Tensor {
        let mut pass = Pass::evaluation(Selection::one("default"));
        match self.layer().merge(&mut pass).unwrap() {
            Merge::Exact(merged) => merged.weight,
            other => panic!("{other:?}"),
        }
    }

    fn low_rank(&self) -> LowRank {
        let adapter = self.layer().adapter("default").unwrap();
        adapter.low_rank().unwrap().unwrap()
    }

    /// The only tensor that is trained.
    fn factor(&self) -> Param {
        let [factor] = &self.attached.trained()[..] else {
            panic!("{:?}", self.attached.trained())
        };
        factor.clone()
    }

    fn indices(&self) -> Vec<u32> {
        let mut params = self.attached.params.iter();
        let indices = params.find(|param| param.name() == "up.sbora_idx").unwrap();
        assert_eq!(indices.info().kind, Kind::Saved);
        indices.value().to_vec1().unwrap()
    }

    /// The gradients of x and of the factor where that of y is `g`.
    fn gradients(&self, x: &Tensor, g: &Tensor) -> (Vec<f64>, Vec<f64>) {
        let x = ops::leaf(x).unwrap();
        let key = Key::new(8, Purpose::Dropout).step(3).micro(1);
        let mut pass = Pass::training_pass(Selection::one("default"), key);
        let y = self.layer().forward(x.as_tensor(), &mut pass).unwrap();
        let loss = ops::sum_all(&(y * g).unwrap()).unwrap();
        let (grads, of_x) = ops::backward(&loss, &[self.factor()], &[&x]).unwrap();
        let of_factor = numbers(grads.get(&self.factor()).unwrap());
        (numbers(of_x[0].as_ref().unwrap()), of_factor)
    }
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

/// The tensors of a file.
fn saved(variant: Variant, indices: &[u32], factor: &Tensor) -> Start {
    let indices = Tensor::new(indices, &Device::Cpu).unwrap();
    let name = match variant {
        Variant::Fa => "up.sbora_b",
        Variant::Fb => "up.sbora_a",
    };
    let tensors = [("up.sbora_idx", indices), (name, factor.clone())];
    Start::Saved {
        tensors: tensors
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .into(),
        seed: 1,
    }
}

fn keys(variant: Variant, r: usize, alpha: f64) -> Value {
    json!({ "variant": variant, "r": r, "lora_alpha": alpha })
}

/// The layer that is worked by hand: [3, 4], s = 0.5, the indices 2 and 0.
struct Worked {
    w: Tensor,
    x: Tensor,
    g: Tensor,
    /// B of FA.
    b: Tensor,
    /// A of FB.
    a: Tensor,
}

const INDICES: [u32; 2] = [2, 0];

impl Worked {
    fn new() -> Self {
        Self {
            w: matrix(&[&[1., 0., 2., -1.], &[0., 1., -1., 1.], &[2., -1., 0., 0.5]]),
            x: matrix(&[&[1., 2., -1., 0.5], &[0., -1., 3., 2.]]),
            g: matrix(&[&[1., -1., 2.], &[0.5, 0., -1.]]),
            b: matrix(&[&[1., 0.5], &[-2., 1.], &[0., 4.]]),
            a: matrix(&[&[1., -1., 0., 2.], &[0.5, 0., 1., -1.]]),
        }
    }

    fn adapted(&self, variant: Variant) -> Adapted {
        let factor = match variant {
            Variant::Fa => &self.b,
            Variant::Fb => &self.a,
        };
        let start = saved(variant, &INDICES, factor);
        Adapted::new(&self.w, keys(variant, 2, 1.0), start)
    }
}

const BOTH: [Variant; 2] = [Variant::Fa, Variant::Fb];

/// A layer [7, 11] away from its start, in f64 or f32: three columns or rows, s = 1.5.
fn large(variant: Variant, dtype: DType) -> (Tensor, Tensor, Adapted) {
    let w = random("W", &[7, 11]).to_dtype(dtype).unwrap();
    let (indices, shape) = match variant {
        Variant::Fa => ([8, 1, 6], [7, 3]),
        Variant::Fb => ([5, 0, 2], [3, 11]),
    };
    let factor = random("factor", &shape).to_dtype(dtype).unwrap();
    let start = saved(variant, &indices, &factor);
    let adapted = Adapted::new(&w, keys(variant, 3, 4.5), start);
    (w, factor, adapted)
}
