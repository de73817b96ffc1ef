//! The families that prove the traits keep every law.

use lowrank_conformance::families::{Chained, Gated, InputDependent};
use lowrank_conformance::{ALL, Law, check, declaring};
use serde_json::json;

#[test]
fn chained_by_weights() {
    let configurations = [
        ("plain", json!({"r": 3, "alpha": 4.5})),
        (
            "with dropout",
            json!({"r": 2, "alpha": 5, "dropout": 0.25, "target_modules": ["q_proj", "down_proj"]}),
        ),
        (
            "with biases and a norm",
            json!({"r": 2, "alpha": -3.0, "bias": "all", "modules_to_save": ["model.norm", "lm_head"],
                   "target_modules": ["q_proj", "o_proj"]}),
        ),
    ];
    check(&Chained, &configurations, ALL);
}

#[test]
fn chained_by_activations() {
    let configurations = [
        (
            "plain",
            json!({"r": 3, "alpha": 4.5, "carried": "activations"}),
        ),
        (
            "with dropout",
            json!({"r": 2, "alpha": 5.0, "carried": "activations", "dropout": 0.3,
                   "target_modules": r".*\.(v_proj|up_proj)"}),
        ),
    ];
    check(
        &Chained,
        &configurations,
        &declaring(&[Law::MergeIsRefused]),
    );
}

#[test]
fn gated() {
    let configurations = [
        ("plain", json!({"r": 3, "alpha": 4.5})),
        (
            "with dropout",
            json!({"r": 4, "alpha": 6.0, "dropout": 0.2, "mask_at": [2, 4, 9], "mask_count": 5,
                   "revive_at": [3, 7, 11], "target_modules": ["k_proj", "up_proj"]}),
        ),
        (
            "masked to the ground",
            json!({"r": 2, "alpha": 3.0, "mask_at": [2], "mask_count": 6, "revive_at": [8],
                   "target_modules": ["v_proj"]}),
        ),
    ];
    check(&Gated, &configurations, ALL);
}

#[test]
fn input_dependent() {
    let configurations = [
        ("plain", json!({"r": 2, "alpha": 3.0})),
        (
            "with dropout",
            json!({"r": 3, "alpha": 4.0, "balance": 2.0, "dropout": 0.25,
                   "target_modules": ["q_proj", "k_proj", "down_proj"]}),
        ),
    ];
    check(
        &InputDependent,
        &configurations,
        &declaring(&[Law::MergeIsRefused]),
    );
}
