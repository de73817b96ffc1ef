//! The paper's scores, rounds and schedule on numbers.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Ask, Attached, Batch, Masks, Model, Outcome, Param, Pass, Probe, Result,
    Selection, Share, Source, Start, Step, attach, masked_losses, run, sweep,
};
use lowrank_alora::{Alora, AloraConfig};
use lowrank_conformance::planted::Planted;
use lowrank_conformance::toy::{Head, Toy, batch};
use lowrank_ops::Grads;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_schedule::{Ablation, Components, Score};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

const NAME: &str = "default";

fn adapted(model: &mut dyn Model, keys: Value) -> Attached {
    let keys = keys.as_object().unwrap();
    let config = AdapterConfig::parse(&Alora, keys, Source::RunFile).unwrap();
    attach(model, NAME, &config, Start::Seed(3)).unwrap()
}

fn matrix(rows: &[&[f64]]) -> Tensor {
    let shape = (rows.len(), rows[0].len());
    Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap()
}

/// Numbers that differ from each other: sin(1 + salt), sin(2 + salt), ..
fn numbers(param: &Param, salt: usize) -> Tensor {
    let numbers = (1..=param.elem_count()).map(|i| ((i + 17 * salt) as f64).sin());
    Tensor::from_vec(numbers.collect(), param.shape(), &Device::Cpu).unwrap()
}

/// Answers on one batch.
struct HeldOut<'a> {
    model: &'a dyn Model,
    batch: &'a Batch,
}

impl Probe for HeldOut<'_> {
    fn losses(&mut self, masks: &[Masks]) -> Result<Vec<f64>> {
        masked_losses(self.model, self.batch, &Selection::one(NAME), masks)
    }
}

/// The note's network: two layers of two ranks each, s = 1, two samples.
fn example() -> (Planted, Attached, Batch) {
    let mut model = Planted::new(
        matrix(&[&[0.5, -0.2], &[0.1, 0.4]]),
        matrix(&[&[0.2, -0.3], &[0.4, 0.1], &[-0.5, 0.6]]),
        matrix(&[&[1.0, 2.0], &[-1.0, 0.5]]),
        matrix(&[&[1.0, 0.0, 0.0], &[0.0, 0.0, 1.0]]),
    )
    .unwrap();
    let attached = adapted(
        &mut model,
        json!({
            "r": 2, "lora_alpha": 2, "n_a": 1, "rounds": 1, "k1_steps": 1,
            "target_modules": ["first", "second"],
            // The layers are so small that rounds would have no room.
            "rank_pattern": {},
        }),
    );
    let values = [
        matrix(&[&[0.3, -0.1], &[0.2, 0.5]]),
        matrix(&[&[0.6, -0.4], &[0.1, 0.7]]),
        matrix(&[&[0.4, 0.2], &[-0.3, 0.1]]),
        matrix(&[&[0.5, -0.2], &[0.3, 0.8], &[-0.6, 0.1]]),
    ];
    let trained = attached.trained();
    assert_eq!(trained.len(), values.len());
    for (param, value) in trained.iter().zip(values) {
        param.set(&value).unwrap();
    }
    (model, attached, Planted::batch([0, 1]).unwrap())
}

fn components(attached: &Attached) -> Vec<Components> {
    attached.gates.iter().map(Components::of).collect()
}

fn ablation() -> Ablation {
    Ablation::new(NonZeroUsize::MIN)
}

fn scores(model: &dyn Model, attached: &Attached, batch: &Batch) -> Vec<Vec<f64>> {
    let mut probe = HeldOut { model, batch };
    ablation()
        .scores(&components(attached), &mut probe)
        .unwrap()
}

/// S of the model as it is.
fn score(model: &dyn Model, selection: &Selection, batch: &Batch) -> f64 {
    let mut pass = Pass::evaluation(selection.clone());
    let losses = run(model, batch, &Ask::Losses, None, &mut pass).unwrap();
    -losses
        .mean_all()
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .to_scalar::<f64>()
        .unwrap()
}

fn near(got: f64, expected: f64, tolerance: f64) {
    assert!(
        (got - expected).abs() <= tolerance,
        "{got}, expected {expected}"
    );
}

