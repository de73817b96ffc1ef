//! Which ranks stay, and that nothing else changes: T10.

use crate::{
    LOUIZOS, Layers, adapt, after, assert_near, numbers, penalty, random, set, step, training,
    value, vector,
};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Attached, Exported, Outcome, Start, attach};
use lowrank_ops::Grads;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_salora::{BudgetUnit, Ranks, positive, top_budget};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Modules with random costs and phi, some of the phi equal.
fn drawn(case: u64) -> (Vec<Ranks>, f64) {
    let mut stream = Key::new(case, Purpose::Test).site("modules").stream();
    let modules = (0..1 + stream.below(6)).map(|_| Ranks {
        cost: 3 + stream.below(40) as usize,
        phi: (0..1 + stream.below(9))
            .map(|_| match stream.below(8) {
                0 => 1.25,
                _ => 3.0 * stream.normal(),
            })
            .collect(),
    });
    let modules = modules.collect();
    (modules, 1.0 - stream.uniform())
}

/// (phi, cost, kept) of every rank, in order.
fn flat(modules: &[Ranks], keep: &[Vec<bool>]) -> Vec<(f64, usize, bool)> {
    let of = |(ranks, keep): (&Ranks, &Vec<bool>)| -> Vec<_> {
        let pairs = ranks.phi.iter().zip(keep);
        pairs.map(|(&phi, &kept)| (phi, ranks.cost, kept)).collect()
    };
    modules.iter().zip(keep).flat_map(of).collect()
}

#[test]
fn t10_the_largest_phi_within_the_budget() {
    for case in 0..1000 {
        let (modules, density) = drawn(case);
        let ranks = flat(
            &modules,
            &top_budget(&modules, BudgetUnit::Ranks, density).unwrap(),
        );
        let kept = ranks.iter().filter(|(.., kept)| *kept).count();
        assert_eq!(
            kept,
            (density * ranks.len() as f64).round() as usize,
            "case {case}"
        );
        for (i, (phi, _, kept)) in ranks.iter().enumerate() {
            for (other, _, other_kept) in &ranks[i + 1..] {
                // Of two that are equal the first is kept.
                let fine = match (kept, other_kept) {
                    (true, false) => phi >= other,
                    (false, true) => phi < other,
                    _ => true,
                };
                assert!(fine, "case {case}: {phi} {kept}, {other} {other_kept}");
            }
        }

        let ranks = flat(
            &modules,
            &top_budget(&modules, BudgetUnit::Parameters, density).unwrap(),
        );
        let all: usize = ranks.iter().map(|(_, cost, _)| cost).sum();
        let budget = density * all as f64 + 1e-6;
        let kept = |of: &dyn Fn(f64) -> bool| -> usize {
            let kept = ranks.iter().filter(|(phi, _, kept)| *kept && of(*phi));
            kept.map(|(_, cost, _)| cost).sum()
        };
        assert!(kept(&|_| true) as f64 <= budget, "case {case}");
        for (phi, cost, _) in ranks.iter().filter(|(.., kept)| !kept) {
            assert!(
                (kept(&|_| true) + cost) as f64 > budget,
                "case {case}: {cost} would fit"
            );
            // Nor did it fit beside those before it.
            assert!(
                (kept(&|other| other >= *phi) + cost) as f64 > budget,
                "case {case}"
            );
        }

        for (phi, _, kept) in flat(&modules, &positive(&modules, LOUIZOS)) {
            assert_eq!(kept, phi > -(11f64.ln()), "case {case}: {phi}");
        }
    }
}

#[test]
fn t10_a_budget_that_is_whole_is_spent() {
    let modules = [Ranks {
        cost: 29,
        phi: vec![1.0; 100],
    }];
    for percent in 1..=100usize {
        let density = percent as f64 / 100.0;
        for unit in [BudgetUnit::Ranks, BudgetUnit::Parameters] {
            let keep = top_budget(&modules, unit, density).unwrap().concat();
            let first = keep.iter().take_while(|kept| **kept).count();
            let all = keep.iter().filter(|kept| **kept).count();
            assert_eq!((first, all), (percent, percent));
        }
    }
}

const PATHS: [(&str, usize, usize); 3] = [
    ("layers.0.up", 7, 6),
    ("layers.0.down", 8, 5),
    ("layers.1.up", 6, 9),
];

/// Test-time gates of 1, between 0 and 1, and 0; the last module has none above 0.
const PHI: [[f64; 4]; 3] = [
    [3.0, 0.5, -2.5, -1.0],
    [-2.9, -0.2, 2.3, 4.0],
    [-3.0, -2.45, -4.0, -2.6],
];

struct Trained {
    model: Layers,
    attached: Attached,
    x: Vec<Tensor>,
}

