//! LoKr under the laws of every family.

use lowrank_conformance::{ALL, Law, check, declaring};
use lowrank_lokr::Lokr;
use serde_json::json;

#[test]
fn laws_hold() {
    check(
        &Lokr,
        &[
            ("both matrices whole", json!({ "r": 4, "alpha": 6 })),
            (
                // 10 is 1 x 10 and 14 is 1 x 14: large enough for factors of rank 2.
                "products",
                json!({ "r": 2, "alpha": 3, "decompose_factor": 1 }),
            ),
            (
                "decomposed on both sides",
                json!({ "r": 2, "alpha": 5, "decompose_both": true, "decompose_factor": 6 }),
            ),
            (
                "patterns, as LyCORIS starts",
                json!({
                    "r": 2, "alpha": 3, "rank_pattern": { "q_proj": 5, "v_proj": 3 }, "alpha_pattern": { ".*proj": 7 },
                    "init_weights": "lycoris", "decompose_factor": 2,
                }),
            ),
            (
                "dropped rows",
                json!({
                    "r": 3, "alpha": 2.5, "rank_dropout": 0.4, "rank_dropout_scale": true,
                }),
            ),
            (
                "dropped rows as they are",
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
    check(&Lokr, &[("modules left out", keys)], &laws);
}

#[test]
fn laws_hold_away_from_the_base() {
    let keys = json!({ "r": 2, "alpha": 5, "init_weights": false });
    check(&Lokr, &[("random", keys)], &declaring(&[Law::NotAtBase]));
}
