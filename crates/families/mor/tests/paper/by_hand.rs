//! The layer by hand: its output in three formulations, its gradients, and a router that has made up its mind.

use crate::{ALL, Adapted, Worked, assert_near, keys, large, matrix, numbers, random, saved};
use candle_core::{DType, Tensor};
use lowrank_adapter::Compute;
use lowrank_mor::at_gates;

#[test]
fn two_experts() {
    let example = Worked::new();
    let adapted = example.adapted();
    let y = adapted.output(&example.x);
    let expected = [2.120_977_033_0, 2.775_063_797_2, 4.583_908_132_1];
    assert_near(&numbers(&y), &expected, 1e-10);

    // y = W x + s (B .* S) h with S = OBᵀ diag(g) OA.
    let g = matrix(&[&[0.310_025_518_9, 0.689_974_481_1]]);
    let s = (example.ob.t().unwrap())
        .broadcast_mul(&g)
        .unwrap()
        .matmul(&example.oa)
        .unwrap();
    let by_hand = [
        1.,
        -1.069_923_443_4,
        0.310_025_518_9,
        0.310_025_518_9,
        -0.034_961_721_7,
        1.,
    ];
    assert_near(&numbers(&s), &by_hand, 1e-9);
    let h = example.x.matmul(&example.a.t().unwrap()).unwrap();
    assert_near(&numbers(&h), &[2., 1.5], 1e-15);
    let update = h.matmul(&(&example.b * s).unwrap().t().unwrap()).unwrap();
    let base = example.x.matmul(&example.w.t().unwrap()).unwrap();
    let second = (base + (update * 2.0).unwrap()).unwrap();
    assert_near(&numbers(&second), &expected, 1e-9);

    // What each expert gives alone.
    for (gates, by_hand) in [([1., 0.], [0.25, 1.25, -0.45]), ([0., 1.], [0.7, 0., 1.35])] {
        let scales = (&example.oa, &example.ob);
        let found = at_gates((&example.a, &example.b), scales, &gates, 2.0).unwrap();
        let expert = h.matmul(&found.b.t().unwrap()).unwrap();
        assert_near(&numbers(&expert), &by_hand, 1e-14);
    }

    // y = W x + s Bcat c.
    let wide = matrix(&[
        &[0.2, -0.1, 0.4, -0.2],
        &[0.4, 0.3, 0., 0.],
        &[-0.6, 0.5, 0.6, -0.5],
    ]);
    let c = matrix(&[&[
        0.620_051_037_7,
        0.465_038_278_3,
        0.689_974_481_1,
        -1.034_961_721_7,
    ]]);
    let delta = (c.matmul(&wide.t().unwrap()).unwrap() * 2.0).unwrap();
    let by_hand = [1.120_977_033_0, 0.775_063_797_2, 1.583_908_132_1];
    assert_near(&numbers(&delta), &by_hand, 1e-9);
}

#[test]
fn gradients_of_two_experts() {
    let example = Worked::new();
    let v = matrix(&[&[1., -1., 0.5]]);
    let adapted = example.adapted();
    let loss = (adapted.output(&example.x) * &v)
        .unwrap()
        .sum_all()
        .unwrap();
    assert_near(&numbers(&loss), &[1.637_867_301_9], 1e-10);
    let (dx, grads) = adapted.gradients(&example.x, &v, &ALL);
    let expected: [&[f64]; 5] = [
        &[0.172_956_62, 0.345_913_24, 0.527_969_38, 1.055_938_75],
        &[
            4.,
            -3.209_770_33,
            -1.240_102_08,
            -0.930_076_56,
            -0.069_923_44,
            1.5,
        ],
        &[-0.620_051_04, -0.139_511_48, 1.931_928_55, -0.931_465_55],
        &[
            0.155_012_76,
            -0.775_063_80,
            -0.139_511_48,
            0.482_982_14,
            0.068_997_45,
            -0.931_465_55,
        ],
        &[-1.112_330_42, -2.224_660_84, 1.112_330_42, 2.224_660_84],
    ];
    for (grad, expected) in grads.iter().zip(expected) {
        assert_near(grad, expected, 1e-8);
    }
    assert_near(&dx, &[0.964_039_76, 0.781_845_94], 1e-8);
}

