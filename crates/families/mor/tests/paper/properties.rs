//! What the mixture reduces to, what leaves it unchanged, its rank, its size, and how its use is measured.

use crate::{
    ALL, Adapted, Layers, Worked, assert_near, keys, large, matrix, numbers, random, saved,
    training,
};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Ask, Batch, Error, KvCache, Linear, Model, Part, Pass, Source, Start, Tokens,
    UNSUPERVISED, attach, run,
};
use lowrank_frozen::FrozenLinear;
use lowrank_mor::{Mor, MorConfig, Usage, at_gates};
use lowrank_ops::linalg;
use serde_json::{Value, json};

#[test]
fn equal_scales_are_lora_whatever_the_router_says() {
    let example = Worked::new();
    let (oa, ob) = (
        example.oa.ones_like().unwrap(),
        example.ob.ones_like().unwrap(),
    );
    let start = saved(&[&example.a, &example.b, &oa, &ob, &example.wg]);
    let adapted = Adapted::new(&example.w, keys(2, 4.0, 2), start);
    assert_near(
        &numbers(&adapted.output(&example.x)),
        &[1.5, 4.5, 2.1],
        1e-12,
    );
}

#[test]
fn one_expert_with_scales_of_one_is_lora_bit_for_bit() {
    let single = |what: &str, shape: &[usize]| random(what, shape).to_dtype(DType::F32).unwrap();
    let (w, a, b) = (
        single("W", &[7, 5]),
        single("A", &[3, 5]),
        single("B", &[7, 3]),
    );
    let ones = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let start = saved(&[&a, &b, &ones((1, 3)), &ones((1, 7))]);
    let adapted = Adapted::new(&w, keys(3, 4.5, 1), start);
    let x = single("x", &[2, 6, 5]);
    let base = FrozenLinear::new(w, None).unwrap();
    let lora = base.forward_low_rank(&x, &a, &b, 1.5).unwrap();
    assert_eq!(numbers(&adapted.output(&x)), numbers(&lora));
}

#[test]
fn the_start_is_the_base_and_moves_b_alone() {
    for seed in [1, 2] {
        let w = random("W", &[7, 5]);
        let adapted = Adapted::new(&w, keys(3, 4.5, 4), Start::Seed(seed));
        let (x, v) = (random("x", &[6, 5]), random("v", &[6, 7]));
        let base = FrozenLinear::new(w, None).unwrap().forward(&x).unwrap();
        assert_eq!(numbers(&adapted.output(&x)), numbers(&base));
        let (_, grads) = adapted.gradients(&x, &v, &ALL);
        for (name, grad) in ALL.iter().zip(&grads) {
            let moves = grad.iter().any(|x| *x != 0.0);
            assert_eq!(moves, *name == "lora_B.weight", "{name}: {grad:?}");
        }
    }
}

#[test]
fn starts_are_drawn_as_said() {
    let w = Tensor::zeros((96, 144), DType::F64, &Device::Cpu).unwrap();
    let adapted = Adapted::new(&w, json!({ "init_noise": 0.05 }), Start::Seed(4));
    let spread = |name: &str, mean: f64| {
        let numbers = adapted.value(name);
        let square: f64 = numbers.iter().map(|x| (x - mean) * (x - mean)).sum();
        (square / numbers.len() as f64).sqrt()
    };
    let (noise, router) = (spread("mor_scale_A", 1.0), spread("mor_router", 0.0));
    assert!((noise - 0.05).abs() < 0.015, "{noise}");
    assert!((router - 0.05).abs() < 0.005, "{router}");
    assert_eq!(adapted.value("mor_scale_B"), vec![1.0; 8 * 96]);
    let a = adapted.value("lora_A.weight");
    let largest = a.iter().fold(0f64, |max, x| max.max(x.abs()));
    assert!(largest <= 1.0 / 12.0 && largest > 0.99 / 12.0, "{largest}");
    let decays = |name: &str| adapted.param(name).info().decay;
    assert_eq!(ALL.map(decays), [true, true, false, false, true]);
}

