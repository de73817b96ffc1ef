use crate::{Q0, at, attached, config, toy};
use candle_core::{DType, Tensor};
use lowrank_adapter::target::Targets;
use lowrank_adapter::{Start, attach};
use lowrank_conformance::toy::{Head, Toy};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn refusal(name: &str, keys: Value) -> String {
    let mut toy = toy();
    let error = attach(&mut toy, name, &config(keys), Start::Seed(1)).unwrap_err();
    assert!(at(&mut toy, Q0, |linear| linear.adapter(name).is_none()));
    error.to_string()
}

#[test]
fn what_matches_nothing_is_answered_with_what_there_is() {
    assert_eq!(
        refusal("one", json!({"target_modules": ["qproj"]})),
        "target_modules = [\"qproj\"] matches no module of the model; it has modules named \
         down_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    );
    assert!(
        refusal("one", json!({"target_modules": "q_proj"}))
            .starts_with("target_modules = \"q_proj\" matches no module")
    );
    let keys = json!({"target_modules": ["q_proj"], "modules_to_save": ["score"]});
    assert_eq!(
        refusal("one", keys),
        "modules_to_save = [\"score\"] matches no module of the model; it has modules named down_proj, \
         embed_tokens, input_layernorm, k_proj, lm_head, norm, o_proj, post_attention_layernorm, q_proj, up_proj, \
         v_proj"
    );
    assert_eq!(
        refusal("one", json!({"target_modules": []})),
        "`target_modules` is an empty list"
    );
    assert_eq!(
        refusal("one", json!({})),
        "`target_modules` is absent and PEFT has no default for model type `toy`; give a list of names or \
         \"all-linear\""
    );
    assert_eq!(
        refusal(
            "one",
            json!({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]})
        ),
        "target_modules = [\"q_proj\"] names 3 modules, and `exclude_modules`, `modules_to_save` and \
         `layers_to_transform` leave none of them"
    );
}

#[test]
fn an_embedding_is_no_target_yet() {
    assert_eq!(
        refusal("one", json!({"target_modules": ["q_proj", "embed_tokens"]})),
        "`target_modules = [\"q_proj\", \"embed_tokens\"] (it matches the embedding `model.embed_tokens`)` is not yet \
         supported"
    );
}

#[test]
fn names_that_files_could_not_tell_apart_are_refused() {
    let keys = json!({"target_modules": ["q_proj"]});
    for name in ["", "a.b", "a/b"] {
        assert_eq!(
            refusal(name, keys.clone()),
            format!("adapter `{name}`: a name must not be empty or contain `.` or `/`")
        );
    }
    for name in ["lora", "lora_", "ia3", "o", "vera_lambda"] {
        assert_eq!(
            refusal(name, keys.clone()),
            format!("adapter `{name}`: this name is part of a tensor prefix; choose another")
        );
    }
    let mut toy = toy();
    attached(&mut toy, "eval", keys.clone());
    let again = attach(&mut toy, "eval", &config(keys), Start::Seed(1)).unwrap_err();
    assert_eq!(
        again.to_string(),
        "adapter `eval`: an adapter of that name is attached already"
    );
}

#[test]
fn all_linear_is_every_linear_layer_but_the_head() {
    for word in ["all-linear", "ALL-Linear"] {
        let attached = attached(&mut toy(), "one", json!({"target_modules": word}));
        assert_eq!(attached.sites.len(), 3 * 6);
        assert_eq!(attached.sites[0], Q0);
        assert_eq!(attached.sites[17], "model.layers.2.mlp.down_proj");
        let names = [
            "down_proj",
            "k_proj",
            "o_proj",
            "q_proj",
            "up_proj",
            "v_proj",
        ];
        let list = Targets::List(names.map(str::to_owned).to_vec());
        assert_eq!(attached.config.common.target_modules, Some(list));
    }
    let head = attached(&mut toy(), "one", json!({"target_modules": ["lm_head"]}));
    assert_eq!(head.sites, ["lm_head"]);
}

#[test]
fn tensors_are_named_counted_and_exported_in_order_of_declaration() {
    let mut toy = Toy::new(DType::F32, Head::Own).unwrap();
    let keys = json!({"r": 3, "target_modules": ["v_proj"], "layers_to_transform": [0, 2],
                      "modules_to_save": ["model.norm"]});
    let attached = attached_in(&mut toy, keys);
    let names: Vec<&str> = attached.params.iter().map(|param| param.name()).collect();
    let expected = [
        "model.layers.0.self_attn.v_proj.lora_A.weight",
        "model.layers.0.self_attn.v_proj.lora_B.weight",
        "model.layers.2.self_attn.v_proj.lora_A.weight",
        "model.layers.2.self_attn.v_proj.lora_B.weight",
        "model.layers.2.self_attn.v_proj.chained_gain",
        "model.norm.weight",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        attached.trainable_parameters(),
        2 * (3 * 10 + 6 * 3) + 1 + 10
    );
    let exported = attached.exported().unwrap();
    let exported: Vec<&str> = exported
        .tensors
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(exported, expected);
}

fn attached_in(toy: &mut Toy, keys: Value) -> lowrank_adapter::Attached {
    attach(toy, "one", &config(keys), Start::Seed(1)).unwrap()
}

#[test]
fn a_saved_adapter_must_fit() {
    let keys = json!({"r": 3, "target_modules": [Q0]});
    let mut toy = toy();
    let saved = attached(&mut toy, "one", keys.clone()).exported().unwrap();
    let saved: BTreeMap<String, Tensor> = saved.tensors.into_iter().collect();
    let mut load = |name: &str, saved: BTreeMap<String, Tensor>| {
        attach(
            &mut toy,
            name,
            &config(keys.clone()),
            Start::Saved {
                tensors: saved,
                seed: 3,
            },
        )
    };
    let (a, b) = (format!("{Q0}.lora_A.weight"), format!("{Q0}.lora_B.weight"));
    let loaded = load("two", saved.clone()).unwrap();
    let again: BTreeMap<String, Tensor> = loaded.exported().unwrap().tensors.into_iter().collect();
    assert_eq!(
        again[&a].to_vec2::<f64>().unwrap(),
        saved[&a].to_vec2::<f64>().unwrap()
    );
    let mut missing = saved.clone();
    missing.remove(&b);
    assert_eq!(
        load("three", missing).unwrap_err().to_string(),
        format!("{Q0}: tensor `{b}` is missing from the adapter")
    );
    let mut misshapen = saved.clone();
    misshapen.insert(b.clone(), saved[&a].clone());
    assert_eq!(
        load("three", misshapen).unwrap_err().to_string(),
        format!(
            "{Q0}: tensor `{b}` has shape [3, 10], expected [18, 3] from the configuration and the base model"
        )
    );
    let mut extra = saved.clone();
    extra.insert("lm_head.lora_A.weight".into(), saved[&a].clone());
    assert_eq!(
        load("three", extra).unwrap_err().to_string(),
        format!(
            "tensor `lm_head.lora_A.weight` of the adapter is used by no module (its configuration targets 1 modules \
             by [\"{Q0}\"])"
        )
    );
}
