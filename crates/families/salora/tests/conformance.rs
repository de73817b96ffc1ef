//! SaLoRA under the laws of every family.

use lowrank_conformance::{ALL, Law, check};
use lowrank_salora::Salora;
use serde_json::json;

/// Gates are learned from the first step on, so that phi has a gradient in every law.
#[test]
fn laws_hold_while_gates_are_learned() {
    check(
        &Salora,
        &[
            (
                "plain",
                json!({ "r": 4, "lora_alpha": 6, "t_start": 0, "t_end": 0.5 }),
            ),
            (
                "dropout, ranks, sum, positive gates",
                json!({
                    "r": 3, "lora_alpha": 2.5, "lora_dropout": 0.3, "t_start": 0, "t_end": 0.75, "budget": "ranks",
                    "orth_reduction": "sum", "orth_weight": 0.02, "density": 0.4, "beta": 1, "eta_lambda": 3e3,
                    "extract": "positive", "bias": "salora_only",
                }),
            ),
            (
                "other sizes, no orthogonality",
                json!({
                    "r": 5, "lora_alpha": 8, "rank_pattern": { "q_proj": 2, "layers.1.mlp.up_proj": 6 }, "t_start": 0,
                    "t_end": 1, "density": 0.25, "orth_weight": 0, "gamma": -0.2, "zeta": 1.3, "bias": "all",
                }),
            ),
        ],
        ALL,
    );
}

/// Before that, phi has no gradient.
#[test]
fn laws_hold_from_open_gates() {
    let laws: Vec<Law> = ALL
        .iter()
        .copied()
        .filter(|law| *law != Law::Gradients)
        .collect();
    check(
        &Salora,
        &[
            ("defaults", json!({ "lora_alpha": 12, "r": 4 })),
            (
                "dropout, a module without ranks",
                json!({
                    "r": 3, "lora_alpha": 4, "lora_dropout": 0.2, "rank_pattern": { "k_proj": 0 }, "t_start": 0.25,
                    "t_end": 0.5,
                }),
            ),
        ],
        &laws,
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
                "rank_pattern": { "q_proj": 0, "up_proj": 3, "model.layers.0.mlp.down_proj": 0 },
            }),
        )],
        ALL,
    );
}
