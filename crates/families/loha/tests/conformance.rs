//! LoHa under the laws of every family.

use lowrank_conformance::{ALL, Law, check, declaring};
use lowrank_loha::Loha;
use serde_json::json;

#[test]
fn laws_hold() {
    check(
        &Loha,
        &[
            // Some modules compute with the update formed, the larger ones as a product of rank 4.
            ("plain", json!({ "r": 2, "alpha": 6 })),
            (
                "patterns",
                json!({
                    "r": 2, "alpha": 3, "rank_pattern": { "q_proj": 5, "v_proj": 3 }, "alpha_pattern": { ".*proj": 7 },
                }),
            ),
            (
                "dropped rows",
                json!({ "r": 3, "alpha": 2.5, "rank_dropout": 0.4 }),
            ),
            (
                "a head of its own",
                json!({ "r": 2, "alpha": 5, "modules_to_save": ["lm_head"], "rank_dropout": 0.3 }),
            ),
        ],
        ALL,
    );
}

/// A module that is left out has gradients of 0, where the law asks for others.
#[test]
fn laws_hold_with_modules_left_out() {
    let laws: Vec<Law> = ALL
        .iter()
        .copied()
        .filter(|law| *law != Law::Gradients)
        .collect();
    let keys = json!({ "r": 2, "alpha": 5, "rank_dropout": 0.2, "module_dropout": 0.4 });
    check(&Loha, &[("modules left out", keys)], &laws);
}

#[test]
fn laws_hold_away_from_the_base() {
    let keys = json!({ "r": 2, "alpha": 5, "init_weights": false });
    check(&Loha, &[("random", keys)], &declaring(&[Law::NotAtBase]));
}
