//! Worked numbers: the layer as the paper writes it, scales, starts, and the count of parameters.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

mod dora;
mod refusals;
mod starts;

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Attached, Linear, Merge, Pass, Selection, Source, Start, attach,
};
use lowrank_conformance::layers::Layers;
use lowrank_frozen::FrozenLinear;
use lowrank_lora::{Lora, LoraConfig};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};

fn layers(shapes: &[(&str, usize, usize)]) -> Layers {
    let layer = |&(path, n_out, n_in): &(&str, usize, usize)| {
        let weight = Tensor::ones((n_out, n_in), DType::F32, &Device::Cpu).unwrap();
        Linear::new(path, FrozenLinear::new(weight, None).unwrap())
    };
    Layers(shapes.iter().map(layer).collect())
}

/// One layer called `up`, in f64.
fn one_layer(weight: Tensor, bias: Option<Tensor>) -> Layers {
    let base = FrozenLinear::new(weight, bias).unwrap();
    Layers(vec![Linear::new("up", base)])
}

/// A matrix in f64.
fn matrix(rows: &[&[f64]]) -> Tensor {
    let flat = rows.concat();
    Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
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
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1().unwrap()
}

/// Asserts equal numbers, up to `tolerance` times the largest (or 1).
#[track_caller]
fn assert_near(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(1f64, |size, x| size.max(x.abs()));
    let off = got.iter().zip(expected);
    // `f64::max` would forget a NaN.
    let larger = |worst: f64, next: f64| {
        if next > worst || next.is_nan() {
            next
        } else {
            worst
        }
    };
    let off = off.map(|(a, b)| (a - b).abs()).fold(0f64, larger);
    assert!(
        off <= tolerance * size,
        "{got:?} instead of {expected:?}, off by {off:e}"
    );
}

/// The tensors of a file for the layer `up`, from names without its path.
fn saved(tensors: &[(&str, &Tensor)]) -> Start {
    let named = |(name, tensor): &(&str, &Tensor)| (format!("up.{name}"), (*tensor).clone());
    Start::Saved {
        tensors: tensors.iter().map(named).collect(),
        seed: 1,
    }
}

/// The weight `[n_out, n_in]` of the only layer with its adapter folded in.
fn merged(model: &Layers) -> Tensor {
    let mut pass = Pass::evaluation(Selection::one("default"));
    let Merge::Exact(merged) = model.0[0].merge(&mut pass).unwrap() else {
        panic!("LoRA merges exactly")
    };
    merged.weight
}

/// What the only layer does to `x` in evaluation mode.
fn output(model: &Layers, x: &Tensor) -> Tensor {
    let mut pass = Pass::evaluation(Selection::one("default"));
    model.0[0].forward(x, &mut pass).unwrap()
}

fn adapt(model: &mut Layers, keys: &Value, start: Start) -> Attached {
    let config = AdapterConfig::parse(&Lora, keys.as_object().unwrap(), Source::RunFile).unwrap();
    attach(model, "default", &config, start).unwrap()
}

/// The value of a declared tensor.
fn tensor(attached: &Attached, name: &str) -> Tensor {
    let mut params = attached.params.iter();
    let param = params.find(|param| param.name() == name).unwrap();
    param.snapshot().unwrap()
}

fn value(attached: &Attached, name: &str) -> Vec<f64> {
    numbers(&tensor(attached, name))
}

/// W = [[1,2,3],[4,5,6]], b = [.5,-.5], A = [[1,0,-1]], B = [[2],[-1]], alpha 4, r 1, x = [1,2,3]: y = [-1.5, 39.5].
#[test]
fn a_layer_by_hand() {
    let bias = Tensor::new(&[0.5, -0.5], &Device::Cpu).unwrap();
    let mut model = one_layer(matrix(&[&[1., 2., 3.], &[4., 5., 6.]]), Some(bias));
    let (a, b) = (matrix(&[&[1., 0., -1.]]), matrix(&[&[2.], &[-1.]]));
    adapt(
        &mut model,
        &json!({ "r": 1, "lora_alpha": 4, "target_modules": ["up"] }),
        saved(&[("lora_A.weight", &a), ("lora_B.weight", &b)]),
    );

    let x = matrix(&[&[1., 2., 3.]]);
    assert_eq!(numbers(&output(&model, &x)), [-1.5, 39.5]);
    let merged = merged(&model);
    assert_eq!(numbers(&merged), [9., 2., -5., 0., 5., 10.]);
    let merged = FrozenLinear::new(merged, model.0[0].base().bias().cloned()).unwrap();
    assert_eq!(numbers(&merged.forward(&x).unwrap()), [-1.5, 39.5]);
}

