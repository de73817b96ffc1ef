//! MoR under the laws of every family.

use lowrank_conformance::{ALL, Law, check, declaring};
use lowrank_mor::Mor;
use serde_json::json;

#[test]
fn laws_hold_with_a_router() {
    check(
        &Mor,
        &[
            (
                "plain",
                json!({ "r": 4, "lora_alpha": 6, "num_experts": 3 }),
            ),
            (
                "dropout, balance and biases",
                json!({
                    "r": 3, "lora_alpha": 2.5, "lora_dropout": 0.3, "num_experts": 2, "init_noise": 0.1,
                    "balance_weight": 0.4, "bias": "mor_only",
                }),
            ),
            (
                "patterns and balance",
                json!({
                    "r": 2, "lora_alpha": 3, "num_experts": 5, "balance_weight": 0.7,
                    "rank_pattern": { "q_proj": 5 }, "alpha_pattern": { ".*proj": 7 },
                }),
            ),
        ],
        &declaring(&[Law::MergeIsRefused]),
    );
}

#[test]
fn laws_hold_without_a_router() {
    check(
        &Mor,
        &[
            (
                "mean",
                json!({ "r": 4, "lora_alpha": 6, "num_experts": 3, "router": "mean", "lora_dropout": 0.2 }),
            ),
            (
                "one expert",
                json!({ "r": 3, "lora_alpha": 2.5, "num_experts": 1, "rank_pattern": { "up_proj": 5 } }),
            ),
        ],
        ALL,
    );
}
