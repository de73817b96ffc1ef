//! What folders hold: slices and patterns, before and after they are fixed, and what goes on from them.

use super::{keys, numbers, param, random, randomise, step, turn, two_layers};
use candle_core::Tensor;
use lowrank_adalora::Adalora;
use lowrank_adapter::{Attached, Exported, Kind, Start, attach};
use lowrank_conformance::layers::{Layers, gap};
use lowrank_ops::Grads;
use serde_json::{Value, json};

/// Gradients that are the values themselves: a rank's score grows with its numbers.
fn as_values(attached: &Attached) -> Grads {
    let mut grads = Grads::default();
    for param in attached.trained() {
        grads.insert(&param, param.value());
    }
    grads
}

/// Scales the E of one rank, so that its score is large or small.
fn worth(attached: &Attached, site: &str, factors: &[f64]) {
    let e = param(attached, &format!("{site}.lora_E"));
    let factors = Tensor::new(factors, e.device()).unwrap();
    let factors = factors.reshape(e.shape()).unwrap();
    e.set(&factors).unwrap();
}

/// Two layers of four ranks, two steps into a run of five that allocates in these two, where `up` has lost all and `down` two.
fn pruned() -> (Layers, Attached) {
    const TOTAL: u64 = 5;
    let mut model = two_layers();
    let more = keys(json!({
        "init_r": 4, "target_r": 1, "lora_alpha": 6, "tfinal": 3, "beta1": 0.5, "beta2": 0.5,
    }));
    let mut attached = model.adapt(&Adalora, &more, Start::Seed(3)).unwrap();
    randomise(&attached);
    for param in attached.trained() {
        let small = (param.value() * 0.1).unwrap();
        param.set(&small).unwrap();
    }
    attached.controller.as_mut().unwrap().begin(TOTAL).unwrap();
    worth(&attached, "up", &[0.1, 0.2, -0.1, 0.3]);
    worth(&attached, "down", &[0.2, 5.0, -0.1, -7.0]);
    let grads = as_values(&attached);
    let outcome = turn(&mut attached, step(1, TOTAL), &grads);
    let expected = json!({ "budget": 2, "ranks": { "up": 0, "down": 2 } });
    assert_eq!(outcome.allocation.map(Value::Object), Some(expected));
    worth(&attached, "up", &[0.1, 0.2, -0.1, 0.3]);
    worth(&attached, "down", &[0.2, 5.0, -0.1, -7.0]);
    // The same choice for good.
    let outcome = turn(&mut attached, step(2, TOTAL), &grads);
    assert!(outcome.allocation.is_none());
    (model, attached)
}

fn dims(exported: &Exported) -> Vec<(String, Vec<usize>)> {
    let named = exported.tensors.iter();
    named
        .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
        .collect()
}

fn loaded(exported: &Exported) -> (Layers, Attached) {
    let mut model = two_layers();
    let start = Start::Saved {
        tensors: exported.tensors.iter().cloned().collect(),
        seed: 9,
    };
    let attached = attach(&mut model, "default", &exported.config, start).unwrap();
    (model, attached)
}

