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
            (
                "orthogonal",
                json!({ "r": 4, "lora_alpha": 6, "init_lora_weights": "orthogonal", "lora_dropout": 0.2 }),
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

/// The gradient holds the norm constant; `paper/dora.rs` says what it is.
#[test]
fn laws_hold_with_dora() {
    check(
        &Lora,
        &[
            (
                "DoRA",
                json!({ "r": 4, "lora_alpha": 6, "use_dora": true, "bias": "lora_only" }),
            ),
            (
                "DoRA with dropout",
                json!({ "r": 3, "lora_alpha": 2.5, "use_dora": true, "use_rslora": true, "lora_dropout": 0.3 }),
            ),
            (
                "DoRA from a randomised PiSSA",
                json!({ "r": 3, "lora_alpha": 4, "use_dora": true, "init_lora_weights": "pissa_niter_1" }),
            ),
        ],
        &declaring(&[Law::GradientsHoldConstants]),
    );
}

#[test]
fn laws_hold_from_residual_starts() {
    check(
        &Lora,
        &[
            (
                "PiSSA",
                json!({ "r": 3, "lora_alpha": 4, "init_lora_weights": "pissa", "lora_dropout": 0.3 }),
            ),
            (
                "OLoRA with patterns",
                json!({
                    "r": 4, "lora_alpha": 6, "init_lora_weights": "olora", "bias": "all",
                    "rank_pattern": { "q_proj": 2 }, "alpha_pattern": { "up_proj": 5 },
                }),
            ),
        ],
        &declaring(&[Law::StartIsNotRandom]),
    );
    check(
        &Lora,
        &[(
            "randomised PiSSA",
            json!({ "r": 3, "lora_alpha": 4, "init_lora_weights": "pissa_niter_1" }),
        )],
        ALL,
    );
}