/// Every number of every tensor, and of x.
#[test]
fn gradients_match_central_differences() {
    let ([w, a, b, oa, ob, wg], adapted) = large("differences");
    let (x, v) = (random("x", &[6, 5]), random("v", &[6, 7]));
    let (dx, grads) = adapted.gradients(&x, &v, &ALL);
    let names = ["x"].iter().chain(&ALL);
    let places = [x, a, b, oa, ob, wg];
    for (at, (name, grad)) in names.zip(std::iter::once(&dx).chain(&grads)).enumerate() {
        for (place, grad) in grad.iter().enumerate() {
            let loss = |step: f64| -> f64 {
                let mut moved = places.clone();
                let mut values = numbers(&moved[at]);
                values[place] += step;
                moved[at] = Tensor::from_vec(values, moved[at].shape(), w.device()).unwrap();
                let [x, a, b, oa, ob, wg] = &moved;
                let start = saved(&[a, b, oa, ob, wg]);
                let y = Adapted::new(&w, keys(3, 4.5, 4), start).output(x);
                numbers(&(y * &v).unwrap()).iter().sum()
            };
            let slope = (loss(1e-6) - loss(-1e-6)) / 2e-6;
            let allowed = 1e-6 * slope.abs().max(1.0);
            assert!(
                (slope - grad).abs() <= allowed,
                "{name} at {place}: {grad}, {slope}"
            );
        }
    }
}

#[test]
fn a_router_that_has_made_up_its_mind() {
    let mut example = Worked::new();
    example.wg = (example.wg * 1e4).unwrap();
    let adapted = example.adapted();
    assert_near(
        &numbers(&adapted.output(&example.x)),
        &[2.4, 2.0, 5.7],
        1e-14,
    );
    let v = matrix(&[&[1., -1., 0.5]]);
    let (_, grads) = adapted.gradients(&example.x, &v, &ALL);
    assert_eq!(grads[4], [0.0; 4]);
    assert!(grads.concat().iter().all(|x| x.is_finite()));
}

/// Products on bf16 operands: the router's logits and its softmax stay in f32.
#[test]
fn large_activations_stay_finite_in_bf16() {
    let mut example = Worked::new();
    let single = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    example.wg = (example.wg * 1e4).unwrap();
    example.w = single(&example.w);
    let mut adapted = example.adapted();
    adapted.model.0[0].set_compute(Compute::Bf16);
    let x = single(&matrix(&[&[100., -100.], &[-100., 100.]]));
    let v = single(&random("v", &[2, 3]));
    let (dx, grads) = adapted.gradients(&x, &v, &ALL);
    let y = numbers(&adapted.output(&x));
    assert!(
        y.iter()
            .chain(&dx)
            .chain(grads.iter().flatten())
            .all(|x| x.is_finite())
    );
    // The first expert takes the first token and the second the second: W x + 2 E with E in closed form.
    let expert = |k: usize, x: &[f64]| -> Vec<f64> {
        let x = Tensor::new(x, example.a.device())
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        let h = x.matmul(&example.a.t().unwrap()).unwrap();
        let h = (h * example.oa.get(k).unwrap().unsqueeze(0).unwrap()).unwrap();
        let e = h.matmul(&example.b.t().unwrap()).unwrap();
        let e = (e * example.ob.get(k).unwrap().unsqueeze(0).unwrap()).unwrap();
        let e = (e * 2.0).unwrap();
        let w = example.w.to_dtype(DType::F64).unwrap();
        let y = x.matmul(&w.t().unwrap()).unwrap();
        numbers(&(y + e).unwrap())
    };
    let expected = [expert(0, &[100., -100.]), expert(1, &[-100., 100.])].concat();
    assert_near(&y, &expected, 1e-2);
}