/// T-A6, second part: the ranks that are gone are sliced away, the factor stays that of all.
#[test]
fn a_folder_holds_the_ranks_that_are_left() {
    let (model, attached) = pruned();
    let exported = attached.exported().unwrap();
    let expected: Vec<(String, Vec<usize>)> = [
        ("up.lora_A", vec![0, 5]),
        ("up.lora_B", vec![7, 0]),
        ("up.lora_E", vec![0, 1]),
        ("down.lora_A", vec![2, 8]),
        ("down.lora_B", vec![6, 2]),
        ("down.lora_E", vec![2, 1]),
    ]
    .map(|(name, dims)| (name.to_owned(), dims))
    .into();
    assert_eq!(dims(&exported), expected);
    assert_eq!(
        exported.config.own["rank_pattern"],
        json!({
            "down.lora_E": [false, true, false, true],
            "up.lora_E": [false, false, false, false],
        })
    );
    assert_eq!(exported.config.own["total_step"], json!(5));
    // What is derived from the pattern counts; PEFT's file has no key of ours.
    assert!(!exported.config.to_peft().contains_key("orth_squared"));

    let (again, reattached) = loaded(&exported);
    for (layer, n_in) in [(0, 5), (1, 8)] {
        let x = random("x", (3, n_in));
        let (before, after) = (model.output(layer, &x), again.output(layer, &x));
        assert!(gap(&before.unwrap(), &after.unwrap()).unwrap() < 1e-14);
        let (before, after) = (model.merged(layer), again.merged(layer));
        assert!(gap(&before.unwrap(), &after.unwrap()).unwrap() < 1e-14);
    }
    let adapter = again.0[1].adapter("default").unwrap();
    let found = adapter.low_rank().unwrap().unwrap();
    assert_eq!(found.a.dims(), [2, 8]);
    assert!((found.scale - 6.0 / 4.00001).abs() < 1e-12);
    let second = reattached.exported().unwrap();
    assert_eq!(second.config.to_peft(), exported.config.to_peft());
    assert_eq!(dims(&second), dims(&exported));
    // A module without ranks trains nothing.
    assert_eq!(reattached.trained().len(), 3);
    let kinds = reattached
        .params
        .iter()
        .filter(|p| p.name().starts_with("up."));
    assert!(kinds.into_iter().all(|p| p.info().kind != Kind::Trained));
}

/// Before the last phase a rank that was set to 0 may have come back.
#[test]
fn ranks_that_have_come_back_are_kept() {
    let mut model = two_layers();
    let more = keys(json!({ "init_r": 4, "target_r": 1, "lora_alpha": 6 }));
    let mut attached = model.adapt(&Adalora, &more, Start::Seed(3)).unwrap();
    randomise(&attached);
    attached.controller.as_mut().unwrap().begin(10).unwrap();
    let grads = as_values(&attached);
    let outcome = turn(&mut attached, step(1, 10), &grads);
    assert_eq!(outcome.allocation.unwrap()["budget"], json!(6));
    let e = param(&attached, "down.lora_E");
    let before = numbers(&e.value());
    assert!(before.contains(&0.0));
    e.set(&(e.value() + 0.25).unwrap()).unwrap();
    let exported = attached.exported().unwrap();
    let pattern = &exported.config.own["rank_pattern"]["down.lora_E"];
    assert_eq!(pattern, &json!([true, true, true, true]));
    let (again, _) = loaded(&exported);
    let x = random("x", (3, 8));
    let (before, after) = (model.output(1, &x), again.output(1, &x));
    assert!(gap(&before.unwrap(), &after.unwrap()).unwrap() < 1e-14);
}

/// Ranks that are gone stay gone, and the pattern still speaks of all of init_r.
#[test]
fn a_run_goes_on_from_what_is_left() {
    let (_, attached) = pruned();
    let mut exported = attached.exported().unwrap();
    exported.config.own.insert("target_r".into(), json!(0));
    exported.config.own.insert("tfinal".into(), json!(0));
    let (_, mut attached) = loaded(&exported);
    attached.controller.as_mut().unwrap().begin(1).unwrap();
    let grads = as_values(&attached);
    let outcome = turn(&mut attached, step(1, 1), &grads);
    let expected = json!({ "budget": 0, "ranks": { "up": 0, "down": 0 } });
    assert_eq!(outcome.allocation.map(Value::Object), Some(expected));

    exported.config.own.insert("target_r".into(), json!(1));
    let (_, mut attached) = loaded(&exported);
    // Two modules of one rank on average: both of `down` may stay.
    attached.controller.as_mut().unwrap().begin(1).unwrap();
    let outcome = turn(&mut attached, step(1, 1), &grads);
    assert!(outcome.allocation.is_none());
    assert_eq!(
        attached.exported().unwrap().config.own["rank_pattern"]["down.lora_E"],
        json!([false, true, false, true])
    );
}
