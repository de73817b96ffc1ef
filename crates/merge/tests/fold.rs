//! Folding: equal to the adapted model, the base untouched, and what cannot be folded says so.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::{DType, Tensor};
use lowrank_adapter::{
    AdapterConfig, AnyFamily, Ask, Attached, Batch, Model, Param, Part, Pass, Selection, Source,
    Start, attach, run, train_all,
};
use lowrank_conformance::families::{Chained, InputDependent};
use lowrank_conformance::toy::{self, Head, Toy};
use lowrank_frozen::FrozenLinear;
use lowrank_merge::fold;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn adapt(model: &mut Toy, family: &'static dyn AnyFamily, name: &str, keys: &Value) -> Attached {
    let config = AdapterConfig::parse(family, keys.as_object().unwrap(), Source::RunFile).unwrap();
    let attached = attach(model, name, &config, Start::Seed(3)).unwrap();
    attached.params.iter().for_each(randomise);
    attached
}

fn randomise(param: &Param) {
    let mut stream = Key::new(9, Purpose::Test).site(param.name()).stream();
    let values: Vec<f64> = (0..param.elem_count())
        .map(|_| 0.3 * stream.normal())
        .collect();
    let value = Tensor::from_vec(values, param.shape(), &candle_core::Device::Cpu).unwrap();
    param.set(&value.to_dtype(param.dtype()).unwrap()).unwrap();
}

fn logits(model: &Toy, selection: &Selection) -> Vec<f64> {
    let batch: Batch = toy::batch(4, &[&[7], &[5]]).unwrap();
    let all = (0..batch.tokens().ids.len() as u32)
        .filter(|&at| batch.tokens().segments[at as usize] != 0);
    let mut pass = Pass::evaluation(selection.clone());
    let logits = run(model, &batch, &Ask::Logits(all.collect()), None, &mut pass).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensors_of(model: &mut Toy) -> BTreeMap<String, Vec<f64>> {
    let folded = fold(model, &Selection::none(), None).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    folded
        .tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), values(tensor)))
        .collect()
}

/// A toy whose weights are those of the folded model.
fn rebuilt(head: Head, tensors: Vec<(String, Tensor)>) -> Toy {
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let mut model = Toy::new(DType::F64, head).unwrap();
    model.parts(&mut |part| match part {
        Part::Linear(linear) | Part::Head(linear) => {
            let Some(weight) = tensors.get(&format!("{}.weight", linear.path())) else {
                return;
            };
            let bias = tensors.get(&format!("{}.bias", linear.path())).cloned();
            let base = FrozenLinear::new(weight.clone(), bias).unwrap();
            *linear = lowrank_adapter::Linear::new(linear.path().to_owned(), base);
        }
        Part::Embedding(embedding) => {
            let table = tensors[embedding.weight.name()].clone();
            *embedding = lowrank_adapter::Embedding::new(embedding.path().to_owned(), table);
        }
        Part::Norm(norm) => {
            let weight = tensors[norm.weight.name()].clone();
            norm.weight = lowrank_adapter::Weight::new(norm.weight.name().to_owned(), weight);
        }
    });
    model
}

fn assert_near(a: &[f64], b: &[f64]) {
    let worst = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        // `f64::max` would forget a NaN.
        .fold(0.0, |worst: f64, next| {
            if next > worst || next.is_nan() {
                next
            } else {
                worst
            }
        });
    assert!(a.len() == b.len() && worst < 1e-11, "{worst:e}");
}

#[test]
fn a_folded_model_computes_what_the_adapted_one_does() {
    let mut model = Toy::new(DType::F64, Head::Own).unwrap();
    let before = tensors_of(&mut model);
    let keys = json!({ "r": 3, "alpha": 4.5, "carried": "weights", "target_modules": "all-linear", "bias": "all" });
    adapt(&mut model, &Chained, "one", &keys);
    let selection = Selection::one("one");
    let folded = fold(&mut model, &selection, None).unwrap();
    assert!(folded.exact && !folded.untied);
    let adapted = logits(&model, &selection);
    let base = logits(&model, &Selection::none());
    let moved = adapted
        .iter()
        .zip(&base)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(moved > 1e-2, "the adapter changes nothing: {moved:e}");
    assert_near(
        &logits(&rebuilt(Head::Own, folded.tensors), &Selection::none()),
        &adapted,
    );
    assert_eq!(tensors_of(&mut model), before);
}

