//! Training the factor is training some columns or rows of the weight alone.

use crate::{Adapted, BOTH, INDICES, Worked, assert_near, keys, numbers, random, saved};
use candle_core::{DType, Tensor};
use lowrank_sbora::Variant;

/// One step down the gradient of the sum of g * y, or of half the squares of y - t.
fn descend(adapted: &Adapted, grad: &[f64], rate: f64) {
    let factor = adapted.factor();
    let grad = Tensor::from_vec(grad.to_vec(), factor.shape(), factor.device()).unwrap();
    let step = (grad * rate).unwrap().to_dtype(factor.dtype()).unwrap();
    factor
        .set(&(factor.snapshot().unwrap() - step).unwrap())
        .unwrap();
}

#[test]
fn one_step_by_hand() {
    let example = Worked::new();
    let zeros = example.b.zeros_like().unwrap();
    let start = saved(Variant::Fa, &INDICES, &zeros);
    let adapted = Adapted::new(&example.w, keys(Variant::Fa, 2, 1.0), start);
    let (_, grad) = adapted.gradients(&example.x, &example.g);
    descend(&adapted, &grad, 0.1);
    let delta = numbers(&(adapted.merged() - &example.w).unwrap());
    let by_hand = [
        -0.025, 0., -0.0125, 0., 0.025, 0., -0.025, 0., -0.05, 0., 0.125, 0.,
    ];
    assert_near(&delta, &by_hand, 1e-15);
}

/// Ten steps of a regression, beside full training at the rate times s² with every other column (or row) held.
#[test]
fn ten_steps_are_full_training_of_the_region() {
    for variant in BOTH {
        let (w, rate, scale) = (random("W", &[7, 11]), 0.02, 1.5);
        let (indices, shape) = match variant {
            Variant::Fa => ([8u32, 1, 6], [7, 3]),
            Variant::Fb => ([5, 0, 2], [3, 11]),
        };
        let zeros = random("factor", &shape).zeros_like().unwrap();
        let start = saved(variant, &indices, &zeros);
        let adapted = Adapted::new(&w, keys(variant, 3, 4.5), start);
        let mut full = w.clone();
        let mask: Vec<f64> = (0..77)
            .map(|at| {
                let place = [at / 11, at % 11][variant.axis()] as u32;
                f64::from(u8::from(indices.contains(&place)))
            })
            .collect();
        let mask = Tensor::from_vec(mask, (7, 11), w.device()).unwrap();
        for step in 0..10 {
            let x = random(&format!("x {step}"), &[6, 11]);
            let t = random(&format!("t {step}"), &[6, 7]);
            let slope = (adapted.output(&x) - &t).unwrap();
            let (_, grad) = adapted.gradients(&x, &slope);
            descend(&adapted, &grad, rate);

            let slope = (x.matmul(&full.t().unwrap()).unwrap() - &t).unwrap();
            let grad = slope.t().unwrap().matmul(&x).unwrap();
            let grad = (grad * &mask).unwrap();
            full = (full - (grad * (rate * scale * scale)).unwrap()).unwrap();
        }
        assert_near(&numbers(&adapted.merged()), &numbers(&full), 1e-12);
        let moved = numbers(&(full - w).unwrap());
        assert!(moved.iter().any(|x| x.abs() > 0.01));
    }
}

/// After training, in f32, what no index names has the bytes that it had, and indices are where they were.
#[test]
fn training_leaves_the_rest_byte_for_byte() {
    for variant in BOTH {
        let w = random("W", &[7, 11]).to_dtype(DType::F32).unwrap();
        let start = lowrank_adapter::Start::Seed(4);
        let adapted = Adapted::new(&w, keys(variant, 3, 4.5), start);
        let indices = adapted.indices();
        for step in 0..5 {
            let of = |what: &str, columns| {
                let drawn = random(&format!("{what} {step}"), &[6, columns]);
                drawn.to_dtype(DType::F32).unwrap()
            };
            let (_, grad) = adapted.gradients(&of("x", 11), &of("g", 7));
            descend(&adapted, &grad, 0.1);
        }
        assert_eq!(adapted.indices(), indices);
        let pairs = numbers(&w).into_iter().zip(numbers(&adapted.merged()));
        for (at, (before, after)) in pairs.enumerate() {
            let place = [at / 11, at % 11][variant.axis()] as u32;
            let same = before.to_bits() == after.to_bits();
            assert_eq!(same, !indices.contains(&place), "{variant:?} at {at}");
        }
    }
}
