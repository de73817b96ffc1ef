//! ALoRA under the laws of every family.

use lowrank_alora::Alora;
use lowrank_conformance::{ALL, check};
use serde_json::json;

#[test]
fn laws_hold() {
    check(
        &Alora,
        &[
            (
                "ablation",
                json!({
                    "r": 3, "lora_alpha": 4.5, "n_a": 5, "rounds": 3, "k1_steps": 2, "k2_steps": 3, "probe_examples": 3,
                }),
            ),
            (
                "sensitivity with dropout and biases",
                json!({
                    "r": 2, "lora_alpha": 5, "lora_dropout": 0.3, "bias": "alora_only", "n_a": 4, "rounds": 2,
                    "k1_steps": 4, "k2_steps": 4, "score": "sensitivity",
                }),
            ),
            (
                "other ranks from the start",
                json!({
                    "r": 3, "lora_alpha": 2.5, "rounds": 2, "k1_steps": 3, "k2_steps": 2,
                    "rank_pattern": {"q_proj": 5, "v_proj": 1, "layers.1.mlp.up_proj": 4},
                }),
            ),
        ],
        ALL,
    );
}
