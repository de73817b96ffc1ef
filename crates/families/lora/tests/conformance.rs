//! LoRA under the laws of every family.

use lowrank_conformance::{ALL, Law, check, declaring};
use lowrank_lora::Lora;
use serde_json::json;

#[test]
fn laws_hold() {
    check(
        &Lora,
        &[
            ("plain", json!({ "r": 4, "lora_alpha": 6 })),
            (
                "rank-stabilised, with dropout",
                json!({ "r": 3, "lora_alpha": 2.5, "use_rslora": true, "lora_dropout": 0.3 }),
            ),
            (
                "patterns and biases",
                json!({
                    "r": 2, "lora_alpha": 3, "bias": "lora_only",
                    "rank_pattern": { "q_proj": 5 }, "alpha_pattern": { ".*proj": 7 },
                }),
            ),
            (
                "gaussian, with every bias",
                json!({ "r": 5, "lora_alpha": 4, "init_lora_weights": "gaussian", "bias": "all" }),
            ),
        ],
        ALL,
    );
}

#[test]
fn laws_hold_away_from_the_base() {
    check(
        &Lora,
        &[(
            "random B",
            json!({ "r": 4, "lora_alpha": 6, "init_lora_weights": false }),
        )],
        &declaring(&[Law::NotAtBase]),
    );
}