#[test]
fn scales_are_alpha_over_r_or_its_root() {
    let scale = |keys: Value, path| {
        let config: LoraConfig = serde_json::from_value(keys).unwrap();
        config.rank_and_scale(path).unwrap()
    };
    assert_eq!(
        scale(json!({ "r": 8, "lora_alpha": 16 }), "q_proj"),
        (8, 2.0)
    );
    let (rank, stabilised) = scale(
        json!({ "r": 8, "lora_alpha": 16, "use_rslora": true }),
        "q_proj",
    );
    assert_eq!(rank, 8);
    assert!(
        (stabilised - 5.656_854_249_492_381).abs() < 1e-15,
        "{stabilised}"
    );
    // A rank that changes alone changes the scale.
    let keys = json!({ "r": 8, "lora_alpha": 16, "rank_pattern": { "q_proj": 2 } });
    assert_eq!(scale(keys, "layers.0.q_proj"), (2, 8.0));
}

#[test]
fn starts_have_their_distributions() {
    let (n_out, n_in, r) = (96, 400, 40);
    let start = |init: Value| {
        let mut model = layers(&[("up", n_out, n_in)]);
        let keys = json!({ "r": r, "target_modules": ["up"], "init_lora_weights": init });
        let attached = adapt(&mut model, &keys, Start::Seed(5));
        (
            value(&attached, "up.lora_A.weight"),
            value(&attached, "up.lora_B.weight"),
        )
    };
    let moments = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (
            mean,
            variance.sqrt(),
            values.iter().fold(0f64, |max, v| max.max(v.abs())),
        )
    };
    let near = |found: f64, expected: f64, what| {
        assert!(
            (found - expected).abs() < 0.03 * expected,
            "{what}: {found}, expected {expected}"
        );
    };
    // Uniform in ±1/sqrt(columns) has standard deviation bound / sqrt(3).
    let uniform = |values: &[f64], columns: usize, what| {
        let bound = 1.0 / (columns as f64).sqrt();
        let (mean, deviation, largest) = moments(values);
        assert!(
            mean.abs() < 0.03 * bound && largest <= bound,
            "{what}: {mean} {largest}"
        );
        near(largest, bound, what);
        near(deviation, bound / 3f64.sqrt(), what);
    };
    let (a, b) = start(json!(true));
    uniform(&a, n_in, "A");
    assert!(b.iter().all(|&b| b == 0.0));
    let (a, b) = start(json!(false));
    uniform(&a, n_in, "A");
    uniform(&b, r, "B");
    let (a, b) = start(json!("gaussian"));
    let (mean, deviation, largest) = moments(&a);
    near(deviation, 1.0 / r as f64, "gaussian A");
    assert!(
        mean.abs() < 0.03 / r as f64 && largest > 3.0 / r as f64,
        "{mean} {largest}"
    );
    assert!(b.iter().all(|&b| b == 0.0));
}

/// r (n_in + n_out) a module: Llama-2-7B with q and v at r = 8 has 4,194,304.
#[test]
fn parameters_are_counted_as_the_paper_counts_them() {
    let mut linears = Vec::new();
    for layer in 0..32 {
        for role in ["q_proj", "k_proj", "v_proj"] {
            linears.push(Linear::new(
                format!("model.layers.{layer}.{role}"),
                FrozenLinear::absent(4096, 4096),
            ));
        }
    }
    // Absent `target_modules` means PEFT's table: q and v for LLaMA.
    let attached = adapt(&mut Layers(linears), &json!({ "r": 8 }), Start::Seed(1));
    assert_eq!(attached.trainable_parameters(), 4_194_304);
}
