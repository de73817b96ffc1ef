//! One layer: T1, T2, T9, T11.

use crate::{
    Layers, adapt, after, assert_near, key, matrix, numbers, param, penalty, random, set, step,
    training, value, vector,
};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Attached, Linear, Memory, Model, Part, Pass, Share, Source, Start, State,
    attach, sweep,
};
use lowrank_conformance::toy::{self, Head, Toy};
use lowrank_frozen::{Compute, FrozenLinear};
use lowrank_ops::rng::Purpose;
use lowrank_ops::{self as ops, Grads};
use lowrank_salora::{Salora, uniform};
use serde_json::json;

const Q: &str = "up.lora_A.weight";
const P: &str = "up.lora_B.weight";
const PHI: &str = "up.salora_phi";

fn gradient(attached: &Attached, grads: &Grads, name: &str) -> Vec<f64> {
    numbers(grads.get(&param(attached, name)).unwrap())
}

/// P away from 0.
fn moved(attached: &Attached, n_out: usize, rank: usize) {
    set(attached, P, &random("p", &[n_out, rank]));
}

/// With open gates, no orthogonality term and lambda = 0, a training step is LoRA's, bit for bit.
#[test]
fn t1_open_gates_are_lora() {
    let mut model = Layers::random(&[("up", 7, 5)], DType::F32);
    let keys = json!({ "r": 3, "lora_alpha": 4.5, "t_start": 0.5, "orth_weight": 0 });
    let mut attached = adapt(&mut model, keys);
    moved(&attached, 7, 3);
    let x = random("x", &[4, 5]).to_dtype(DType::F32).unwrap();
    let objective = |y: &Tensor| ops::sum_all(&y.sqr().unwrap()).unwrap();

    let y = model.forward(0, &x, &mut training(1));
    let (mut grads, _) = ops::backward(&objective(&y), &attached.params, &[]).unwrap();
    grads.merge(penalty(&attached, step(1, 10)).0).unwrap();
    // A trainer refuses to begin if a trained tensor has no gradient at all.
    assert_eq!(gradient(&attached, &grads, PHI), [0.0; 3]);
    after(&mut attached, step(1, 10), &mut grads);

    let (q, p) = (param(&attached, Q), param(&attached, P));
    let pass = training(1);
    let expected = model.0[0]
        .base()
        .forward_low_rank(&x, &q.get(&pass), &p.get(&pass), 1.5);
    let expected = expected.unwrap();
    let (of_lora, _) = ops::backward(&objective(&expected), &attached.params, &[]).unwrap();
    assert_eq!(numbers(&y), numbers(&expected));
    assert_eq!(numbers(&model.evaluated(0, &x)), numbers(&expected));
    // phi has none, so that it does not age.
    assert_eq!((grads.len(), of_lora.len()), (2, 2));
    for (param, grad) in of_lora.iter() {
        assert_eq!(numbers(grads.get(param).unwrap()), numbers(grad));
    }
    let state = attached.controller.as_ref().unwrap().state().unwrap();
    assert_eq!(state.values["lambda"], json!(0.0));
}

/// The note's example: phi is moved so that the drawn numbers have the logits of the example's.
struct Example {
    model: Layers,
    attached: Attached,
    x: Tensor,
}

const DRAWN: [f64; 2] = [0.7, 0.3];

fn example() -> Example {
    let weight = Tensor::zeros((3, 2), DType::F64, &Device::Cpu).unwrap();
    let base = FrozenLinear::new(weight, None).unwrap();
    let mut model = Layers(vec![Linear::new("up", base)]);
    let attached = adapt(&mut model, json!({ "r": 2, "lora_alpha": 4, "t_start": 0 }));
    set(
        &attached,
        P,
        &matrix(&[&[0.5, -1.], &[1., 0.25], &[0., 2.]]),
    );
    set(&attached, Q, &matrix(&[&[0.6, 0.8], &[0.8, -0.6]]));
    let u = uniform(key(1).purpose(Purpose::Gate).site("up"), 2);
    let logit = |u: f64| (u / (1.0 - u)).ln();
    let phi = |(phi, i): (f64, usize)| phi + logit(DRAWN[i]) - logit(u[i]);
    let phi: Vec<f64> = [(0.0, 0), (1.0, 1)].into_iter().map(phi).collect();
    set(&attached, PHI, &vector(&phi));
    Example {
        model,
        attached,
        x: matrix(&[&[1., 2.]]),
    }
}

