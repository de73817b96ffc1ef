//! AdaLoRA under the laws of every family. A run has 12 steps.

use lowrank_adalora::Adalora;
use lowrank_conformance::{ALL, check};
use serde_json::json;

#[test]
fn laws_hold() {
    check(
        &Adalora,
        &[
            (
                "a schedule",
                json!({ "init_r": 4, "target_r": 2, "lora_alpha": 6, "tinit": 2, "tfinal": 3, "deltaT": 2 }),
            ),
            (
                "dropout and biases",
                json!({
                    "init_r": 3, "target_r": 1, "lora_alpha": 2.5, "lora_dropout": 0.3, "bias": "lora_only",
                    "beta1": 0.6, "beta2": 0.9, "tinit": 1,
                }),
            ),
            (
                "the paper's penalty, nothing to take",
                json!({
                    "init_r": 2, "target_r": 5, "orth_squared": true, "orth_reg_weight": 0.03, "bias": "all",
                    "modules_to_save": ["lm_head"],
                }),
            ),
            (
                "without a penalty, ranks gone from the start",
                json!({
                    "init_r": 3, "target_r": 1, "orth_reg_weight": 0, "lora_alpha": -1, "total_step": 40,
                    "rank_pattern": {
                        "model.layers.0.self_attn.q_proj.lora_E": [true, false, true],
                        "model.layers.1.mlp.up_proj.lora_E": [false, true, false],
                    },
                }),
            ),
        ],
        ALL,
    );
}