/// The layer with other tensors.
fn with(tensors: &[Tensor; 6]) -> Adapted {
    let [w, a, b, oa, ob, wg] = tensors;
    Adapted::new(w, keys(3, 4.5, 4), saved(&[a, b, oa, ob, wg]))
}

#[test]
fn invariances() {
    let (tensors, adapted) = large("invariances");
    let x = random("x", &[6, 5]);
    let y = numbers(&adapted.output(&x));
    let same = |change: &dyn Fn(&mut [Tensor; 6])| {
        let mut changed = tensors.clone();
        change(&mut changed);
        assert_near(&numbers(&with(&changed).output(&x)), &y, 1e-12);
    };
    // Experts in another order.
    same(&|tensors| {
        let order = Tensor::new(&[2u32, 0, 3, 1], &Device::Cpu).unwrap();
        for tensor in &mut tensors[3..] {
            *tensor = tensor.index_select(&order, 0).unwrap();
        }
    });
    // Every row of the router moved alike.
    same(&|tensors| tensors[5] = tensors[5].broadcast_add(&random("by", &[1, 5])).unwrap());
    let scaled = |tensor: &Tensor, row: usize, by: f64| {
        let factors: Vec<f64> = (0..tensor.dim(0).unwrap())
            .map(|at| if at == row { by } else { 1.0 })
            .collect();
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        tensor
            .broadcast_mul(&factors.unsqueeze(1).unwrap())
            .unwrap()
    };
    // la_i times 2.5, lb_i divided by it.
    same(&|tensors| {
        tensors[3] = scaled(&tensors[3], 2, 2.5);
        tensors[4] = scaled(&tensors[4], 2, 0.4);
    });
    // A row of A times 4, that column of OA divided by it.
    same(&|tensors| {
        tensors[1] = scaled(&tensors[1], 1, 4.0);
        let turned = tensors[3].t().unwrap().contiguous().unwrap();
        tensors[3] = scaled(&turned, 1, 0.25).t().unwrap().contiguous().unwrap();
    });
    // Tokens do not see each other.
    for at in 0..6 {
        let alone = adapted.output(&x.narrow(0, at, 1).unwrap());
        assert_near(&numbers(&alone), &y[at * 7..][..7], 1e-12);
    }
}

/// With B = 1, OA = OB = 1 and h = 1 the layer adds s times the sum of the gates.
#[test]
fn gates_of_a_token_sum_to_one() {
    let ones = |shape: (usize, usize)| Tensor::ones(shape, DType::F64, &Device::Cpu).unwrap();
    let zeros = |shape: (usize, usize)| ones(shape).zeros_like().unwrap();
    let (a, wg) = (matrix(&[&[1., 0., 0.]]), random("Wg", &[4, 3]));
    let start = saved(&[&a, &ones((2, 1)), &ones((4, 1)), &ones((4, 2)), &wg]);
    let adapted = Adapted::new(&zeros((2, 3)), keys(1, 1.5, 4), start);
    let rest = random("x", &[9, 2]);
    let x = Tensor::cat(&[&ones((9, 1)), &rest], 1).unwrap();
    assert_near(&numbers(&adapted.output(&x)), &[1.5; 18], 1e-14);
}

fn rank(matrix: &Tensor, tolerance: f64) -> usize {
    let found = linalg::svd(matrix, 8).unwrap();
    let first = found.values[0];
    found
        .values
        .iter()
        .filter(|v| **v > tolerance * first)
        .count()
}