impl Example {
    fn output(&self) -> Tensor {
        self.model.forward(0, &self.x, &mut training(1))
    }

    fn loss(&self) -> Tensor {
        let v = matrix(&[&[1., -1., 0.5]]);
        ops::sum_all(&(self.output() * v).unwrap()).unwrap()
    }
}

#[test]
fn t2_by_hand() {
    let example = example();
    let y = numbers(&example.output());
    assert_near(&y, &[2.29632230, 3.56949382, -0.90946735], 6e-9);
    let loss = example.loss();
    assert_near(&numbers(&loss), &[-1.72790520], 6e-9);
    let (grads, _) = ops::backward(&loss, &example.attached.params, &[]).unwrap();
    let expected: [(&str, &[f64]); 3] = [
        (PHI, &[-0.67752632, 0.08882978]),
        (
            P,
            &[
                3.68317724,
                -0.45473368,
                -3.68317724,
                0.45473368,
                1.84158862,
                -0.22736684,
            ],
        ),
        (Q, &[-0.83708574, -1.67417147, -0.28420855, -0.56841710]),
    ];
    for (name, expected) in expected {
        let of = gradient(&example.attached, &grads, name);
        assert_near(&of, expected, 6e-9);
        let param = param(&example.attached, name);
        let start = param.snapshot().unwrap();
        for (i, slope) in of.into_iter().enumerate() {
            let at = |nudge: f64| {
                let mut values = numbers(&start);
                values[i] += nudge;
                let moved = Tensor::new(values, &Device::Cpu).unwrap();
                param.set(&moved.reshape(start.shape()).unwrap()).unwrap();
                numbers(&example.loss())[0]
            };
            let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert_near(&[difference], &[slope], 1e-7);
        }
        param.set(&start).unwrap();
    }
    // dL/dg = dL/dphi / (dg/dphi), and the gates are these.
    let phi = vector(&[0.0, 1.0]);
    let g = crate::LOUIZOS.sample(&phi, &DRAWN).unwrap();
    assert_near(&numbers(&g), &[0.83708574, 0.56841710], 6e-9);
    let slope = |g: f64| {
        let s = (g + 0.1) / 1.2;
        1.2 * s * (1.0 - s) / (2.0 / 3.0)
    };
    let of_phi = gradient(&example.attached, &grads, PHI);
    let of_g: Vec<f64> = of_phi
        .iter()
        .zip(numbers(&g))
        .map(|(of, g)| of / slope(g))
        .collect();
    assert_near(&of_g, &[-2.2, 0.2], 5e-8);
}

