//! Where ranks go when it is known where they belong: a teacher differs from the student in the first of two matrices alone, by
//! a matrix of rank 3. Twenty seeds of students, teachers and points, each trained by the real trainer.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use lowrank::adapter::{AdapterConfig, Attached, Selection, Source, Start, attach};
use lowrank::data::Example;
use lowrank::registry::by_name;
use lowrank::training::{RunFile, Trainable, Trainer, loss};
use lowrank_conformance::planted::Planted;
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;

const SEEDS: u64 = 20;
const TRAIN: Range<u32> = 0..512;
const HELD_OUT: Range<u32> = 512..544;
const TEST: Range<u32> = 544..1056;

/// What became of one student.
struct Outcome {
    /// Ranks of the first and of the second matrix.
    ranks: [usize; 2],
    /// The test loss above the entropy of the teacher's answers, where it was asked for.
    excess: Vec<f64>,
    /// The last allocation.
    allocation: Map<String, Value>,
}

fn examples(points: Range<u32>) -> Vec<Example> {
    let row = |point| {
        let (ids, labels) = Planted::row(point);
        Example {
            ids: ids.to_vec(),
            labels: labels.to_vec(),
            ..Example::default()
        }
    };
    points.map(row).collect()
}

fn student(seed: u64, family: &str, keys: &Value) -> (Planted, Attached) {
    let mut model = Planted::task(seed, TEST.end as usize).unwrap();
    let mut keys = keys.as_object().unwrap().clone();
    keys.insert("target_modules".into(), json!(["first", "second"]));
    let config = AdapterConfig::parse(by_name(family).unwrap(), &keys, Source::RunFile).unwrap();
    let attached = attach(&mut model, "default", &config, Start::Seed(seed)).unwrap();
    (model, attached)
}

/// Trains a student of the family and looks at it after `looks` steps; the last look is at the end.
fn trained(seed: u64, family: &str, keys: &Value, looks: &[u64]) -> Outcome {
    let (model, mut attached) = student(seed, family, keys);
    let steps = *looks.last().unwrap();
    let text = format!(
        r#"
        model.source = "planted"
        data.train = ["points"]
        output.dir = "none"
        [train]
        steps = {steps}
        batch_size = 64
        learning_rate = 1e-2
        max_grad_norm = 0
        seed = {seed}
        "#
    );
    let run = RunFile::parse(&text, Path::new("planted.toml"), &[]).unwrap();
    let (train, held_out, test) = (examples(TRAIN), examples(HELD_OUT), examples(TEST));
    let entropy = model.entropy(TEST).unwrap();
    let mut trainable = Trainable::adapter(&model, &mut attached);
    let mut trainer =
        Trainer::new(&mut trainable, &train, &held_out, &run.data, &run.train).unwrap();
    let (mut excess, mut allocation) = (Vec::new(), Map::new());
    let selection = Selection::one("default");
    for rows in trainer.plan().clone().steps_after(0) {
        let done = trainer.step(&rows).unwrap();
        if let Some(latest) = done.allocation {
            allocation = latest;
        }
        if looks.contains(&rows.step) {
            let batch = NonZeroUsize::new(512).unwrap();
            let found = loss(&model, &selection, &test, batch, &mut || Ok(())).unwrap();
            excess.push(found.loss.unwrap() - entropy);
        }
    }
    let ranks = ["first", "second"].map(|path| rank(&attached, path));
    Outcome {
        ranks,
        excess,
        allocation,
    }
}

/// Ranks of a module as its folder would hold them.
fn rank(attached: &Attached, path: &str) -> usize {
    let exported = attached.exported().unwrap();
    let named = |suffix: &str| {
        let name = format!("{path}.{suffix}");
        exported.tensors.iter().find(|(known, _)| *known == name)
    };
    let (_, a) = named("lora_A.weight").or_else(|| named("lora_A")).unwrap();
    a.dim(0).unwrap()
}

fn all(family: &str, keys: &Value, looks: &[u64]) -> Vec<Outcome> {
    (0..SEEDS)
        .map(|seed| trained(seed, family, keys, looks))
        .collect()
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    (values[middle - 1] + values[middle]) / 2.0
}

/// The median excess of LoRA with two ranks in each matrix, after `steps`.
fn uniform(alpha: f64, steps: u64) -> f64 {
    let outcomes = all("lora", &json!({"r": 2, "lora_alpha": alpha}), &[steps]);
    assert!(outcomes.iter().all(|outcome| outcome.ranks == [2, 2]));
    median(outcomes.iter().map(|outcome| outcome.excess[0]))
}

fn count(outcomes: &[Outcome], holds: impl Fn(&Outcome) -> bool) -> usize {
    outcomes.iter().filter(|outcome| holds(outcome)).count()
}

/// Four ranks: 200 steps, three rounds 100 steps apart, 200 steps after the last 100.
#[test]
fn alora_moves_ranks_to_where_the_teacher_has_them() {
    let keys = json!({
        "r": 2, "lora_alpha": 4, "n_a": 1, "rounds": 3, "k1_steps": 200, "k2_steps": 100, "probe_examples": 32,
    });
    let moved = all("alora", &keys, &[700]);
    let fixed = uniform(4.0, 700);
    let excess = median(moved.iter().map(|outcome| outcome.excess[0]));
    let right = count(&moved, |outcome| outcome.ranks[0] > outcome.ranks[1]);
    let exact = count(&moved, |outcome| outcome.ranks[0] == 3);
    println!(
        "alora: more ranks in the first matrix {right}/20, three {exact}/20; excess {excess:.1e}, uniform {fixed:.1e}"
    );
    assert!(right >= 18, "{right}");
    assert!(excess * 10.0 <= fixed, "{excess} {fixed}");
    // Ranks are moved, not made.
    for outcome in &moved {
        assert_eq!(outcome.allocation["round"], 3);
        assert_eq!(
            outcome.ranks.iter().sum::<usize>(),
            outcome.allocation["budget"]
        );
    }
}