fn step(index: u64) -> Step {
    Step {
        index,
        total: 40,
        per_epoch: 20,
        seed: 3,
        learning_rate: 1e-3,
    }
}

/// What the controller does after a step.
fn after(model: &dyn Model, attached: &mut Attached, batch: &Batch, index: u64) -> Outcome {
    let controller = attached.controller.as_mut().unwrap();
    let mut probe = HeldOut { model, batch };
    controller
        .after_update(step(index), &Grads::default(), &mut probe)
        .unwrap()
}

fn live(attached: &Attached) -> Vec<Vec<bool>> {
    attached
        .gates
        .iter()
        .map(|gate| gate.live().unwrap())
        .collect()
}

#[test]
fn the_hand_example_is_scored_as_in_the_note() {
    let (model, attached, batch) = example();
    let (selected, base) = (Selection::one(NAME), Selection::none());
    near(score(&model, &selected, &batch), -1.166_887_266, 1e-9);
    near(score(&model, &base, &batch), -1.107_317_462, 1e-9);
    let expected = [
        [-1.029_989_918, -1.413_765_887],
        [-0.925_668_059, -1.178_453_712],
    ];
    let scores = scores(&model, &attached, &batch);
    for (scores, expected) in scores.iter().zip(expected) {
        assert_eq!(scores.len(), expected.len());
        for (&score, expected) in scores.iter().zip(expected) {
            near(score, expected, 1e-9);
        }
    }
    // S without a rank, and with it alone.
    let masks = |keep: [[f64; 2]; 2]| -> Masks {
        let gates = attached.gates.iter().zip(keep);
        gates
            .map(|(gate, keep)| (gate.id().clone(), Tensor::new(&keep, &Device::Cpu).unwrap()))
            .collect()
    };
    let questions = [
        ([[0.0, 1.0], [1.0, 1.0]], -1.216_909_311),
        ([[1.0, 0.0], [0.0, 0.0]], -1.080_011_963),
        ([[1.0, 0.0], [1.0, 1.0]], -0.980_346_410),
        ([[0.0, 1.0], [0.0, 0.0]], -1.227_225_031),
        ([[1.0, 1.0], [0.0, 1.0]], -1.250_072_584),
        ([[0.0, 0.0], [1.0, 0.0]], -1.008_853_377),
        ([[1.0, 1.0], [1.0, 0.0]], -1.115_033_065),
        ([[0.0, 0.0], [0.0, 1.0]], -1.126_599_512),
    ];
    // CS, the score without what all ranks share, for each pair of questions.
    let shares = [0.136_897_348, -0.246_878_621, 0.241_219_207, -0.011_566_447];
    for (pair, expected) in questions.chunks(2).zip(shares) {
        near(pair[1].1 - pair[0].1, expected, 2e-9);
    }
    let all: Vec<Masks> = questions.iter().map(|(keep, _)| masks(*keep)).collect();
    let losses = masked_losses(&model, &batch, &selected, &all).unwrap();
    for (loss, (_, expected)) in losses.iter().zip(questions) {
        near(-loss, expected, 1e-9);
    }
}