fn trained(keys: Value) -> Trained {
    let mut model = Layers::random(&PATHS, DType::F32);
    let attached = adapt(&mut model, keys);
    for ((path, n_out, _), phi) in PATHS.iter().zip(PHI) {
        set(
            &attached,
            &format!("{path}.lora_B.weight"),
            &random(path, &[*n_out, 4]),
        );
        set(&attached, &format!("{path}.salora_phi"), &vector(&phi));
    }
    let x = |(path, _, n_in): &(&str, usize, usize)| {
        random(path, &[3, *n_in]).to_dtype(DType::F32).unwrap()
    };
    Trained {
        model,
        attached,
        x: PATHS.iter().map(x).collect(),
    }
}

impl Trained {
    fn outputs(&self) -> Vec<f64> {
        let outputs = self.x.iter().enumerate();
        let outputs = outputs.map(|(i, x)| numbers(&self.model.evaluated(i, x)));
        outputs.collect::<Vec<_>>().concat()
    }

    fn merged(&self) -> Vec<f64> {
        let outputs = self.x.iter().enumerate().map(|(i, x)| {
            let weight = self.model.merged(i);
            numbers(&x.matmul(&weight.t().unwrap()).unwrap())
        });
        outputs.collect::<Vec<_>>().concat()
    }

    /// s b a over the base.
    fn by_factors(&self) -> Vec<f64> {
        let outputs = self.x.iter().zip(&self.model.0).map(|(x, linear)| {
            let update = linear
                .adapter("default")
                .unwrap()
                .low_rank()
                .unwrap()
                .unwrap();
            assert!(update.exact);
            let base = linear.base().forward(x).unwrap();
            if update.a.dim(0).unwrap() == 0 {
                return numbers(&base);
            }
            let product = update.b.matmul(&update.a).unwrap();
            let added = x.matmul(&product.t().unwrap()).unwrap();
            numbers(&(base + (added * update.scale).unwrap()).unwrap())
        });
        outputs.collect::<Vec<_>>().concat()
    }

    /// What the last step of the window does.
    fn extract(&mut self) -> Outcome {
        after(&mut self.attached, step(7, 10), &mut Grads::default())
    }

    fn live(&self) -> Vec<Vec<bool>> {
        let gates = self.attached.gates.iter();
        gates.map(|gate| gate.live().unwrap()).collect()
    }

    /// The folder, read by another model.
    fn loaded(&self) -> (Self, Exported) {
        let exported = self.attached.exported().unwrap();
        let mut model = Layers::random(&PATHS, DType::F32);
        let tensors: BTreeMap<String, Tensor> = exported.tensors.iter().cloned().collect();
        let start = Start::Saved { tensors, seed: 8 };
        let attached = attach(&mut model, "default", &exported.config, start).unwrap();
        let x = self.x.clone();
        let loaded = Self { model, attached, x };
        (loaded, exported)
    }
}

fn ranks(exported: &Exported) -> Vec<usize> {
    let of = |name: &str| {
        let mut tensors = exported.tensors.iter();
        tensors
            .find(|(known, _)| known == name)
            .unwrap()
            .1
            .dims()
            .to_vec()
    };
    let both = PATHS.map(|(path, n_out, n_in)| {
        let (a, b) = (
            of(&format!("{path}.lora_A.weight")),
            of(&format!("{path}.lora_B.weight")),
        );
        assert_eq!((a[1], b[0], a[0]), (n_in, n_out, b[1]));
        a[0]
    });
    both.to_vec()
}

/// Keeping the ranks whose test-time gate is above 0 and multiplying it into P changes no output.
#[test]
fn t10_positive_extraction_changes_nothing() {
    let keys = json!({ "r": 4, "lora_alpha": 6, "extract": "positive", "orth_weight": 0 });
    let mut run = trained(keys);
    let before = run.outputs();
    assert_near(&run.merged(), &before, 1e-5);
    assert_near(&run.by_factors(), &before, 1e-5);
    let (loaded, exported) = run.loaded();
    assert_eq!(loaded.outputs(), before);
    assert_eq!(ranks(&exported), [4, 4, 4]);
    assert_eq!(
        (exported.tensors.len(), &exported.config.own["extracted"]),
        (9, &json!(false))
    );

    let outcome = run.extract();
    assert!(outcome.revivals.is_empty());
    let live = [
        [true, true, false, true],
        [false, true, true, true],
        [false; 4],
    ];
    assert_eq!(run.live(), live);
    assert_eq!(run.attached.controller.as_ref().unwrap().budget(), Some(6));
    assert_near(&run.outputs(), &before, 1e-5);
    assert_near(&run.merged(), &before, 1e-5);
    assert_near(&run.by_factors(), &before, 1e-5);
    // Training passes are like evaluation now, and nothing is added to the loss.
    let y = run.model.forward(0, &run.x[0], &mut training(8));
    assert_eq!(numbers(&y), numbers(&run.model.evaluated(0, &run.x[0])));
    let (grads, added) = penalty(&run.attached, step(8, 10));
    assert!(grads.is_empty() && added == 0.0);

    let (mut loaded, exported) = run.loaded();
    assert_eq!(loaded.outputs(), run.outputs());
    assert_eq!(ranks(&exported), [3, 3, 0]);
    assert_eq!(exported.tensors.len(), 6);
    let own = &exported.config.own;
    let pattern = json!({ "layers.0.up": 3, "layers.0.down": 3, "layers.1.up": 0 });
    assert_eq!(own["rank_pattern"], pattern);
    // The scale is what it was.
    assert_eq!((&own["r"], &own["lora_alpha"]), (&json!(4), &json!(6)));
    assert_eq!(own["extracted"], json!(true));
    // A module of rank 0 has nothing to train, and nothing acts between steps any more.
    assert!(loaded.attached.controller.take().is_none());
    assert_eq!(loaded.attached.trained().len(), 4);
    // What was read is written again.
    let again = loaded.attached.exported().unwrap();
    assert_eq!(again.config.own, exported.config.own);
    assert_eq!(again.tensors.len(), 6);
}