/// Which penalty reaches which tensor, before and while gates are learned.
#[test]
fn t9_who_gets_which_gradient() {
    let routed = |keys: serde_json::Value, lambda: f64| {
        let mut model = Layers::random(&[("up", 7, 5)], DType::F64);
        let mut attached = adapt(&mut model, keys);
        moved(&attached, 7, 3);
        let mut controller = attached.controller.take().unwrap();
        let mut state = controller.state().unwrap();
        state.values["lambda"] = json!(lambda);
        controller.restore(state).unwrap();
        attached.controller = Some(controller);
        let (mut grads, _) = penalty(&attached, step(1, 10));
        after(&mut attached, step(1, 10), &mut grads);
        let norms = [Q, P, PHI].map(|name| {
            let grad = grads.get(&param(&attached, name));
            grad.map(|grad| ops::norm_squared(grad).unwrap())
        });
        let state = attached.controller.as_ref().unwrap().state().unwrap();
        (norms, state.values["lambda"].as_f64().unwrap())
    };
    // Gates are open: orthogonality alone, and the multiplier stays.
    let (norms, lambda) = routed(json!({ "r": 3, "t_start": 0.2, "lora_alpha": 2 }), 1.5);
    assert!(
        matches!(norms, [Some(q), Some(p), None] if q > 0.0 && p > 0.0),
        "{norms:?}"
    );
    assert_eq!(lambda, 1.5);
    // Learned, with a multiplier of 0: orthogonality sends nothing to phi.
    let (norms, lambda) = routed(json!({ "r": 3, "t_start": 0, "lora_alpha": 2 }), 0.0);
    assert!(
        matches!(norms, [Some(q), Some(p), None] if q > 0.0 && p > 0.0),
        "{norms:?}"
    );
    assert!(lambda > 0.0);
    // Without orthogonality the budget sends nothing to P and Q.
    let (norms, _) = routed(json!({ "r": 3, "t_start": 0, "orth_weight": 0 }), 1.5);
    assert!(
        matches!(norms, [None, None, Some(phi)] if phi > 0.0),
        "{norms:?}"
    );
}

#[test]
fn t9_a_closed_gate_stops_the_task() {
    let mut model = Layers::random(&[("up", 7, 5)], DType::F64);
    let mut attached = adapt(
        &mut model,
        json!({ "r": 3, "t_start": 0, "orth_weight": 0, "lora_alpha": 2 }),
    );
    moved(&attached, 7, 3);
    // The first is closed, the last one half open, whatever is drawn.
    let u = uniform(key(1).purpose(Purpose::Gate).site("up"), 3);
    let logits = u.iter().map(|u| (u / (1.0 - u)).ln());
    let phi: Vec<f64> = logits
        .zip([-3.0, 3.0, 0.1])
        .map(|(logit, at)| at - logit)
        .collect();
    set(&attached, PHI, &vector(&phi));
    let state = |lambda: f64| State {
        values: json!({ "lambda": lambda, "live": 3 }),
        ..State::default()
    };
    attached
        .controller
        .as_mut()
        .unwrap()
        .restore(state(2.0))
        .unwrap();
    let y = model.forward(0, &random("x", &[4, 5]), &mut training(1));
    let loss = ops::sum_all(&y.sqr().unwrap()).unwrap();
    let (grads, _) = ops::backward(&loss, &attached.params, &[]).unwrap();
    let (q, p) = (
        gradient(&attached, &grads, Q),
        gradient(&attached, &grads, P),
    );
    let nothing = |values: &[f64]| values.iter().all(|&value| value == 0.0);
    for (rank, closed) in [true, false, false].into_iter().enumerate() {
        let column: Vec<f64> = p.iter().skip(rank).step_by(3).copied().collect();
        assert_eq!(
            (nothing(&q[rank * 5..][..5]), nothing(&column)),
            (closed, closed)
        );
    }
    let of_task = gradient(&attached, &grads, PHI);
    let at_ends = [of_task[0] == 0.0, of_task[1] == 0.0, of_task[2] != 0.0];
    assert_eq!(at_ends, [true; 3], "{of_task:?}");
    let of_budget = gradient(&attached, &penalty(&attached, step(1, 10)).0, PHI);
    assert!(of_budget.iter().all(|&of| of != 0.0), "{of_budget:?}");
}

