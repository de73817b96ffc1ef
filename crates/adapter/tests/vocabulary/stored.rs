//! What PEFT stores beside an adapter's own tensors, and modules that cannot be both adapted and trained whole.

use crate::{Q0, at, attached, config, parse, toy};
use candle_core::Tensor;
use lowrank_adapter::{Start, attach};
use lowrank_conformance::families::Chained;
use serde_json::{Value, json};
use std::collections::BTreeMap;

type Tensors = BTreeMap<String, Tensor>;

/// Attaches what an adapter with these keys exported, changed by `change`; the message if that is refused.
fn reloaded(keys: &Value, change: impl FnOnce(&mut Tensors)) -> Option<String> {
    let saved = attached(&mut toy(), "one", keys.clone());
    let mut tensors: Tensors = saved.exported().unwrap().tensors.into_iter().collect();
    change(&mut tensors);
    let start = Start::Saved { tensors, seed: 3 };
    let loaded = attach(&mut toy(), "one", &config(keys.clone()), start);
    loaded.err().map(|error| error.to_string())
}

#[test]
fn the_stored_weight_of_a_targeted_head_must_be_the_base_s() {
    let keys = json!({"target_modules": [Q0, "lm_head"]});
    let weight = at(&mut toy(), "lm_head", |head| head.base().weight().unwrap());
    let name = "lm_head.base_layer.weight".to_owned();
    let with = |value: Tensor| reloaded(&keys, |tensors| drop(tensors.insert(name.clone(), value)));
    assert_eq!(with(weight.clone()), None);
    assert_eq!(
        with((&weight * 1.5).unwrap()).unwrap(),
        "tensor `lm_head.base_layer.weight` of the adapter differs from this base model's weight: \
         the adapter belongs to another base"
    );
    let rows = weight.dims()[0];
    let shorter = weight.narrow(0, 0, rows - 1).unwrap();
    let message = with(shorter).unwrap();
    assert!(
        message.starts_with("tensor `lm_head.base_layer.weight` has shape"),
        "{message}"
    );
}

#[test]
fn repeated_biases_of_whole_modules_are_read_once() {
    // The query of the first layer has a bias.
    let keys = json!({"target_modules": ["lm_head"], "modules_to_save": [Q0], "bias": "all"});
    let plain = format!("{Q0}.bias");
    let refused = reloaded(&keys, |tensors| {
        let bias = tensors[&plain].clone();
        tensors.insert(format!("{Q0}.modules_to_save.bias"), bias.clone());
        tensors.insert(format!("{Q0}.original_module.bias"), bias);
    });
    assert_eq!(refused, None);
}

#[test]
fn a_module_is_adapted_or_trained_whole() {
    let refused = |keys: Value| {
        let attached = attach(&mut toy(), "one", &config(keys), Start::Seed(3));
        attached.err().map(|error| error.to_string()).unwrap()
    };
    assert_eq!(
        refused(json!({"target_modules": [Q0, "lm_head"], "modules_to_save": ["head"]})),
        "`modules_to_save = [\"head\"]` covers `lm_head`, which `target_modules` targets; \
         a module is either adapted or trained whole"
    );
    assert_eq!(
        refused(json!({"target_modules": [Q0], "modules_to_save": [""]})),
        "`modules_to_save` has an empty name, which would match every module"
    );
    assert_eq!(
        refused(json!({"target_modules": "all-linear", "layers_to_transform": [0]})),
        "`layers_to_transform` needs `target_modules` to be a list of names"
    );
}

#[test]
fn biases_train_for_the_family_s_own_word_only() {
    let keys = json!({"target_modules": [Q0], "bias": "vera_only"});
    assert_eq!(
        parse(&Chained, keys).unwrap_err().to_string(),
        "`bias = \"vera_only\"`, expected \"none\", \"all\" or \"chained_only\""
    );
}
