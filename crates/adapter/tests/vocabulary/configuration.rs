use crate::{config, parse};
use lowrank_adapter::{AdapterConfig, Attach, Attachment, BiasMode, Family, Result, Source};
use lowrank_conformance::families::Chained;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A family whose reference has a key that we carry at one value only.
struct Narrow;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct NarrowConfig {
    lora_alpha: f64,
}

impl Family for Narrow {
    type Config = NarrowConfig;
    const NAME: &'static str = "narrow";

    fn fixed() -> Vec<(&'static str, Value)> {
        vec![("use_magic", json!(false)), ("depth", json!(3))]
    }

    fn attach(&self, _: &NarrowConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        Attachment::per_site(cx, |_, _| unreachable!("never attached"))
    }
}

#[test]
fn a_wrong_key_or_value_is_named() {
    let rows = [
        (
            json!({"alpa": 3.0}),
            "unknown key `alpa`, did you mean `alpha`?",
        ),
        (
            json!({"target_module": ["q_proj"]}),
            "unknown key `target_module`, did you mean `target_modules`?",
        ),
        (json!({"zzzzzzzzzzzz": 1}), "unknown key `zzzzzzzzzzzz`"),
        (json!({"zzzzzzzzzzzz": null}), "unknown key `zzzzzzzzzzzz`"),
        (
            json!({"r": "eight"}),
            "`r = \"eight\"`, expected an integer above 0",
        ),
        (json!({"r": 0}), "`r = 0`, expected an integer above 0"),
        (
            json!({"dropout": 1.5}),
            "`dropout = 1.5`: expected a probability of at least 0 and less than 1",
        ),
        (
            json!({"carried": "hopes"}),
            "`carried = \"hopes\"`, expected `weights` or `activations`",
        ),
        (
            json!({"target_modules": 3}),
            "`target_modules = 3`: expected a list of names, or a regular expression",
        ),
        (
            json!({"layers_to_transform": "all"}),
            "`layers_to_transform = \"all\"`: expected one value, or a list of them",
        ),
        (
            json!({"bias": "some"}),
            "`bias = \"some\"`, expected \"none\", \"all\" or \"<family>_only\"",
        ),
        (
            json!({"modules_to_save": "lm_head"}),
            "`modules_to_save = \"lm_head\"`, expected a list",
        ),
    ];
    for (keys, expected) in rows {
        assert_eq!(parse(&Chained, keys).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_planned_value_is_not_yet_supported() {
    let rows = [
        (
            json!({"use_magic": true}),
            "`use_magic = true` is not yet supported (only false is)",
        ),
        (
            json!({"depth": 4}),
            "`depth = 4` is not yet supported (only 3 is)",
        ),
        (
            json!({"depht": 3}),
            "unknown key `depht`, did you mean `depth`?",
        ),
    ];
    for (keys, expected) in rows {
        assert_eq!(parse(&Narrow, keys).unwrap_err().to_string(), expected);
    }
    let keys = json!({"use_magic": false, "depth": 3, "lora_alpha": 2.5});
    let written = parse(&Narrow, keys).unwrap().to_peft();
    assert_eq!(written["use_magic"], json!(false));
    assert_eq!(written["depth"], json!(3));
    assert_eq!(written["lora_alpha"], json!(2.5));
    assert_eq!(written["peft_type"], json!("NARROW"));
    assert_eq!(written["bias"], json!("none"));
    assert_eq!(written["inference_mode"], json!(true));
}

#[test]
fn an_adapter_folder_may_hold_unused_keys_of_other_versions() {
    let parse = |keys: Value| {
        let keys = keys.as_object().unwrap().clone();
        AdapterConfig::parse(&Narrow, &keys, Source::AdapterFolder)
    };
    let voids = json!({"a_": null, "b_": false, "c_": 0, "d_": "", "e_": [], "f_": {}, "use_magic": null,
                       "lora_alpha": 4.5, "peft_type": "NARROW", "peft_version": "0.1.0"});
    assert_eq!(parse(voids).unwrap().own["lora_alpha"], json!(4.5));
    for (keys, expected) in [
        (
            json!({"lora_alphas": true}),
            "unknown key `lora_alphas`, did you mean `lora_alpha`?",
        ),
        (
            json!({"use_magic": 1}),
            "`use_magic = 1` is not yet supported (only false is)",
        ),
    ] {
        assert_eq!(parse(keys).unwrap_err().to_string(), expected);
    }
}

#[test]
fn an_absent_key_has_its_default_and_bias_its_modes() {
    let plain = config(json!({"alpha": 7.5}));
    assert_eq!(plain.own["alpha"], json!(7.5));
    assert_eq!(plain.own["r"], json!(2));
    assert!(plain.common.target_modules.is_none());
    for (bias, mode) in [
        ("none", BiasMode::None),
        ("all", BiasMode::All),
        ("chained_only", BiasMode::Targeted),
    ] {
        let common = config(json!({"bias": bias})).common;
        assert_eq!(common.bias_mode().unwrap(), mode);
    }
    assert_eq!(plain.common.bias_mode().unwrap(), BiasMode::None);
}