/// Ranks are chosen by phi whatever their gates; one whose gate is 0 starts anew with Q's row.
#[test]
fn t10_a_closed_rank_that_is_kept_starts_anew() {
    // 11 of 12 ranks: all but the one with phi = -4.
    let keys = json!({ "r": 4, "lora_alpha": 6, "density": 0.9, "budget": "ranks" });
    let mut run = trained(keys);
    let (before, q) = (
        run.outputs(),
        value(&run.attached, "layers.1.up.lora_A.weight"),
    );
    let old = value(&run.attached, "layers.0.up.lora_B.weight");
    let outcome = run.extract();
    let live = [vec![true; 4], vec![true; 4], vec![true, true, false, true]];
    assert_eq!(run.live(), live);
    assert_near(&run.outputs(), &before, 1e-5);
    let p = value(&run.attached, "layers.1.up.lora_B.weight");
    for (i, p) in p.iter().enumerate() {
        assert_eq!(
            *p == 0.0,
            i % 4 != 2,
            "a rank that does not live keeps its values"
        );
    }
    assert_eq!(value(&run.attached, "layers.1.up.lora_A.weight"), q);
    let folded = value(&run.attached, "layers.0.up.lora_B.weight");
    let gates = PHI[0].map(|phi| LOUIZOS.settled(phi));
    for (i, (folded, old)) in folded.iter().zip(old).enumerate() {
        assert_near(&[*folded], &[old * gates[i % 4]], 1e-6);
    }
    let known = outcome.revivals.iter();
    let known = known.map(|revival| (revival.param.name(), revival.axis, revival.slots.clone()));
    let mut expected = Vec::new();
    let closed = [vec![2], vec![0], vec![0, 1, 3]];
    for ((path, ..), slots) in PATHS.iter().zip(closed) {
        expected.push((format!("{path}.lora_A.weight"), 0, slots.clone()));
        expected.push((format!("{path}.lora_B.weight"), 1, slots));
    }
    let known: Vec<(String, usize, Vec<usize>)> = known
        .map(|(name, axis, slots)| (name.to_owned(), axis, slots))
        .collect();
    assert_eq!(known, expected);
}

/// What the log holds, and that the extraction comes once, at the end of the window.
#[test]
fn the_event() {
    let mut run = trained(json!({ "r": 4, "density": 0.5, "budget": "ranks", "t_start": 0.3 }));
    for index in 1..7 {
        let outcome = after(&mut run.attached, step(index, 10), &mut Grads::default());
        assert!(outcome.allocation.is_none());
    }
    let event = run.extract().allocation.unwrap();
    let keys: Vec<&str> = event.keys().map(String::as_str).collect();
    assert_eq!(keys, ["density", "lambda", "positive", "ranks"]);
    let open = PHI.concat().into_iter().map(|phi| LOUIZOS.open_at(phi));
    let density = open.sum::<f64>() / 12.0;
    assert_near(&[event["density"].as_f64().unwrap()], &[density], 1e-6);
    // Steps 4 to 7 are in the window.
    let lambda = 4.0 * (density - 0.5).powi(2);
    assert_near(&[event["lambda"].as_f64().unwrap()], &[lambda], 1e-6);
    assert_eq!(event["positive"], json!(6));
    let kept = json!({ "layers.0.up": 3, "layers.0.down": 3, "layers.1.up": 0 });
    assert_eq!(event["ranks"], kept);
    let outcome = after(&mut run.attached, step(8, 10), &mut Grads::default());
    assert!(outcome.allocation.is_none());
}
