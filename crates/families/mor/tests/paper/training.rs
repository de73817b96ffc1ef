//! What training finds: the trap of equal experts, and a planted problem of two tasks.

use crate::{Adapted, assert_near, keys, numbers, training};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Param, Start};
use lowrank_ops::rng::{Key, Purpose, Stream};
use lowrank_ops::{self as ops, Grads};
use serde_json::json;

/// AdamW as torch has it, without decay.
struct Adam {
    rate: f64,
    steps: i32,
    moments: Vec<(Param, Vec<f64>, Vec<f64>)>,
}

impl Adam {
    fn new(params: Vec<Param>, rate: f64) -> Self {
        let zeros = |param: &Param| vec![0.0; param.elem_count()];
        let moments = params.into_iter();
        let moments = moments.map(|param| (param.clone(), zeros(&param), zeros(&param)));
        Self {
            rate,
            steps: 0,
            moments: moments.collect(),
        }
    }

    fn update(&mut self, grads: &Grads) {
        self.steps += 1;
        let correction = |beta: f64| 1.0 - beta.powi(self.steps);
        let (one, two) = (correction(0.9), correction(0.999));
        for (param, first, second) in &mut self.moments {
            let grad = numbers(grads.get(param).unwrap());
            let rate = self.rate;
            let update = |values: &mut [f64]| {
                for (at, value) in values.iter_mut().enumerate() {
                    first[at] = 0.9 * first[at] + 0.1 * grad[at];
                    second[at] = 0.999 * second[at] + 0.001 * grad[at] * grad[at];
                    *value -= rate * (first[at] / one) / ((second[at] / two).sqrt() + 1e-8);
                }
            };
            param.change::<f64>(update).unwrap();
        }
    }
}

/// The mean square of y - t, and its gradients.
fn fit(adapted: &Adapted, x: &Tensor, t: &Tensor) -> (f64, Grads) {
    let y = adapted.layer().forward(x, &mut training()).unwrap();
    let off = (y - t).unwrap();
    let count = off.elem_count() as f64;
    let loss = (ops::sum_all(&(&off * &off).unwrap()).unwrap() / count).unwrap();
    let (grads, _) = ops::backward(&loss, &adapted.attached.trained(), &[]).unwrap();
    (numbers(&loss)[0], grads)
}

