//! The method under the laws of every family.

use lowrank_conformance::{ALL, check};
use lowrank_reslora::Reslora;
use serde_json::json;

/// CHANGE: the configurations that matter. A method that breaks a law on purpose says so: `declaring(&[Law::NotAtBase])` in
/// the place of `ALL`.
#[test]
fn laws_hold() {
    check(
        &Reslora,
        &[
            ("plain", json!({ "r": 4, "lora_alpha": 6 })),
            (
                "with dropout and biases",
                json!({ "r": 3, "lora_alpha": 2.5, "lora_dropout": 0.3, "bias": "reslora_only" }),
            ),
        ],
        ALL,
    );
}
