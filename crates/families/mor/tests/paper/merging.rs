//! Merges and exports: exact without a router, refused with one, and the approximation at fixed gates.

use crate::{Adapted, Worked, assert_near, keys, numbers, random, saved};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Merge, Pass, Selection};
use lowrank_frozen::FrozenLinear;
use lowrank_mor::at_gates;
use serde_json::json;

fn merge(adapted: &Adapted) -> Merge {
    let mut pass = Pass::evaluation(Selection::one("default"));
    adapted.layer().merge(&mut pass).unwrap()
}

#[test]
fn gates_that_do_not_depend_on_the_input_merge_and_export() {
    let single = |what: &str, shape: &[usize]| random(what, shape).to_dtype(DType::F32).unwrap();
    for (experts, router) in [(1, "softmax"), (1, "mean"), (4, "mean")] {
        let w = single("W", &[7, 5]);
        let tensors = [
            single("A", &[3, 5]),
            single("B", &[7, 3]),
            single("OA", &[experts, 3]),
            single("OB", &[experts, 7]),
        ];
        let [a, b, oa, ob] = &tensors;
        let mut keys = keys(3, 4.5, experts);
        keys["router"] = json!(router);
        let adapted = Adapted::new(&w, keys, saved(&[a, b, oa, ob]));
        let x = single("x", &[6, 5]);
        let y = numbers(&adapted.output(&x));

        let Merge::Exact(merged) = merge(&adapted) else {
            panic!("{experts} experts, {router}")
        };
        let layer = FrozenLinear::new(merged.weight, None).unwrap();
        assert_near(&numbers(&layer.forward(&x).unwrap()), &y, 1e-5);

        let found = adapted.layer().adapter("default").unwrap().low_rank();
        let found = found.unwrap().unwrap();
        assert!(found.exact && found.a.dims() == [3, 5]);
        let base = FrozenLinear::new(w.clone(), None).unwrap();
        let exported = base.forward_low_rank(&x, &found.a, &found.b, found.scale);
        assert_near(&numbers(&exported.unwrap()), &y, 1e-5);

        // W + (s/N) sum_i diag(lb_i) B diag(la_i) A, by its definition.
        let mut weight = w;
        for i in 0..experts {
            let (la, lb) = (oa.get(i).unwrap(), ob.get(i).unwrap());
            let right = a.broadcast_mul(&la.unsqueeze(1).unwrap()).unwrap();
            let left = b.broadcast_mul(&lb.unsqueeze(1).unwrap()).unwrap();
            let one = (left.matmul(&right).unwrap() * (1.5 / experts as f64)).unwrap();
            weight = (weight + one).unwrap();
        }
        let by_hand = x.matmul(&weight.t().unwrap()).unwrap();
        assert_near(&numbers(&by_hand), &y, 1e-5);
    }
}

#[test]
fn a_router_has_no_merge_and_no_export() {
    let adapted = Worked::new().adapted();
    assert!(matches!(merge(&adapted), Merge::InputDependent));
    let adapter = adapted.layer().adapter("default").unwrap();
    assert!(adapter.low_rank().unwrap().is_none());
}

/// What the mean of the gates of `inputs` gives instead of the layer, as the largest difference of outputs.
fn error_at_mean_gates(example: &Worked, inputs: &[Tensor], gates: &[f64]) -> f64 {
    let adapted = example.adapted();
    let scales = (&example.oa, &example.ob);
    let found = at_gates((&example.a, &example.b), scales, gates, 2.0).unwrap();
    let base = FrozenLinear::new(example.w.clone(), None).unwrap();
    let error = |x: &Tensor| {
        let near = base.forward_low_rank(x, &found.a, &found.b, found.scale);
        let (near, y) = (numbers(&near.unwrap()), numbers(&adapted.output(x)));
        let gaps = near.iter().zip(y).map(|(near, y)| (near - y).abs());
        gaps.fold(0f64, f64::max)
    };
    inputs.iter().map(error).fold(0f64, f64::max)
}

#[test]
fn fixed_gates_are_an_approximation_unless_experts_are_equal() {
    let mut example = Worked::new();
    let inputs = [example.x.clone(), example.x.neg().unwrap()];
    // The gates of x and of -x: a softmax of (-0.1, 0.7) and of (0.1, -0.7).
    let first = 1.0 / (1.0 + 0.8f64.exp());
    let gates = [(first + (1.0 - first)) / 2.0; 2];
    assert!(error_at_mean_gates(&example, &inputs, &gates) > 1e-3);
    let row = |tensor: &Tensor| {
        let row = tensor.narrow(0, 1, 1).unwrap();
        Tensor::cat(&[&row, &row], 0).unwrap()
    };
    (example.oa, example.ob) = (row(&example.oa), row(&example.ob));
    assert!(error_at_mean_gates(&example, &inputs, &gates) < 1e-14);
}