fn normal(stream: &mut Stream, shape: &[usize], std: f64) -> Tensor {
    let numbers: Vec<f64> = (0..shape.iter().product())
        .map(|_| std * stream.normal())
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// The largest difference between the rows of a tensor and its first row.
fn apart(adapted: &Adapted, name: &str) -> f64 {
    let columns = adapted.param(name).shape().dims()[1];
    let values = adapted.value(name);
    let (first, rest) = values.split_at(columns);
    let gaps = rest.iter().zip(first.iter().cycle());
    gaps.map(|(x, y)| (x - y).abs()).fold(0f64, f64::max)
}

#[test]
fn equal_experts_stay_equal_and_noise_sets_them_apart() {
    for (noise, trapped) in [(0.0, true), (0.02, false)] {
        let mut stream = Key::new(5, Purpose::Test).stream();
        let w = normal(&mut stream, &[7, 5], 1.0);
        let mut keys = keys(3, 4.5, 4);
        keys["init_noise"] = json!(noise);
        let adapted = Adapted::new(&w, keys, Start::Seed(2));
        let b = adapted.param("lora_B.weight");
        b.set(&normal(&mut stream, &[7, 3], 1.0)).unwrap();
        let mut adam = Adam::new(adapted.attached.trained(), 1e-2);
        for step in 0..20 {
            let x = normal(&mut stream, &[6, 5], 1.0);
            let t = normal(&mut stream, &[6, 7], 1.0);
            let (_, grads) = fit(&adapted, &x, &t);
            let of = |name| numbers(grads.get(adapted.param(name)).unwrap());
            let router = of("mor_router")
                .iter()
                .fold(0f64, |max, x| max.max(x.abs()));
            if trapped {
                assert!(router <= 1e-7, "step {step}: {router}");
                for (name, columns) in [("mor_scale_A", 3), ("mor_scale_B", 7)] {
                    let grad = of(name);
                    let rows: Vec<&[f64]> = grad.chunks(columns).collect();
                    assert!(rows.iter().all(|row| *row == rows[0]), "{name}: {grad:?}");
                }
            } else {
                assert!(router > 0.0);
            }
            adam.update(&grads);
        }
        let (a, b) = (
            apart(&adapted, "mor_scale_A"),
            apart(&adapted, "mor_scale_B"),
        );
        if trapped {
            assert_eq!((a, b), (0.0, 0.0));
        } else {
            assert!(a > 1e-3 && b > 0.0, "{a}, {b}");
        }
    }
}

/// Two tasks that share a map of rank 2 and scale its outputs differently; the first input tells them apart.
struct Tasks {
    map: Tensor,
    scales: [Tensor; 2],
    stream: Stream,
}

impl Tasks {
    fn new(seed: u64) -> Self {
        let mut stream = Key::new(seed, Purpose::Test).site("planted").stream();
        let a = normal(&mut stream, &[2, 8], 0.125f64.sqrt());
        let b = normal(&mut stream, &[6, 2], 1.0);
        let scales = [(); 2].map(|()| normal(&mut stream, &[1, 6], 1.0));
        Self {
            map: b.matmul(&a).unwrap(),
            scales,
            stream,
        }
    }

    /// 64 rows of each task, the first task's before the second's.
    fn batch(&mut self) -> (Tensor, Tensor) {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for (scale, sign) in self.scales.iter().zip([2.0, -2.0]) {
            let first = Tensor::full(sign, (64, 1), &Device::Cpu).unwrap();
            let x = normal(&mut self.stream, &[64, 7], 1.0);
            let x = Tensor::cat(&[&first, &x], 1).unwrap();
            let common = x.matmul(&self.map.t().unwrap()).unwrap();
            targets.push(common.broadcast_mul(scale).unwrap());
            inputs.push(x);
        }
        let cat = |tensors: &[Tensor]| Tensor::cat(tensors, 0).unwrap();
        (cat(&inputs), cat(&targets))
    }
}

const STEPS: usize = 1500;

/// Trains on fresh batches and returns the layer with its mean loss over fresh ones.
fn trained(seed: u64, experts: usize, noise: f64, names: &[&str]) -> (Adapted, f64) {
    let w = Tensor::zeros((6, 8), DType::F64, &Device::Cpu).unwrap();
    let mut keys = keys(2, 2.0, experts);
    keys["init_noise"] = json!(noise);
    let adapted = Adapted::new(&w, keys, Start::Seed(seed));
    let mut params = adapted.attached.trained();
    params.retain(|param| names.iter().any(|name| param.name().ends_with(name)));
    let (mut adam, mut tasks) = (Adam::new(params, 1e-2), Tasks::new(seed));
    for _ in 0..STEPS {
        let (x, t) = tasks.batch();
        adam.update(&fit(&adapted, &x, &t).1);
    }
    let losses = (0..16).map(|_| {
        let (x, t) = tasks.batch();
        fit(&adapted, &x, &t).0
    });
    let loss = losses.sum::<f64>() / 16.0;
    (adapted, loss)
}

/// How far the mean gates of the first expert are apart between the two tasks.
fn gates_apart(adapted: &Adapted, seed: u64) -> f64 {
    let (x, _) = Tasks::new(seed).batch();
    let router = adapted.param("mor_router").value();
    let logits = numbers(&x.matmul(&router.t().unwrap()).unwrap());
    let first: Vec<f64> = logits
        .chunks(2)
        .map(|logits| 1.0 / (1.0 + (logits[1] - logits[0]).exp()))
        .collect();
    let mean = |gates: &[f64]| gates.iter().sum::<f64>() / gates.len() as f64;
    (mean(&first[..64]) - mean(&first[64..])).abs()
}

#[test]
fn a_planted_problem_of_two_tasks() {
    const SEEDS: u64 = 10;
    let pair = ["lora_A.weight", "lora_B.weight"];
    let mut held = 0;
    for seed in 0..SEEDS {
        let (mixture, loss) = trained(seed, 2, 0.02, &crate::ALL);
        // One expert whose scales stay at 1 is LoRA.
        let (_, lora) = trained(seed, 1, 0.0, &pair);
        let gates = gates_apart(&mixture, seed);
        held += usize::from(lora / loss >= 10.0 && gates > 0.3);
        eprintln!("seed {seed}: {loss:.2e}, LoRA {lora:.3}, gates {gates:.3}");
    }
    assert!(held >= 9, "{held} of {SEEDS}");

    // Experts that start alike are LoRA, to the last bit alike.
    for seed in 0..2 {
        let (control, loss) = trained(seed, 2, 0.0, &crate::ALL);
        let (_, lora) = trained(seed, 1, 0.0, &pair);
        assert_eq!(apart(&control, "mor_scale_A"), 0.0);
        assert_eq!(apart(&control, "mor_scale_B"), 0.0);
        assert_near(&[loss / lora], &[1.0], 0.02);
    }
}