#[test]
fn one_token_has_rank_r_and_many_span_more() {
    let of = |name: &str, shape: &[usize]| random(&format!("rank {name}"), shape);
    let (a, b) = (of("A", &[2, 8]), of("B", &[8, 2]));
    let (oa, ob) = (of("OA", &[4, 2]), of("OB", &[4, 8]));
    let found = at_gates((&a, &b), (&oa, &ob), &[0.1, 0.4, 0.3, 0.2], 1.5).unwrap();
    assert!(!found.exact);
    // The sum of g_i diag(lb_i) B diag(la_i) A, by its definition.
    let mut sum = Tensor::zeros((8, 8), DType::F64, &Device::Cpu).unwrap();
    for (i, gate) in [0.1, 0.4, 0.3, 0.2].into_iter().enumerate() {
        let (la, lb) = (oa.get(i).unwrap(), ob.get(i).unwrap());
        let right = a.broadcast_mul(&la.unsqueeze(1).unwrap()).unwrap();
        let left = b.broadcast_mul(&lb.unsqueeze(1).unwrap()).unwrap();
        sum = (sum + (left.matmul(&right).unwrap() * gate).unwrap()).unwrap();
    }
    let update = found.b.matmul(&found.a).unwrap();
    assert_near(&numbers(&update), &numbers(&sum), 1e-13);
    assert_eq!(rank(&sum, 1e-12), 2);

    let wg = of("Wg", &[4, 8]);
    let w = Tensor::zeros((8, 8), DType::F64, &Device::Cpu).unwrap();
    let adapted = Adapted::new(&w, keys(2, 3.0, 4), saved(&[&a, &b, &oa, &ob, &wg]));
    let outputs = adapted.output(&of("x", &[200, 8]));
    assert_eq!(rank(&outputs, 1e-6), 8);
}

fn parameters(keys: &Value, shapes: &[(usize, usize)]) -> usize {
    let count = |&(n_out, n_in): &(usize, usize)| {
        let weight = Tensor::zeros((n_out, n_in), DType::F64, &Device::Cpu).unwrap();
        let adapted = Adapted::new(&weight, keys.clone(), Start::Seed(1));
        adapted.attached.trainable_parameters()
    };
    shapes.iter().map(count).sum()
}

/// A 7B LLaMA's feed-forward layers, counted at shapes: no weight of that size is made.
#[test]
fn parameters_of_a_7b_model() {
    assert_eq!(parameters(&keys(2, 4.0, 2), &[(3, 2)]), 24);
    let counted = |keys: Value| -> usize {
        let shapes = [(11_008, 4_096), (11_008, 4_096), (4_096, 11_008)];
        let layer: usize = shapes
            .map(|(n_out, n_in)| of_absent(&keys, n_out, n_in))
            .iter()
            .sum();
        32 * layer
    };
    assert_eq!(counted(keys(8, 16.0, 4)), 17_402_880);
    assert_eq!(counted(keys(8, 16.0, 8)), 23_205_888);
    assert_eq!(counted(keys(8, 16.0, 16)), 34_811_904);
    assert_eq!(counted(keys(32, 64.0, 8)), 58_023_936);
    // A single expert has no router here; the count that has one is larger by it.
    let router = 32 * (4_096 + 4_096 + 11_008);
    assert_eq!(counted(keys(8, 16.0, 1)) + router, 13_050_624);
}

fn of_absent(keys: &Value, n_out: usize, n_in: usize) -> usize {
    let base = FrozenLinear::absent(n_out, n_in);
    let mut model = Layers(vec![Linear::new("up", base)]);
    let mut keys = keys.clone();
    keys["target_modules"] = json!(["up"]);
    let config = AdapterConfig::parse(&Mor, keys.as_object().unwrap(), Source::RunFile);
    let start = Start::Seed(1);
    let attached = attach(&mut model, "default", &config.unwrap(), start).unwrap();
    attached.trainable_parameters()
}

#[test]
fn use_of_experts() {
    let rows = matrix(&[&[0.9, 0.1], &[0.6, 0.4], &[0.2, 0.8]]);
    let usage = Usage::of(&rows, None).unwrap();
    assert_near(&usage.mean, &[0.566_667, 0.433_333], 1e-6);
    assert_near(&usage.busiest, &[2. / 3., 1. / 3.], 1e-15);
    assert_near(&[usage.balance()], &[1.044_444_4], 1e-7);
    assert_near(&[usage.entropy], &[0.499_499_0], 1e-7);
    let masked = Tensor::cat(&[&rows, &matrix(&[&[0.01, 0.99]])], 0).unwrap();
    let usage_of_three = Usage::of(&masked, Some(&[true, true, true, false])).unwrap();
    assert_eq!(usage_of_three, usage);
    let even = Usage::of(&matrix(&[&[0.7, 0.3], &[0.3, 0.7]]), None).unwrap();
    assert_near(&[even.balance()], &[1.0], 1e-15);
}