#[test]
fn a_round_of_the_hand_example_moves_a_rank_and_keeps_the_function() {
    let mut model = Planted::new(
        matrix(&[&[0.5, -0.2, 0.0], &[0.1, 0.4, 0.0], &[0.0, 0.0, 0.0]]),
        matrix(&[&[0.2, -0.3, 0.0], &[0.4, 0.1, 0.0], &[-0.5, 0.6, 0.0]]),
        matrix(&[&[1.0, 2.0, 0.0], &[-1.0, 0.5, 0.0]]),
        matrix(&[&[1.0, 0.0, 0.0], &[0.0, 0.0, 1.0]]),
    )
    .unwrap();
    // The same network with a column and a row of zeros more, so that there is room for a third rank.
    let keys = json!({
        "r": 2, "lora_alpha": 2, "n_a": 1, "rounds": 1, "k1_steps": 3, "target_modules": ["first", "second"],
    });
    let mut attached = adapted(&mut model, keys);
    let values = [
        matrix(&[&[0.3, -0.1, 0.0], &[0.2, 0.5, 0.0], &[0.7, 0.7, 0.7]]),
        matrix(&[&[0.6, -0.4, 0.9], &[0.1, 0.7, 0.9], &[0.0, 0.0, 0.0]]),
        matrix(&[&[0.4, 0.2, 0.0], &[-0.3, 0.1, 0.0], &[0.7, 0.7, 0.7]]),
        matrix(&[&[0.5, -0.2, 0.9], &[0.3, 0.8, 0.9], &[-0.6, 0.1, 0.9]]),
    ];
    for (param, value) in attached.trained().iter().zip(values) {
        param.set(&value).unwrap();
    }
    let batch = Planted::batch([0, 1]).unwrap();
    let selected = Selection::one(NAME);
    near(score(&model, &selected, &batch), -1.166_887_266, 1e-9);
    for index in [1, 2] {
        let outcome = after(&model, &mut attached, &batch, index);
        assert!(outcome.allocation.is_none() && outcome.revivals.is_empty());
    }
    let outcome = after(&model, &mut attached, &batch, 3);
    assert_eq!(live(&attached), [[true, false, false], [true, true, true]]);
    // What the function was without the removed rank, to the bit: the new rank changes nothing yet.
    near(score(&model, &selected, &batch), -0.980_346_410, 1e-9);
    let with = score(&model, &selected, &batch);
    attached.gates[1].keep(&[true, true, false]).unwrap();
    assert_eq!(score(&model, &selected, &batch), with);
    attached.gates[1].keep(&[true; 3]).unwrap();

    let allocation = outcome.allocation.unwrap();
    assert_eq!(allocation["round"], 1);
    assert_eq!(allocation["budget"], 4);
    assert_eq!(allocation["ranks"], json!({"first": 1, "second": 3}));
    assert_eq!(allocation["removed"][0]["site"], "first");
    let revived: Vec<_> = outcome
        .revivals
        .iter()
        .map(|revival| (revival.param.name(), revival.axis, revival.slots.clone()))
        .collect();
    let expected = [
        ("second.lora_A.weight", 0, vec![2]),
        ("second.lora_B.weight", 1, vec![2]),
    ];
    assert_eq!(revived, expected);

    // A fresh rank's B has a gradient, and its A has none at first.
    let key = Key::new(3, Purpose::Dropout);
    let mut pass = Pass::training_pass(selected, key);
    let share = Share {
        token: 0.5,
        auxiliary: 1.0,
    };
    let trained = attached.trained();
    let memory = lowrank_adapter::Memory::Keep;
    let grads = sweep(&model, &batch, &mut pass, &trained, share, memory)
        .unwrap()
        .grads;
    let row = |i: usize, axis: usize, slot: usize| -> f64 {
        let grad = grads
            .get(&trained[i])
            .unwrap()
            .narrow(axis, slot, 1)
            .unwrap();
        grad.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    };
    assert_eq!(row(2, 0, 2), 0.0);
    assert!(row(3, 1, 2) > 1e-3);
    // What was removed has none, what stays has.
    assert_eq!((row(0, 0, 1), row(1, 1, 1)), (0.0, 0.0));
    assert!(row(0, 0, 0) > 1e-4 && row(1, 1, 0) > 1e-4);

    // Another round is not due, however long it goes on.
    for index in 4..40 {
        assert!(
            after(&model, &mut attached, &batch, index)
                .allocation
                .is_none()
        );
    }
}