/// From five ranks in each matrix to four in all, by step 500 of 700.
#[test]
fn adalora_keeps_ranks_where_the_teacher_has_them() {
    let keys = json!({
        "init_r": 5, "target_r": 2, "lora_alpha": 10, "tinit": 100, "tfinal": 200, "deltaT": 10, "orth_reg_weight": 0.1,
    });
    let kept = all("adalora", &keys, &[700]);
    let fixed = uniform(4.0, 700);
    let excess = median(kept.iter().map(|outcome| outcome.excess[0]));
    let right = count(&kept, |outcome| outcome.ranks[0] > outcome.ranks[1]);
    let exact = count(&kept, |outcome| outcome.ranks[0] == 3);
    println!(
        "adalora: more ranks in the first matrix {right}/20, three {exact}/20; excess {excess:.1e}, uniform {fixed:.1e}"
    );
    assert!(right >= 18, "{right}");
    assert!(excess * 5.0 <= fixed, "{excess} {fixed}");
    for outcome in &kept {
        assert_eq!(outcome.allocation["budget"], 4);
        assert_eq!(outcome.ranks.iter().sum::<usize>(), 4);
    }
}

/// From four ranks in each matrix to three in all: gates are learned from step 100 to 500.
#[test]
fn salora_keeps_ranks_where_the_teacher_has_them() {
    let keys = json!({
        "r": 4, "lora_alpha": 4, "density": 0.375, "budget": "ranks", "t_start": 100.0 / 1500.0,
        "t_end": 500.0 / 1500.0,
    });
    let kept = all("salora", &keys, &[700, 1500]);
    let fixed = uniform(2.0, 1500);
    let excess = |look: usize| median(kept.iter().map(|outcome| outcome.excess[look]));
    let right = count(&kept, |outcome| outcome.ranks[0] > outcome.ranks[1]);
    let exact = count(&kept, |outcome| outcome.ranks == [3, 0]);
    println!(
        "salora: more ranks in the first matrix {right}/20, (3, 0) {exact}/20; excess {:.1e} after 700, {:.1e} after 1500, \
         uniform {fixed:.1e}",
        excess(0),
        excess(1)
    );
    assert!(right >= 18, "{right}");
    assert!(
        excess(1) < 1e-3 && excess(1) * 10.0 <= fixed,
        "{} {fixed}",
        excess(1)
    );
    for outcome in &kept {
        assert_eq!(outcome.ranks.iter().sum::<usize>(), 3);
        // The density that was reached when ranks were chosen, against the one asked for.
        let density = outcome.allocation["density"].as_f64().unwrap();
        assert!((density - 0.375).abs() <= 0.03, "{density}");
    }
}

/// Without rounds ALoRA is LoRA, and so is SaLoRA while its gates are open and its penalties off: the same bits after steps of AdamW.
#[test]
fn without_their_decisions_gated_families_are_lora() {
    let bits = |family: &str, keys: Value| -> Vec<u32> {
        let (model, mut attached) = student(3, family, &keys);
        let mut trained = attached.trained();
        trained.retain(|param| param.name().contains(".lora_"));
        for (i, param) in trained.iter().enumerate() {
            // Families may start differently; here they start alike.
            let count = param.elem_count();
            let numbers: Vec<f32> = (0..count)
                .map(|at| ((at + 31 * i) as f32).sin() / 3.0)
                .collect();
            let value =
                candle_core::Tensor::from_vec(numbers, param.shape(), &candle_core::Device::Cpu);
            param.set(&value.unwrap()).unwrap();
        }
        let text = r#"
            model.source = "planted"
            data.train = ["points"]
            output.dir = "none"
            train = { steps = 5, batch_size = 64, learning_rate = 1e-2 }
        "#;
        let run = RunFile::parse(text, Path::new("planted.toml"), &[]).unwrap();
        let (train, held_out) = (examples(TRAIN), examples(HELD_OUT));
        let mut trainable = Trainable::adapter(&model, &mut attached);
        let mut trainer =
            Trainer::new(&mut trainable, &train, &held_out, &run.data, &run.train).unwrap();
        for rows in trainer.plan().clone().steps_after(0) {
            trainer.step(&rows).unwrap();
        }
        let numbers = |tensor: candle_core::Tensor| -> Vec<f32> {
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let all = trained.iter().flat_map(|param| numbers(param.value()));
        all.map(f32::to_bits).collect()
    };
    let lora = bits("lora", json!({"r": 3, "lora_alpha": 4.5}));
    assert_eq!(
        bits("alora", json!({"r": 3, "lora_alpha": 4.5, "rounds": 0})),
        lora
    );
    // The window in which gates are learned begins after the last step.
    let shut = json!({"r": 3, "lora_alpha": 4.5, "orth_weight": 0, "t_start": 0.99, "t_end": 1});
    assert_eq!(bits("salora", shut), lora);
}
