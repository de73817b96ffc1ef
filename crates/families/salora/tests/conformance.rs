//! SaLoRA under the laws of every family.

use lowrank_conformance::{ALL, Law, check};
use lowrank_salora::Salora;
use serde_json::json;

/// All laws but some.
fn without(left_out: &[Law]) -> Vec<Law> {
    let laws = ALL.iter().filter(|law| !left_out.contains(law));
    laws.copied().collect()
}

/// Gates are drawn from the first step on, and hardly ever cut to 0 or 1, where phi would have a gradient of 0.
#[test]
fn laws_hold_while_gates_are_learned() {
    let soft = |mut keys: serde_json::Value| {
        for (key, value) in [
            ("beta", 2.0),
            ("gamma", -0.01),
            ("zeta", 1.01),
            ("t_start", 0.0),
        ] {
            keys[key] = json!(value);
        }
        keys
    };
    check(
        &Salora,
        &[
            (
                "plain",
                soft(json!({ "r": 4, "lora_alpha": 6, "t_end": 0.5 })),
            ),
            (
                "other sizes, no orthogonality",
                soft(json!({
                    "r": 5, "lora_alpha": 8, "rank_pattern": { "q_proj": 2, "layers.1.mlp.up_proj": 6 },
                    "density": 0.25, "orth_weight": 0, "t_end": 1, "bias": "all",
                })),
            ),
            (
                "dropout, ranks, sum",
                soft(json!({
                    "r": 3, "lora_alpha": 2.5, "lora_dropout": 0.3, "budget": "ranks", "orth_reduction": "sum",
                    "orth_weight": 0.02, "t_end": 0.75,
                })),
            ),
        ],
        ALL,
    );
}

/// The gradient of phi is 0 where a gate is 1: always before the share `t_start`, and often afterwards.
#[test]
fn laws_hold_with_gates_at_their_ends() {
    check(
        &Salora,
        &[
            ("defaults", json!({ "lora_alpha": 12, "r": 4 })),
            (
                "dropout, positive gates, a multiplier that rises at once",
                json!({
                    "r": 3, "lora_alpha": 4, "lora_dropout": 0.2, "t_start": 0, "t_end": 0.75, "beta": 1, "density": 0.4,
                    "gate_lr": 0.5, "eta_lambda": 5e4, "extract": "positive", "bias": "salora_only",
                }),
            ),
        ],
        &without(&[Law::Gradients]),
    );
}

#[test]
fn laws_hold_after_extraction() {
    check(
        &Salora,
        &[(
            "sizes of their own",
            json!({
                "r": 4, "lora_alpha": 6, "extracted": true, "lora_dropout": 0.2,
                "rank_pattern": { "q_proj": 2, "up_proj": 3 },
            }),
        )],
        ALL,
    );
}

/// A module of rank 0 is in the file and changes nothing.
#[test]
fn laws_hold_with_modules_of_rank_zero() {
    let laws = without(&[Law::Gradients, Law::DeltaEqualsForwardMinusBase]);
    let ranks = json!({ "k_proj": 0, "model.layers.0.mlp.down_proj": 0, "up_proj": 2 });
    check(
        &Salora,
        &[
            (
                "after extraction",
                json!({ "r": 4, "lora_alpha": 6, "extracted": true, "rank_pattern": ranks }),
            ),
            (
                "before",
                json!({ "r": 4, "lora_alpha": 6, "t_start": 0.25, "t_end": 0.5, "rank_pattern": ranks }),
            ),
        ],
        &laws,
    );
}
