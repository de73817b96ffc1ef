//! Worked numbers: the update and its factor, the penalty, the budget, scores, thresholds, and a whole schedule by hand.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;

use candle_core::{DType, Device, Tensor};
use lowrank_adalora::{Adalora, AdaloraConfig};
use lowrank_adapter::{
    Attached, Kind, Masks, Outcome, Param, ParamInfo, Pass, Probe, Selection, Start, Step,
};
use lowrank_conformance::layers::{ADAPTER, Layers, gap, matrix};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops, Grads};
use lowrank_schedule::{Budget, Components, Score as _, Sensitivity, Shape, above_threshold};
use serde_json::{Value, json};

/// Normal numbers in f64, keyed by `what`.
fn random(what: &str, shape: (usize, usize)) -> Tensor {
    let mut stream = Key::new(23, Purpose::Test).site(what).stream();
    let numbers: Vec<f64> = (0..shape.0 * shape.1).map(|_| stream.normal()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn keys(more: Value) -> Value {
    let mut keys = json!({ "target_modules": ["up", "down"] });
    let more = more.as_object().cloned().unwrap();
    keys.as_object_mut().unwrap().extend(more);
    keys
}

/// `up` `[7, 5]` and `down` `[6, 8]`.
fn two_layers() -> Layers {
    Layers::new([
        ("up", random("up", (7, 5))),
        ("down", random("down", (6, 8))),
    ])
    .unwrap()
}

fn param<'a>(attached: &'a Attached, name: &str) -> &'a Param {
    let found = attached.params.iter().find(|param| param.name() == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", attached.params))
}

/// Random values for every trained tensor.
fn randomise(attached: &Attached) {
    for param in attached.trained() {
        let dims = param.shape().dims2().unwrap();
        param.set(&random(param.name(), dims)).unwrap();
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// Is asked nothing.
struct NoProbe;

impl Probe for NoProbe {
    fn losses(&mut self, _: &[Masks]) -> lowrank_adapter::Result<Vec<f64>> {
        panic!("AdaLoRA asks a probe nothing")
    }
}

fn step(index: u64, total: u64) -> Step {
    Step {
        index,
        total,
        per_epoch: total,
        seed: 1,
        learning_rate: 0.1,
    }
}

/// A controller's turn after an update by these gradients.
fn turn(attached: &mut Attached, at: Step, grads: &Grads) -> Outcome {
    let controller = attached.controller.as_mut().unwrap();
    controller.after_update(at, grads, &mut NoProbe).unwrap()
}

/// T-A6: 32 / 12.00001 times [[.5], [1]] [1, 1, 1], with one of twelve ranks left.
#[test]
fn the_update_and_its_factor() {
    let config: AdaloraConfig =
        serde_json::from_value(json!({ "init_r": 12, "lora_alpha": 32 })).unwrap();
    assert!((config.scale() - 2.666_664_444).abs() < 1e-9);
    let weight = random("weight", (2, 3));
    let mut model = Layers::new([("up", weight.clone())]).unwrap();
    let mut left = vec![false; 12];
    left[7] = true;
    let more = json!({
        "init_r": 12, "lora_alpha": 32, "target_modules": ["up"], "rank_pattern": { "up.lora_E": left },
    });
    let saved = [
        ("up.lora_A", matrix(&[&[1., 1., 1.]]).unwrap()),
        ("up.lora_B", matrix(&[&[1.], &[2.]]).unwrap()),
        ("up.lora_E", matrix(&[&[0.5]]).unwrap()),
    ];
    model.adapt(&Adalora, &more, Layers::saved(saved)).unwrap();
    let expected = matrix(&[&[1.333_332_22; 3], &[2.666_664_44; 3]]).unwrap();
    let update = (model.merged(0).unwrap() - &weight).unwrap();
    assert!(gap(&update, &expected).unwrap() < 1e-8);
    let x = random("x", (4, 3));
    let expected = x.matmul(&model.merged(0).unwrap().t().unwrap()).unwrap();
    assert!(gap(&model.output(0, &x).unwrap(), &expected).unwrap() < 1e-13);
}

/// Uniformly nowhere: E is 0, A and B are normal of deviation 0.02. 2 r (n_in + n_out + 1) / 2 numbers a module.
#[test]
fn starts() {
    let mut model = Layers::new([("up", random("weight", (60, 50)))]).unwrap();
    let keys = json!({ "target_modules": ["up"] });
    let attached = model.adapt(&Adalora, &keys, Start::Seed(3)).unwrap();
    assert_eq!(attached.trainable_parameters(), 12 * (60 + 50 + 1));
    let deviation = |name: &str| {
        let values = numbers(&param(&attached, name).value());
        let squares: f64 = values.iter().map(|value| value * value).sum();
        (squares / values.len() as f64).sqrt()
    };
    assert!((deviation("up.lora_A") - 0.02).abs() < 0.002);
    assert!((deviation("up.lora_B") - 0.02).abs() < 0.002);
    assert_eq!(deviation("up.lora_E"), 0.0);
}

/// A mean of norms over all A and B, or the sum of their squares.
#[test]
fn the_penalty() {
    for (squared, weight) in [(false, 0.7), (true, 0.3)] {
        let mut model = two_layers();
        let more = keys(json!({ "init_r": 3, "orth_reg_weight": weight, "orth_squared": squared }));
        let attached = model.adapt(&Adalora, &more, Start::Seed(3)).unwrap();
        randomise(&attached);
        let mut expected = 0.0;
        for (name, rows) in [
            ("up.lora_A", true),
            ("up.lora_B", false),
            ("down.lora_A", true),
            ("down.lora_B", false),
        ] {
            let values: Vec<Vec<f64>> = param(&attached, name).value().to_vec2().unwrap();
            let dot = |i: usize, j: usize| -> f64 {
                if rows {
                    values[i].iter().zip(&values[j]).map(|(a, b)| a * b).sum()
                } else {
                    values.iter().map(|row| row[i] * row[j]).sum()
                }
            };
            let mut square = 0.0;
            for (i, j) in (0..9).map(|at| (at / 3, at % 3)) {
                square += (dot(i, j) - f64::from(u8::from(i == j))).powi(2);
            }
            expected += if squared { square } else { square.sqrt() / 4.0 };
        }
        let controller = attached.controller.as_ref().unwrap();
        let key = Key::new(1, Purpose::Dropout);
        let pass = Pass::training_pass(Selection::one(ADAPTER), key);
        let penalty = controller.penalty(step(1, 10), &pass).unwrap().unwrap();
        let value = penalty.to_scalar::<f64>().unwrap();
        assert!((value - weight * expected).abs() < 1e-12, "{value}");
        let (grads, _) = ops::backward(&penalty, &attached.trained(), &[]).unwrap();
        // E takes no part in it.
        assert_eq!(grads.iter().count(), 4);
    }
}

/// T-A7: two modules of 12 ranks, target 8, tinit 10, tfinal 20, total 100, deltaT 5.
#[test]
fn the_budget() {
    let budget = Budget {
        first: 24,
        last: 16,
        shape: Shape::Cubic,
        warmup: 10,
        cooldown: 20,
        every: 5,
    };
    for (at, ranks, due) in [
        (0, 24, false),
        (10, 24, false),
        (11, 23, false),
        (15, 22, true),
        (20, 21, true),
        (45, 17, true),
        (60, 16, true),
        (79, 16, false),
        (80, 16, true),
        (81, 16, true),
    ] {
        let allotment = budget.at(at, 100);
        assert_eq!((allotment.ranks, allotment.due), (ranks, due), "step {at}");
    }
}

/// A tensor outside of any model.
fn lone(name: &str, index: usize, axis: usize, value: &Tensor) -> Param {
    let info = ParamInfo {
        owner: "default".into(),
        index,
        name: name.into(),
        kind: Kind::Trained,
        group: "default",
        rank_axis: Some(axis),
        decay: true,
        learning_rate: None,
    };
    Param::new(info, value).unwrap()
}

fn grads(of: &[(&Param, Tensor)]) -> Grads {
    let mut grads = Grads::default();
    for (param, grad) in of {
        grads.insert(param, grad.clone());
    }
    grads
}

/// T-A8, the averages: p = [1, -2], gradients [.1, .2], then [.3, -.1].
#[test]
fn the_scores_averages() {
    let p = lone(
        "p",
        0,
        0,
        &Tensor::new(&[[1f64], [-2.]], &Device::Cpu).unwrap(),
    );
    let site = Components {
        params: vec![p.clone()],
        gate: None,
    };
    let mut score = Sensitivity::new(std::slice::from_ref(&site), 0.85, 0.85).unwrap();
    for (grad, expected) in [
        ([0.1, 0.2], [0.000_191_25, 0.003_06]),
        ([0.3, -0.1], [0.002_724_36, 0.004_957_2]),
    ] {
        let grad = Tensor::new(&[[grad[0]], [grad[1]]], &Device::Cpu).unwrap();
        let sites = std::slice::from_ref(&site);
        score.observe(sites, &grads(&[(&p, grad)])).unwrap();
        let got = score.scores(sites, &mut NoProbe).unwrap();
        for (got, expected) in got[0].iter().zip(expected) {
            assert!((got - expected).abs() < 1e-8, "{got} and {expected}");
        }
    }
    let state = score.state().unwrap();
    let tensors: Vec<Vec<f64>> = state.tensors.values().map(numbers).collect();
    for (got, expected) in tensors
        .concat()
        .iter()
        .zip([0.057_75, 0.081, 0.047_175, 0.0612])
    {
        assert!((got - expected).abs() < 1e-12, "{got} and {expected}");
    }
}

/// T-A8, the sum of a module: the means over A's rows and B's columns, and E whole. One step with beta 0 and values 1 would
/// leave |ipt - I| = 0, so betas are 1/2 and the score of a number g is (g / 2) (g / 4) = g² / 8.
#[test]
fn the_scores_of_a_module() {
    let one = |name: &str, index, axis, dims: (usize, usize)| {
        let ones = Tensor::ones(dims, DType::F64, &Device::Cpu).unwrap();
        lone(name, index, axis, &ones)
    };
    let (a, b, e) = (
        one("a", 0, 0, (2, 2)),
        one("b", 1, 1, (3, 2)),
        one("e", 2, 0, (2, 1)),
    );
    let site = Components {
        params: vec![a.clone(), b.clone(), e.clone()],
        gate: None,
    };
    let root = |rows: &[&[f64]]| (matrix(rows).unwrap() * 8.0).unwrap().sqrt().unwrap();
    let grads = grads(&[
        (&a, root(&[&[1., 3.], &[2., 2.]])),
        (&b, root(&[&[1., 0.], &[3., 2.], &[2., 4.]])),
        (&e, root(&[&[0.5], &[1.]])),
    ]);
    let sites = std::slice::from_ref(&site);
    let mut score = Sensitivity::new(sites, 0.5, 0.5).unwrap();
    score.observe(sites, &grads).unwrap();
    let got = score.scores(sites, &mut NoProbe).unwrap();
    for (got, expected) in got[0].iter().zip([4.5, 5.0]) {
        assert!((got - expected).abs() < 1e-12, "{got} and {expected}");
    }
}

/// T-A9: equals at the threshold fall together.
#[test]
fn the_threshold() {
    let scores = [vec![0.1, 0.5, 0.3], vec![0.3, 0.9, 0.2]];
    let kept = |budget| {
        let kept = above_threshold(&scores, budget).unwrap().concat();
        kept.into_iter().map(u8::from).collect::<Vec<_>>()
    };
    assert_eq!(kept(3), [0, 1, 0, 0, 1, 0]);
    assert_eq!(kept(4), [0, 1, 1, 1, 1, 0]);
    assert_eq!(kept(6), [1; 6]);
}

/// Six ranks, four of them to go over eight steps: what is 0, what comes back, and when it does no more.
#[test]
fn a_schedule_by_hand() {
    let mut model = two_layers();
    let more = keys(json!({
        "init_r": 3, "target_r": 1, "tinit": 1, "tfinal": 2, "deltaT": 2, "beta1": 0.5, "beta2": 0.5,
    }));
    let mut attached = model.adapt(&Adalora, &more, Start::Seed(3)).unwrap();
    randomise(&attached);
    attached.controller.as_mut().unwrap().begin(8).unwrap();
    // Values that make the score of a rank that of its E.
    let e = |attached: &Attached| -> Vec<f64> {
        [
            numbers(&param(attached, "up.lora_E").value()),
            numbers(&param(attached, "down.lora_E").value()),
        ]
        .concat()
    };
    let mut run = |at: u64, slopes: [f64; 6]| -> (Vec<u8>, Option<Value>) {
        for name in ["up.lora_E", "down.lora_E"] {
            let param = param(&attached, name);
            param
                .set(&Tensor::ones((3, 1), DType::F64, &Device::Cpu).unwrap())
                .unwrap();
        }
        let mut grads = Grads::default();
        for param in attached.trained() {
            let at = if param.name().starts_with("up") { 0 } else { 3 };
            let grad = if param.name().ends_with("lora_E") {
                Tensor::from_vec(slopes[at..at + 3].to_vec(), (3, 1), &Device::Cpu).unwrap()
            } else {
                param.value().zeros_like().unwrap()
            };
            grads.insert(&param, grad);
        }
        let outcome = turn(&mut attached, step(at, 8), &grads);
        assert!(outcome.revivals.is_empty());
        let kept = e(&attached).iter().map(|e| u8::from(*e != 0.0)).collect();
        (kept, outcome.allocation.map(Value::Object))
    };
    let event = |budget: u64, up: u64, down: u64| {
        Some(json!({ "budget": budget, "ranks": { "up": up, "down": down } }))
    };
    // 6, then 2 + 4 (4/5)³ = 4.05, 2.86, 2.26, 2.03, 2; asked at steps 2, 4 and 6, which settles it.
    let slopes = [0.1, 0.5, 0.4, 0.2, 0.6, 0.3];
    assert_eq!(run(1, slopes), (vec![1; 6], None));
    assert_eq!(run(2, slopes), (vec![0, 1, 1, 0, 1, 1], event(4, 2, 2)));
    assert_eq!(run(3, slopes), (vec![1; 6], None));
    // A rank of the first choice has lost what it was worth.
    let later = [3.0, 0.1, 0.1, 0.1, 2.0, 0.1];
    assert_eq!(run(4, later), (vec![1, 0, 0, 0, 1, 0], event(2, 1, 1)));
    assert_eq!(run(5, later), (vec![1; 6], None));
    // The counts are those of before, so that there is nothing to log; from now on nothing comes back.
    assert_eq!(run(6, slopes), (vec![1, 0, 0, 0, 1, 0], None));
    assert_eq!(run(7, slopes), (vec![1, 0, 0, 0, 1, 0], None));
    assert_eq!(run(8, slopes), (vec![1, 0, 0, 0, 1, 0], None));
    let state = attached.controller.as_ref().unwrap().state().unwrap();
    assert_eq!(state.values, json!({ "ranks": 2, "settled": true }));
    assert!(state.tensors.is_empty());
}

/// Where nothing is to be taken nothing is masked, where PEFT fails.
#[test]
fn a_budget_that_takes_nothing() {
    let mut model = two_layers();
    let more = keys(json!({ "init_r": 2, "target_r": 2 }));
    let mut attached = model.adapt(&Adalora, &more, Start::Seed(3)).unwrap();
    randomise(&attached);
    attached.controller.as_mut().unwrap().begin(3).unwrap();
    for at in 1..=3 {
        let mut grads = Grads::default();
        for param in attached.trained() {
            grads.insert(&param, param.value());
        }
        assert!(
            turn(&mut attached, step(at, 3), &grads)
                .allocation
                .is_none()
        );
    }
    assert_eq!(attached.controller.as_ref().unwrap().budget(), Some(4));
    let exported = attached.exported().unwrap();
    assert_eq!(exported.config.own["rank_pattern"], Value::Null);
    assert_eq!(exported.config.own["total_step"], json!(3));
}

#[test]
fn refusals() {
    let refused = |more: Value| {
        let error = two_layers().adapt(&Adalora, &keys(more), Start::Seed(1));
        error.unwrap_err().to_string()
    };
    for (more, expected) in [
        (
            json!({ "init_r": 6 }),
            "up: r = 6 is larger than the matrix [7, 5] allows; use at most 5",
        ),
        (
            json!({ "init_r": 0 }),
            "`init_r = 0`, expected an integer above 0",
        ),
        (
            json!({ "deltaT": 0 }),
            "`deltaT = 0`, expected an integer above 0",
        ),
        (
            json!({ "orth_reg_weight": -1 }),
            "`orth_reg_weight = -1`: expected a number of at least 0",
        ),
        (
            json!({ "use_dora": true }),
            "`use_dora = true` is not yet supported (only false is)",
        ),
        (
            json!({ "bias": "adalora_only" }),
            "`bias = \"adalora_only\"`, expected \"none\", \"all\" or \"lora_only\"",
        ),
        (
            json!({ "init_r": 2, "rank_pattern": { "up.lora_E": [true] } }),
            "`rank_pattern` has 1 entries for `up.lora_E`, expected one for each of init_r = 2 ranks",
        ),
        (
            json!({ "init_r": 2, "rank_pattern": { "q.lora_E": [true, false] } }),
            "`rank_pattern` has an entry for `q.lora_E`, which is of no targeted module",
        ),
    ] {
        assert_eq!(refused(more), expected);
    }
    let mut attached = two_layers()
        .adapt(
            &Adalora,
            &keys(json!({ "init_r": 3, "tinit": 5, "tfinal": 3 })),
            Start::Seed(1),
        )
        .unwrap();
    let controller = attached.controller.as_mut().unwrap();
    let error = controller.begin(8).unwrap_err().to_string();
    assert_eq!(
        error,
        "`tinit = 5` and `tfinal = 3` leave none of the 8 steps of this run to allocate ranks in; make them smaller, or \
         the run longer"
    );
    controller.begin(9).unwrap();
}