/// The loss that a layer adds for gates that are given: A token's only number is its logit.
#[test]
fn the_loss_that_balances_leaves_padding_out() {
    let logit = |gates: [f64; 2]| (gates[0] / gates[1]).ln();
    let gates = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.01, 0.99]];
    let x = Tensor::from_vec(gates.map(logit).to_vec(), (4, 1), &Device::Cpu).unwrap();
    let wg = matrix(&[&[1.], &[0.]]);
    let one = |shape: (usize, usize)| Tensor::ones(shape, DType::F64, &Device::Cpu).unwrap();
    let start = saved(&[&one((1, 1)), &one((3, 1)), &one((2, 1)), &one((2, 3)), &wg]);
    let mut keys = keys(1, 1.5, 2);
    keys["balance_weight"] = json!(0.5);
    let adapted = Adapted::new(&one((3, 1)), keys, start);
    let loss = |segments: &[u32]| {
        let x = x.narrow(0, 0, segments.len()).unwrap();
        balance(adapted.layer(), &x, segments)
    };
    assert_near(&[loss(&[1, 1, 1])], &[0.5 * 1.044_444_4], 1e-7);
    assert_near(&[loss(&[1, 1, 1, 0])], &[0.5 * 1.044_444_4], 1e-7);
    let all = loss(&[1, 1, 2, 2]);
    assert!((all - 0.5 * 1.044_444_4).abs() > 0.01, "{all}");
}

/// The loss that the layer adds as a model's only block, where the pass knows which tokens are padding.
fn balance(layer: &Linear, x: &Tensor, segments: &[u32]) -> f64 {
    let tokens = Tokens {
        rows: 1,
        length: segments.len(),
        ids: vec![0; segments.len()],
        segments: segments.to_vec(),
        positions: (0..segments.len() as u32).collect(),
    };
    let batch = Batch::new(tokens, vec![UNSUPERVISED; segments.len()]).unwrap();
    let mut pass = training();
    let model = OneBlock { layer, x };
    run(&model, &batch, &Ask::Logits(vec![0]), None, &mut pass).unwrap();
    let losses = pass.take_losses();
    assert_eq!(losses.len(), 1);
    numbers(&losses[0].1)[0]
}

struct OneBlock<'a> {
    layer: &'a Linear,
    x: &'a Tensor,
}

impl Model for OneBlock<'_> {
    fn model_type(&self) -> &str {
        "llama"
    }

    fn parts(&mut self, _: &mut dyn FnMut(Part<'_>)) {}

    fn embed(&self, _: &Batch, _: &mut Pass) -> Result<Tensor, Error> {
        Ok(self.x.clone())
    }

    fn blocks(&self) -> usize {
        1
    }

    fn block(
        &self,
        _: usize,
        h: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> Result<Tensor, Error> {
        self.layer.forward(h, pass)
    }

    fn head(&self, h: &Tensor, _: &Batch, _: &Ask, _: &mut Pass) -> Result<Tensor, Error> {
        Ok(h.clone())
    }
}

#[test]
fn keys_out_of_range_are_refused() {
    let message = |text: &str| {
        let config: Result<MorConfig, _> = serde_json::from_str(text);
        config.unwrap_err().to_string()
    };
    assert!(message(r#"{"num_experts": 0}"#).contains("nonzero"));
    assert!(message(r#"{"init_noise": -0.1}"#).contains("at least 0"));
    assert!(message(r#"{"balance_weight": -1}"#).contains("at least 0"));
    assert!(message(r#"{"router": "top-k"}"#).contains("softmax"));
}
