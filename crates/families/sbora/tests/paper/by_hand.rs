//! Both variants by hand, against dense one-hot factors, and against differences.

use crate::{Adapted, BOTH, INDICES, Worked, assert_near, keys, large, numbers, random, saved};
use candle_core::{DType, Tensor};
use lowrank_adapter::Start;
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use lowrank_sbora::Variant;

fn delta(adapted: &Adapted, w: &Tensor) -> Vec<f64> {
    numbers(&(adapted.merged() - w).unwrap())
}

#[test]
fn columns_by_hand() {
    let example = Worked::new();
    let adapted = example.adapted(Variant::Fa);
    let y = [-1.75, 5., 2.25, 5.5, -5., 2.];
    assert_eq!(numbers(&adapted.output(&example.x)), y);
    let update = [0.25, 0., 0.5, 0., 0.5, 0., -1., 0., 2., 0., 0., 0.];
    assert_eq!(delta(&adapted, &example.w), update);
    let (gx, gb) = adapted.gradients(&example.x, &example.g);
    assert_eq!(gb, [0.25, 0.5, 0.5, -0.5, -2.5, 1.]);
    assert_eq!(gx, [8.75, -3., 4.5, -1., -3.375, 1., 1.25, -1.]);
    let base = example.g.matmul(&example.w).unwrap();
    assert_eq!(numbers(&base), [5., -3., 3., -1., -1.5, 1., 1., -1.]);
}

#[test]
fn rows_by_hand() {
    let example = Worked::new();
    let adapted = example.adapted(Variant::Fb);
    let y = [-2., 3.5, 0.25, 4.5, -2., 4.5];
    assert_eq!(numbers(&adapted.output(&example.x)), y);
    let update = [0.25, 0., 0.5, -0.5, 0., 0., 0., 0., 0.5, -0.5, 0., 1.];
    assert_eq!(delta(&adapted, &example.w), update);
    let (gx, ga) = adapted.gradients(&example.x, &example.g);
    assert_eq!(ga, [1., 2.5, -2.5, -0.5, 0.5, 0.75, 0.25, 0.75]);
    assert_eq!(gx, [6.25, -4., 3.5, 0.5, -1.875, 1.5, 1.25, -2.25]);
}

/// Values and gradients, of inputs of several ranks, beside LoRA with the one-hot factor written out.
#[test]
fn dense_one_hot_factors_are_the_same() {
    for variant in BOTH {
        let (w, _, adapted) = large(variant, DType::F64);
        let found = adapted.low_rank();
        assert!(found.exact);
        let base = FrozenLinear::new(w, None).unwrap();
        for lead in [&[6][..], &[2, 3], &[2, 1, 4]] {
            let shape = |last: usize| [lead, &[last]].concat();
            let (x, g) = (random("x", &shape(11)), random("g", &shape(7)));
            let leaves = [&x, &found.a, &found.b].map(|tensor| ops::leaf(tensor).unwrap());
            let [x_leaf, a, b] = &leaves;
            let y = base.forward_low_rank(x_leaf, a, b, found.scale).unwrap();
            assert_near(&numbers(&adapted.output(&x)), &numbers(&y), 1e-12);
            let loss = ops::sum_all(&(y * &g).unwrap()).unwrap();
            let (_, dense) = ops::backward(&loss, &[], &[x_leaf, a, b]).unwrap();
            let dense: Vec<_> = dense
                .iter()
                .map(|grad| numbers(grad.as_ref().unwrap()))
                .collect();
            let (gx, factor) = adapted.gradients(&x, &g);
            assert_near(&gx, &dense[0], 1e-12);
            let trained = match variant {
                Variant::Fa => &dense[2],
                Variant::Fb => &dense[1],
            };
            assert_near(&factor, trained, 1e-12);
        }
    }
}

/// Every number of the factor and of x: that of x would show a wrong gradient of what is added to.
#[test]
fn gradients_match_central_differences() {
    for variant in BOTH {
        let (_, factor, adapted) = large(variant, DType::F64);
        let (x, g) = (random("x", &[4, 11]), random("g", &[4, 7]));
        let (gx, gf) = adapted.gradients(&x, &g);
        let moved = |tensor: &Tensor, place: usize, by: f64| {
            let mut values = numbers(tensor);
            values[place] += by;
            Tensor::from_vec(values, tensor.shape(), tensor.device()).unwrap()
        };
        let loss = |x: &Tensor| -> f64 {
            let terms = (adapted.output(x) * &g).unwrap();
            numbers(&terms).iter().sum()
        };
        let near = |slope: f64, grad: f64| {
            assert!(
                (slope - grad).abs() <= 1e-6 * slope.abs().max(1.0),
                "{grad}, {slope}"
            );
        };
        for (place, grad) in gx.iter().enumerate() {
            let [up, down] = [1e-6, -1e-6].map(|by| loss(&moved(&x, place, by)));
            near((up - down) / 2e-6, *grad);
        }
        for (place, grad) in gf.iter().enumerate() {
            let [up, down] = [1e-6, -1e-6].map(|by| {
                adapted.factor().set(&moved(&factor, place, by)).unwrap();
                loss(&x)
            });
            near((up - down) / 2e-6, *grad);
        }
        adapted.factor().set(&factor).unwrap();
    }
}

#[test]
fn the_start_is_the_base_bit_for_bit() {
    let (w, x, g) = (
        random("W", &[7, 11]),
        random("x", &[4, 11]),
        random("g", &[4, 7]),
    );
    for variant in BOTH {
        let adapted = Adapted::new(&w, keys(variant, 3, 4.5), Start::Seed(2));
        let base = FrozenLinear::new(w.clone(), None).unwrap();
        let y = base.forward(&x).unwrap();
        assert_eq!(numbers(&adapted.output(&x)), numbers(&y));
        let factor = numbers(&adapted.factor().value());
        assert!(factor.iter().all(|x| *x == 0.0), "{factor:?}");
        let (_, grad) = adapted.gradients(&x, &g);
        assert!(grad.iter().all(|x| *x != 0.0), "{grad:?}");
    }
}

/// Indices and the factor in another order are the same function; either alone is another.
#[test]
fn the_order_of_indices_does_not_matter() {
    let example = Worked::new();
    for variant in BOTH {
        let adapted = example.adapted(variant);
        let order = Tensor::new(&[1u32, 0], example.x.device()).unwrap();
        let factor = adapted.factor().value();
        let turned = factor.index_select(&order, variant.axis()).unwrap();
        let with = |indices: &[u32], factor: &Tensor| {
            let start = saved(variant, indices, factor);
            let adapted = Adapted::new(&example.w, keys(variant, 2, 1.0), start);
            (
                numbers(&adapted.output(&example.x)),
                numbers(&adapted.merged()),
            )
        };
        let own = with(&INDICES, &factor);
        assert_eq!(with(&[0, 2], &turned), own);
        assert_ne!(with(&[0, 2], &factor).0, own.0);
        assert_ne!(with(&INDICES, &turned).0, own.0);
    }
}