#[test]
fn a_masked_rank_is_a_rank_that_is_not_there() {
    let site = "model.layers.1.mlp.up_proj";
    let mut toy = Toy::new(DType::F64, Head::Own).unwrap();
    let keys = json!({"r": 4, "lora_alpha": 6, "rounds": 0, "target_modules": [site]});
    let attached = adapted(&mut toy, keys);
    let (a, b) = (&attached.params[0], &attached.params[1]);
    b.set(&numbers(b, 1)).unwrap();
    attached.gates[0].keep(&[true, false, true, false]).unwrap();
    let tokens = batch(5, &[&[6], &[4]]).unwrap();
    let masked = score(&toy, &Selection::one(NAME), &tokens);

    let mut other = Toy::new(DType::F64, Head::Own).unwrap();
    let keys = json!({"r": 2, "lora_alpha": 3, "rounds": 0, "target_modules": [site]});
    let small = adapted(&mut other, keys);
    let slots = Tensor::new(&[0_u32, 2], &Device::Cpu).unwrap();
    let kept = |param: &Param, axis: usize| param.value().index_select(&slots, axis).unwrap();
    small.params[0].set(&kept(a, 0)).unwrap();
    small.params[1].set(&kept(b, 1)).unwrap();
    near(score(&other, &Selection::one(NAME), &tokens), masked, 1e-14);
    attached.gates[0].keep(&[true; 4]).unwrap();
    assert!((score(&toy, &Selection::one(NAME), &tokens) - masked).abs() > 1e-4);
}

/// A toy with an adapter of two ranks at each layer and the head, away from its start.
fn toy() -> (Toy, Attached, Batch) {
    let mut toy = Toy::new(DType::F64, Head::Own).unwrap();
    let keys = json!({
        "r": 2, "lora_alpha": 3, "n_a": 3, "rounds": 2, "target_modules": "(.*_proj|lm_head)",
    });
    let attached = adapted(&mut toy, keys);
    for (i, param) in attached.trained().iter().enumerate() {
        param.set(&(numbers(param, i) * 0.3).unwrap()).unwrap();
    }
    (toy, attached, batch(8, &[&[6], &[5], &[3]]).unwrap())
}

#[test]
fn the_fast_scores_are_those_of_a_pass_for_each_mask() {
    struct Naive<'a>(&'a Toy, &'a Batch);
    impl Probe for Naive<'_> {
        fn losses(&mut self, masks: &[Masks]) -> Result<Vec<f64>> {
            let one = |masks: &Masks| {
                let mut pass = Pass::evaluation(Selection::one(NAME)).with_masks(masks.clone());
                let losses = run(self.0, self.1, &Ask::Losses, None, &mut pass)?;
                Ok(losses.mean_all()?.to_scalar::<f64>()?)
            };
            masks.iter().map(one).collect()
        }
    }
    let (toy, attached, batch) = toy();
    let fast = scores(&toy, &attached, &batch);
    let mut naive = Naive(&toy, &batch);
    let slow = ablation()
        .scores(&components(&attached), &mut naive)
        .unwrap();
    let mut ranks = 0;
    for ((fast, slow), gate) in fast.iter().zip(&slow).zip(&attached.gates) {
        for slot in (0..gate.capacity()).filter(|&slot| gate.live().unwrap()[slot]) {
            near(fast[slot], slow[slot], 1e-10);
            ranks += 1;
        }
    }
    // Three blocks of six matrices, and the head.
    assert_eq!(ranks, 2 * (3 * 6 + 1));
}

#[test]
fn scores_of_special_ranks_are_known() {
    let (toy, attached, batch) = toy();
    let base = score(&toy, &Selection::none(), &batch);
    // A rank that does nothing: B is 0 there.
    let b = &attached.trained()[1];
    let zeroed = b.value().slice_assign(
        &[0..b.shape().dims()[0], 1..2],
        &b.value().narrow(1, 1, 1).unwrap().zeros_like().unwrap(),
    );
    b.set(&zeroed.unwrap()).unwrap();
    near(scores(&toy, &attached, &batch)[0][1], base, 1e-12);
    // The only rank that there is.
    for gate in &attached.gates {
        gate.keep(&vec![false; gate.capacity()]).unwrap();
    }
    let mut only = vec![false; attached.gates[4].capacity()];
    only[1] = true;
    attached.gates[4].keep(&only).unwrap();
    let whole = score(&toy, &Selection::one(NAME), &batch);
    near(
        scores(&toy, &attached, &batch)[4][1],
        2.0 * whole - base,
        1e-12,
    );
}

