//! What a configuration may not say.

use crate::Layers;
use candle_core::DType;
use lowrank_adapter::{AdapterConfig, Source, Start, attach};
use lowrank_salora::{Salora, SaloraConfig};
use serde_json::{Value, json};

fn refusal(keys: &Value) -> String {
    let mut keys = keys.as_object().unwrap().clone();
    keys.insert("target_modules".into(), "all-linear".into());
    let config = match AdapterConfig::parse(&Salora, &keys, Source::RunFile) {
        Ok(config) => config,
        Err(error) => return error.to_string(),
    };
    let mut model = Layers::random(&[("layers.0.up", 6, 10)], DType::F32);
    attach(&mut model, "default", &config, Start::Seed(1))
        .unwrap_err()
        .to_string()
}

#[test]
fn values_out_of_range() {
    for (key, value, expected) in [
        ("density", json!(0), "a number above 0 and at most 1"),
        ("density", json!(1.5), "a number above 0 and at most 1"),
        ("beta", json!(0), "a number above 0"),
        ("gamma", json!(0), "a number below 0"),
        ("zeta", json!(1), "a number above 1"),
        ("orth_weight", json!(-0.1), "a number of at least 0"),
        ("eta_lambda", json!(-1), "a number of at least 0"),
        ("gate_lr", json!(0), "a number above 0"),
        (
            "t_start",
            json!(1),
            "a number of at least 0 and less than 1",
        ),
        ("t_end", json!(0), "a number above 0 and at most 1"),
        (
            "rank_pattern",
            json!({ "up": -1 }),
            "an integer that is not negative",
        ),
    ] {
        let refused = refusal(&json!({ key: value }));
        assert!(
            refused.starts_with(&format!("`{key} = {value}`")) && refused.ends_with(expected),
            "{refused}"
        );
    }
    for key in ["budget", "orth_reduction", "extract"] {
        let refused = refusal(&json!({ key: "often" }));
        assert!(
            refused.starts_with(&format!("`{key} = \"often\"`")),
            "{refused}"
        );
    }
    assert_eq!(
        refusal(&json!({ "t_start": 0.7 })),
        "`t_start = 0.7` must be less than `t_end`, which is 0.7"
    );
    assert_eq!(
        refusal(&json!({ "rank_pattern": { "up": 7 } })),
        "layers.0.up: r = 7 is larger than the matrix [6, 10] allows; use at most 6"
    );
}

#[test]
fn the_window_of_short_and_long_runs() {
    let window = |keys: Value, total| {
        let config: SaloraConfig = serde_json::from_value(keys).unwrap();
        config.window(total)
    };
    assert_eq!(window(json!({}), 1500), (150, 1050));
    assert_eq!(
        window(json!({ "t_start": 0.0667, "t_end": 0.3333 }), 1500),
        (100, 500)
    );
    // A share above 0 is a step at least, the window has one too, and it ends with the run.
    assert_eq!(window(json!({}), 3), (1, 2));
    assert_eq!(window(json!({}), 2), (1, 2));
    assert_eq!(window(json!({}), 1), (1, 1));
    assert_eq!(window(json!({ "t_start": 0, "t_end": 0.01 }), 12), (0, 1));
    assert_eq!(window(json!({ "t_start": 0, "t_end": 1 }), 12), (0, 12));
}