#[test]
fn t11_what_is_drawn() {
    // Softer than usual, so that no two samples are both cut to 1.
    let keys =
        json!({ "r": 3, "t_start": 0, "beta": 2, "gamma": -0.01, "zeta": 1.01, "lora_alpha": 2 });
    let outputs = || {
        let mut model = Layers::random(&[("up", 7, 5), ("down", 7, 5)], DType::F32);
        let attached = adapt(&mut model, keys.clone());
        for path in ["up", "down"] {
            set(
                &attached,
                &format!("{path}.lora_B.weight"),
                &random("p", &[7, 3]),
            );
            set(
                &attached,
                &format!("{path}.lora_A.weight"),
                &random("q", &[3, 5]),
            );
            set(
                &attached,
                &format!("{path}.salora_phi"),
                &random("phi", &[3]),
            );
        }
        let x = random("x", &[4, 5]).to_dtype(DType::F32).unwrap();
        let bare = |layer: usize| model.0[layer].base().forward(&x).unwrap();
        let added = |layer: usize, y: Tensor| numbers(&(y - bare(layer)).unwrap());
        let at = |layer: usize, key| {
            let mut pass = Pass::training_pass(crate::selection(), key);
            added(layer, model.forward(layer, &x, &mut pass))
        };
        let first = at(0, key(1));
        // Another micro-batch, another step, another layer: another gate.
        assert_ne!(at(0, key(1).micro(1)), first);
        assert_ne!(at(0, key(2)), first);
        assert_ne!(at(1, key(1)), first);
        assert_eq!(at(0, key(1)), first);
        let evaluated = added(0, model.evaluated(0, &x));
        assert_eq!(added(0, model.evaluated(0, &x)), evaluated);
        assert_near(&added(1, model.evaluated(1, &x)), &evaluated, 1e-6);
        (first, evaluated)
    };
    assert_eq!(outputs(), outputs());
}

/// A bf16 base whose products are of bf16, with phi at both ends.
#[test]
fn t11_no_nan_in_bf16() {
    let mut toy = Toy::new(DType::BF16, Head::Own).unwrap();
    toy.parts(&mut |part| {
        if let Part::Linear(linear) = part {
            linear.set_compute(Compute::Bf16);
        }
    });
    let keys = json!({ "r": 4, "t_start": 0, "target_modules": "all-linear" });
    let keys = keys.as_object().unwrap();
    let source = Source::RunFile;
    let config = AdapterConfig::parse(&Salora, keys, source).unwrap();
    let start = Start::Seed(3);
    let attached = attach(&mut toy, "default", &config, start).unwrap();
    for param in attached.trained() {
        if param.name().ends_with("salora_phi") {
            set(
                &attached,
                param.name(),
                &vector(&[10.0, -10.0, 10.0, -10.0]),
            );
        } else if param.name().ends_with("lora_B.weight") {
            set(
                &attached,
                param.name(),
                &random(param.name(), param.shape().dims()),
            );
        }
    }
    let batch = toy::batch(4, &[&[6], &[3, 2]]).unwrap();
    let share = Share {
        token: 0.1,
        auxiliary: 1.0,
    };
    let trained = attached.trained();
    for index in 0..20 {
        let mut pass = training(index);
        let swept = sweep(&toy, &batch, &mut pass, &trained, share, Memory::Keep);
        let swept = swept.unwrap();
        assert!(ops::all_finite(&swept.losses).unwrap());
        assert_eq!(swept.grads.len(), trained.len());
        for (param, grad) in swept.grads.iter() {
            assert!(ops::all_finite(grad).unwrap(), "{}", param.name());
        }
    }
}

/// phi is kept within 10 after an update, and is not updated before gates are learned.
#[test]
fn phi_stays_in_its_range() {
    let mut model = Layers::random(&[("up", 7, 5)], DType::F32);
    let mut attached = adapt(&mut model, json!({ "r": 3, "t_start": 0 }));
    set(&attached, PHI, &vector(&[11.0, -10.5, 9.5]));
    let (mut grads, _) = penalty(&attached, step(1, 10));
    after(&mut attached, step(1, 10), &mut grads);
    assert_eq!(value(&attached, PHI), [10.0, -10.0, 9.5]);
}