#[test]
fn weighted_adapters_add_up() {
    let mut model = Toy::new(DType::F64, Head::Own).unwrap();
    let keys = |rank| json!({ "r": rank, "alpha": 4.5, "carried": "weights", "target_modules": "all-linear" });
    adapt(&mut model, &Chained, "one", &keys(3));
    adapt(&mut model, &Chained, "two", &keys(2));
    let selection = Selection::weighted([("one".into(), 0.5), ("two".into(), -1.25)]);
    let folded = fold(&mut model, &selection, None).unwrap();
    let merged = rebuilt(Head::Own, folded.tensors);
    assert_near(
        &logits(&merged, &Selection::none()),
        &logits(&model, &selection),
    );
}

#[test]
fn an_update_that_depends_on_the_input_is_refused() {
    let mut model = Toy::new(DType::F64, Head::Own).unwrap();
    adapt(
        &mut model,
        &InputDependent,
        "one",
        &json!({ "r": 2, "target_modules": "all-linear" }),
    );
    let error = fold(&mut model, &Selection::one("one"), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(
            "the adapter's update depends on the input, so no merged weight equals it: a router weighs experts; keep the adapter apart"
        ),
        "{error}"
    );
}

#[test]
fn a_tied_head_stays_tied_only_while_both_are_one() {
    let names = |folded: &lowrank_merge::Folded| -> Vec<String> {
        folded
            .tensors
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    };
    let (mut embedding, mut head) = (String::new(), String::new());
    Toy::new(DType::F64, Head::Tied)
        .unwrap()
        .parts(&mut |part| match part {
            Part::Embedding(part) => embedding = part.path().to_owned(),
            Part::Head(part) => head = part.path().to_owned(),
            Part::Linear(_) | Part::Norm(_) => {}
        });
    let stored = format!("{head}.weight");

    // Neither changes.
    let mut model = Toy::new(DType::F64, Head::Tied).unwrap();
    let folded = fold(&mut model, &Selection::none(), None).unwrap();
    assert!(!folded.untied && !names(&folded).contains(&stored));

    // One of them trains whole.
    for saved in [&embedding, &head] {
        let mut model = Toy::new(DType::F64, Head::Tied).unwrap();
        let keys = json!({
            "r": 3, "carried": "weights", "target_modules": "all-linear", "modules_to_save": [saved],
        });
        adapt(&mut model, &Chained, "one", &keys);
        let selection = Selection::one("one");
        let folded = fold(&mut model, &selection, None).unwrap();
        assert!(folded.untied && names(&folded).contains(&stored), "{saved}");
        let merged = rebuilt(Head::Own, folded.tensors);
        assert_near(
            &logits(&merged, &Selection::none()),
            &logits(&model, &selection),
        );
    }

    // Both train as the one weight that they are.
    let mut model = Toy::new(DType::F64, Head::Tied).unwrap();
    let params = train_all(&mut model, "full").unwrap();
    params.iter().for_each(randomise);
    let folded = fold(&mut model, &Selection::one("full"), None).unwrap();
    assert!(!folded.untied && !names(&folded).contains(&stored));
}

#[test]
fn weights_are_cast_once_and_must_stay_finite() {
    let mut model = Toy::new(DType::F64, Head::Own).unwrap();
    let folded = fold(&mut model, &Selection::none(), Some(DType::BF16)).unwrap();
    assert!(
        folded
            .tensors
            .iter()
            .all(|(_, tensor)| tensor.dtype() == DType::BF16)
    );
    let attached = adapt(
        &mut model,
        &Chained,
        "one",
        &json!({ "r": 3, "carried": "weights", "target_modules": "all-linear" }),
    );
    let param = &attached.params[0];
    param
        .set(&(param.value() * f64::INFINITY).unwrap())
        .unwrap();
    let error = fold(&mut model, &Selection::one("one"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not finite"), "{error}");
}