#[test]
fn a_score_that_is_linear_in_the_gates_gives_twice_the_slope() {
    struct Linear(Vec<Vec<f64>>, Vec<lowrank_adapter::GateId>);
    impl Probe for Linear {
        fn losses(&mut self, masks: &[Masks]) -> Result<Vec<f64>> {
            let one = |masks: &Masks| {
                let mut score = 0.75;
                for (gate, slopes) in self.1.iter().zip(&self.0) {
                    let mask: Vec<f64> = masks[gate].to_vec1()?;
                    score += mask.iter().zip(slopes).map(|(g, c)| g * c).sum::<f64>();
                }
                Ok(-score)
            };
            masks.iter().map(one).collect()
        }
    }
    let (_, attached, _) = example();
    let slopes = vec![vec![0.3, -0.2], vec![0.1, 0.6]];
    let gates = attached
        .gates
        .iter()
        .map(|gate| gate.id().clone())
        .collect();
    let mut probe = Linear(slopes.clone(), gates);
    let scores = ablation()
        .scores(&components(&attached), &mut probe)
        .unwrap();
    for (scores, slopes) in scores.iter().zip(slopes) {
        for (score, slope) in scores.iter().zip(slopes) {
            near(*score, 2.0 * slope + 0.75, 1e-12);
        }
    }
}

#[test]
fn scores_know_neither_order_nor_scale() {
    let (model, attached, batch) = example();
    let before = scores(&model, &attached, &batch);
    let trained = attached.trained();
    let swap = Tensor::new(&[1_u32, 0], &Device::Cpu).unwrap();
    let (a, b) = (&trained[0], &trained[1]);
    a.set(&a.value().index_select(&swap, 0).unwrap()).unwrap();
    b.set(&b.value().index_select(&swap, 1).unwrap()).unwrap();
    let swapped = scores(&model, &attached, &batch);
    near(swapped[0][0], before[0][1], 1e-12);
    near(swapped[0][1], before[0][0], 1e-12);
    near(swapped[1][0], before[1][0], 1e-12);
    for factor in [2.0, -3.0] {
        a.set(&(a.snapshot().unwrap() * factor).unwrap()).unwrap();
        b.set(&(b.snapshot().unwrap() / factor).unwrap()).unwrap();
        let scaled = scores(&model, &attached, &batch);
        for (scaled, swapped) in scaled.concat().iter().zip(swapped.concat()) {
            near(*scaled, swapped, 1e-5 * swapped.abs());
        }
    }
}

#[test]
fn a_module_without_ranks_merges_to_its_own_weight() {
    let mut toy = Toy::new(DType::F32, Head::Own).unwrap();
    let keys =
        json!({"r": 3, "rounds": 0, "target_modules": "all-linear", "rank_pattern": {"q_proj": 0}});
    let attached = adapted(&mut toy, keys);
    assert_eq!(live(&attached)[0], [false; 0]);
    let mut pass = Pass::evaluation(Selection::one(NAME));
    let mut seen = 0;
    toy.parts(&mut |part| {
        if let lowrank_adapter::Part::Linear(linear) = part
            && linear.path().ends_with("q_proj")
        {
            let lowrank_adapter::Merge::Exact(merged) = linear.merge(&mut pass).unwrap() else {
                panic!("a rank of 0 merges exactly")
            };
            let bits = |tensor: &Tensor| -> Vec<u32> {
                let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
                numbers.into_iter().map(f32::to_bits).collect()
            };
            assert_eq!(bits(&merged.weight), bits(&linear.base().weight().unwrap()));
            seen += 1;
        }
    });
    assert_eq!(seen, 3);
}

#[test]
fn rounds_come_when_the_paper_has_them_unless_steps_are_given() {
    let config = AloraConfig::default();
    assert_eq!((config.rounds, config.due(200)), (8, (200, 50)));
    // A short epoch, of which a quarter is less than a step.
    assert_eq!(config.due(1), (1, 1));
    let steps = AloraConfig {
        k1_steps: Some(7),
        k2_steps: Some(0),
        ..config
    };
    assert_eq!(steps.due(200), (7, 1));
    // As many ranks as there are kinds of matrices; capacity for what all rounds could give one of them.
    let mut toy = Toy::new(DType::F32, Head::Own).unwrap();
    let attached = adapted(
        &mut toy,
        json!({"r": 2, "rounds": 1, "target_modules": "all-linear"}),
    );
    let capacities: Vec<usize> = attached.gates.iter().map(|gate| gate.capacity()).collect();
    // Six kinds, and two matrices of 6 rows a block.
    assert_eq!(capacities[..6], [8, 6, 6, 8, 8, 8]);
}

