//! What a micro-batch holds until its backward pass.

use crate::{attached, toy};
use lowrank_adapter::{Footprint, Pass, Selection, footprint};
use lowrank_conformance::toy::batch;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::json;

/// Bytes of a hidden state of the toy: ten numbers of f64.
const HIDDEN: usize = 10 * 8;

fn measure(rows: &[&[usize]], layer: usize) -> Footprint {
    let mut toy = toy();
    let keys = json!({"r": 2, "target_modules": format!(r".*\.{layer}\.self_attn\.q_proj")});
    drop(attached(&mut toy, "first", keys));
    let mut pass = Pass::training_pass(
        Selection::one("first"),
        Key::new(4, Purpose::Dropout).step(1),
    );
    footprint(&toy, &batch(6, rows).unwrap(), &mut pass).unwrap()
}

#[test]
fn graphs_are_held_from_the_first_block_that_trains() {
    let few = measure(&[&[5], &[3]], 1);
    // Two rows of five places, padding included.
    assert_eq!(few.inputs[0], 10 * HIDDEN);
    assert_eq!(few.inputs[1], 10 * HIDDEN);
    // The toy has no head that keeps none.
    assert!(few.logits, "{few:?}");
    // What the adapter leaves to later layers: A x, of two numbers.
    assert_eq!(few.inputs[2], 10 * HIDDEN + 10 * 2 * 8);
    let [below, trained, above] = few.graphs[..] else {
        panic!("{few:?}");
    };
    assert_eq!(below, 0);
    // Nothing trains above: input, norms, sums, and more, which grow with the tokens but for some small vectors.
    assert!(above > 10 * 5 * HIDDEN, "{few:?}");
    let many = measure(&[&[5], &[3], &[4], &[2]], 1);
    assert!(
        (2 * above).abs_diff(many.graphs[2]) < above / 50,
        "{few:?} {many:?}"
    );
    // A and B, [2, 10] and [18, 2], do not grow either.
    let constant = 2 * trained - many.graphs[1];
    let parameters = 8 * (20 + 36);
    assert!(
        (parameters..2 * parameters).contains(&constant),
        "{constant}"
    );
    assert!(measure(&[&[5]], 2).graphs[..2] == [0, 0]);
}
