//! ResLoRA under the laws of every family.

use lowrank_conformance::{ALL, Law, check, declaring};
use lowrank_reslora::Reslora;
use serde_json::{Value, json};

/// A configuration without dropout, but for what `keys` says.
fn with(mut keys: Value) -> Value {
    if keys.get("lora_dropout").is_none() {
        keys["lora_dropout"] = json!(0.0);
    }
    keys
}

#[test]
fn laws_hold_with_block_shortcuts() {
    check(
        &Reslora,
        &[
            (
                "four earlier blocks",
                with(json!({ "r": 4, "lora_alpha": 6 })),
            ),
            (
                "one earlier block, with dropout and biases",
                json!({ "r": 3, "lora_alpha": 2.5, "pre_num": 1, "lora_dropout": 0.3, "bias": "reslora_only" }),
            ),
            (
                "all earlier blocks, with dropout; how others merge does not matter",
                json!({ "r": 2, "lora_alpha": 3, "pre_num": -1, "merge": "bi", "lora_dropout": 0.2 }),
            ),
            (
                "none",
                with(json!({ "r": 3, "lora_alpha": 4, "pre_num": 0 })),
            ),
        ],
        ALL,
    );
}

#[test]
fn laws_hold_with_shortcuts_that_are_not_merged() {
    check(
        &Reslora,
        &[
            (
                "inputs",
                with(json!({ "r": 4, "lora_alpha": 6, "res_type": "is" })),
            ),
            (
                "inputs with dropout",
                json!({ "r": 3, "lora_alpha": 2.5, "res_type": "is", "lora_dropout": 0.3 }),
            ),
            (
                "middles, one earlier block",
                with(json!({ "r": 3, "lora_alpha": 2.5, "res_type": "ms", "pre_num": 1 })),
            ),
            (
                "middles, all earlier blocks, with dropout and every bias",
                json!({ "r": 2, "lora_alpha": 3, "res_type": "ms", "pre_num": -1, "lora_dropout": 0.3, "bias": "all" }),
            ),
        ],
        &declaring(&[Law::MergeIsRefused]),
    );
}

#[test]
fn laws_hold_with_approximate_merges() {
    check(
        &Reslora,
        &[
            (
                "inputs by inputs",
                with(json!({ "r": 4, "lora_alpha": 6, "res_type": "is", "merge": "bi" })),
            ),
            (
                "inputs by inputs, with dropout",
                json!({ "r": 3, "lora_alpha": 2.5, "res_type": "is", "merge": "bi", "lora_dropout": 0.3 }),
            ),
            (
                "inputs by weights",
                with(json!({ "r": 3, "lora_alpha": 2.5, "res_type": "is", "merge": "bw" })),
            ),
            (
                "middles by inputs",
                with(json!({ "r": 4, "lora_alpha": 6, "res_type": "ms", "merge": "bi" })),
            ),
            (
                "middles by inputs, one earlier block, with dropout",
                json!({ "r": 3, "lora_alpha": 2.5, "res_type": "ms", "pre_num": 1, "merge": "bi", "lora_dropout": 0.3 }),
            ),
            (
                "middles by weights",
                with(json!({ "r": 2, "lora_alpha": 3, "res_type": "ms", "merge": "bw" })),
            ),
        ],
        &declaring(&[Law::MergeIsApproximate]),
    );
}

/// Without earlier blocks there is nothing to approximate, and nothing to measure.
#[test]
fn laws_hold_with_middles_that_nothing_reaches() {
    check(
        &Reslora,
        &[(
            "no earlier block",
            with(json!({ "r": 3, "lora_alpha": 4, "res_type": "ms", "pre_num": 0, "merge": "bi" })),
        )],
        ALL,
    );
}
