//! SBoRA under the laws of every family. Its start draws nothing from a run's seed: indices have a seed of their own.

use lowrank_conformance::{Law, check, declaring};
use lowrank_sbora::Sbora;
use serde_json::json;

#[test]
fn laws_hold() {
    check(
        &Sbora,
        &[
            ("FA", json!({ "r": 4, "lora_alpha": 6 })),
            (
                "FA with dropout and biases, the second of two tasks",
                json!({
                    "r": 3, "lora_alpha": 2.5, "lora_dropout": 0.3, "task": 1, "tasks": 2, "index_seed": 7,
                    "bias": "sbora_only",
                }),
            ),
            (
                "FB with patterns",
                json!({
                    "r": 2, "lora_alpha": 3, "variant": "fb",
                    "rank_pattern": { "q_proj": 5 }, "alpha_pattern": { ".*proj": 7 },
                }),
            ),
            (
                "FB with dropout and every bias",
                json!({ "r": 5, "lora_alpha": 4, "variant": "fb", "lora_dropout": 0.2, "bias": "all" }),
            ),
        ],
        &declaring(&[Law::StartIsNotRandom]),
    );
}