#[test]
fn a_folder_holds_what_lives_and_a_module_of_rank_0_too() {
    let (toy, attached, batch) = toy();
    attached.gates[0]
        .keep(&vec![false; attached.gates[0].capacity()])
        .unwrap();
    let mut some = vec![false; attached.gates[2].capacity()];
    (some[1], some[3]) = (true, true);
    attached.gates[2].keep(&some).unwrap();
    let expected = score(&toy, &Selection::one(NAME), &batch);
    let exported = attached.exported().unwrap();
    let shape = |name: &str| -> Vec<usize> {
        let found = exported.tensors.iter().find(|(known, _)| known == name);
        found.unwrap().1.dims().to_vec()
    };
    let site = "model.layers.0.self_attn";
    assert_eq!(shape(&format!("{site}.q_proj.lora_A.weight")), [0, 10]);
    assert_eq!(shape(&format!("{site}.q_proj.lora_B.weight")), [18, 0]);
    assert_eq!(shape(&format!("{site}.v_proj.lora_A.weight")), [2, 10]);
    let ranks = &exported.config.own["rank_pattern"];
    assert_eq!(ranks[&format!("{site}.q_proj")], 0);
    assert_eq!(ranks[&format!("{site}.k_proj")], 2);

    let mut other = Toy::new(DType::F64, Head::Own).unwrap();
    let start = Start::Saved {
        tensors: exported.tensors.iter().cloned().collect(),
        seed: 4,
    };
    let loaded = attach(&mut other, NAME, &exported.config, start).unwrap();
    near(
        score(&other, &Selection::one(NAME), &batch),
        expected,
        1e-14,
    );
    // It says the same of itself again.
    let again = loaded.exported().unwrap();
    assert_eq!(again.config.own, exported.config.own);
    assert!(loaded.controller.is_none());
}

/// A step that updates nothing is not shown to a controller: the round comes after the next one that does.
#[test]
fn a_round_that_is_overdue_is_made_up_for() {
    let (toy, mut attached, batch) = toy();
    let rounds = |attached: &mut Attached, steps: &[u64]| -> Vec<u64> {
        let steps = steps.iter().copied();
        let made = steps.filter(|&index| after(&toy, attached, &batch, index).allocation.is_some());
        made.collect()
    };
    // After an epoch of 20 steps, and five more: step 20 and step 25.
    assert_eq!(rounds(&mut attached, &[19, 21, 22, 24, 26, 27]), [21, 26]);
}

#[test]
fn nothing_is_asked_of_rows_if_nothing_moves_and_keys_exclude_each_other() {
    let held_out = |keys: Value| {
        let mut toy = Toy::new(DType::F32, Head::Own).unwrap();
        let attached = adapted(&mut toy, keys);
        attached
            .controller
            .unwrap()
            .held_out()
            .map(NonZeroUsize::get)
    };
    let all = "all-linear";
    assert_eq!(
        held_out(json!({"r": 3, "target_modules": all, "probe_examples": 7})),
        Some(7)
    );
    for key in ["rounds", "n_a"] {
        assert_eq!(
            held_out(json!({"r": 3, "target_modules": all, key: 0})),
            None
        );
    }
    assert_eq!(
        held_out(json!({"r": 3, "target_modules": all, "score": "sensitivity"})),
        None
    );
    let mut toy = Toy::new(DType::F32, Head::Own).unwrap();
    let keys = json!({"r": 3, "target_modules": all, "k2": 0.5, "k2_steps": 3});
    let config = AdapterConfig::parse(&Alora, keys.as_object().unwrap(), Source::RunFile).unwrap();
    let error = attach(&mut toy, NAME, &config, Start::Seed(3)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`k2` and `k2_steps` say the same thing; give one of them"
    );
}
