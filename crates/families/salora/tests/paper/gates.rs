//! The hard-concrete distribution: T3, T4, T5, and what T11 says of its extremes.

use crate::{LOUIZOS, WARM, assert_near, numbers, vector};
use candle_core::{DType, Tensor, Var};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{self as ops};
use lowrank_salora::{HardConcrete, uniform};

/// Gates and their derivatives in phi.
fn sampled(gates: HardConcrete, phi: &[f64], u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let phi = Var::from_tensor(&vector(phi)).unwrap();
    let g = gates.sample(phi.as_tensor(), u).unwrap();
    let sum = ops::sum_all(&g).unwrap();
    let (_, slopes) = ops::backward(&sum, &[], &[&phi]).unwrap();
    let slope = slopes[0].as_ref().unwrap();
    (numbers(&g), numbers(slope))
}

fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// P(g = 1) = sigma(phi - beta log((1 - gamma) / (zeta - 1))).
fn whole(gates: HardConcrete, phi: f64) -> f64 {
    sigma(phi - gates.beta * ((1.0 - gates.gamma) / (gates.zeta - 1.0)).ln())
}

/// E[g] as an integral of P(g > t), by Simpson's rule with 1,000 intervals.
fn mean(gates: HardConcrete, phi: f64) -> f64 {
    let above = |i: i32| {
        let t = f64::from(i) / 1000.0;
        sigma(phi - gates.beta * ((t - gates.gamma) / (gates.zeta - t)).ln())
    };
    let weight = |i: i32| match i {
        0 | 1000 => 1.0,
        i if i % 2 == 1 => 4.0,
        _ => 2.0,
    };
    let sum: f64 = (0..=1000).map(|i| weight(i) * above(i)).sum();
    sum / 3000.0
}

/// The phi for a wanted P(g != 0).
fn phi_of(gates: HardConcrete, open: f64) -> f64 {
    (open / (1.0 - open)).ln() + gates.beta * (-gates.gamma / gates.zeta).ln()
}

#[test]
fn t3_samples_and_slopes() {
    let (g, slopes) = sampled(
        LOUIZOS,
        &[0.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        &[0.1, 0.3, 0.5, 0.9, 0.1, 0.5],
    );
    assert_near(
        &g,
        &[0.0, 0.16291426, 0.5, 1.0, 0.07083032, 0.88108937],
        6e-9,
    );
    assert_near(
        &slopes,
        &[0.0, 0.30796651, 0.45, 0.0, 0.21976673, 0.26846361],
        6e-9,
    );
    // s before it is stretched and cut.
    let s = |phi: f64, u: f64| sigma(((u / (1.0 - u)).ln() + phi) / LOUIZOS.beta);
    let s = [
        s(0.0, 0.1),
        s(0.0, 0.3),
        s(0.0, 0.9),
        s(1.0, 0.1),
        s(1.0, 0.5),
    ];
    let expected = [0.03571429, 0.21909522, 0.96428571, 0.14235860, 0.81757448];
    assert_near(&s, &expected, 6e-9);
}

/// (gates, phi, P(g != 0), P(g = 1), E[g], test-time gate)
const TABLE: [(HardConcrete, [f64; 5]); 7] = [
    (LOUIZOS, [-3.0, 0.19759355, 0.00996564, 0.06041898, 0.0]),
    (
        LOUIZOS,
        [-1.0, 0.64533522, 0.06922878, 0.29294582, 0.22272971],
    ),
    (LOUIZOS, [0.0, 0.83182218, 0.16817782, 0.5, 0.5]),
    (
        LOUIZOS,
        [1.0, 0.93077122, 0.35466478, 0.70705418, 0.77727029],
    ),
    (LOUIZOS, [2.5, 0.98367498, 0.71123777, 0.90588127, 1.0]),
    (WARM, [0.0, 0.91666667, 0.08333333, 0.5, 0.5]),
    (WARM, [1.0, 0.96763869, 0.19815031, 0.68480341, 0.77727029]),
];

#[test]
fn t4_probabilities() {
    for (gates, [phi, open, one, expected, settled]) in TABLE {
        let by_tensor = numbers(&gates.open(&vector(&[phi])).unwrap());
        assert_near(&by_tensor, &[open], 6e-9);
        let got = [
            gates.open_at(phi),
            whole(gates, phi),
            mean(gates, phi),
            gates.settled(phi),
        ];
        assert_near(&got, &[open, one, expected, settled], 1e-8);
    }
}

#[test]
fn t4_frequencies() {
    const DRAWS: usize = 2_000_000;
    for (i, (gates, [phi, open, one, expected, _])) in (0..).zip(TABLE) {
        let u = uniform(Key::new(i, Purpose::Test).site("frequencies"), DRAWS);
        assert!(u.iter().all(|&u| u > 0.0 && u < 1.0));
        let phis = Tensor::full(phi, DRAWS, &candle_core::Device::Cpu).unwrap();
        let g = numbers(&gates.sample(&phis, &u).unwrap());
        let share =
            |holds: fn(f64) -> bool| g.iter().filter(|&&g| holds(g)).count() as f64 / DRAWS as f64;
        let average = g.iter().sum::<f64>() / DRAWS as f64;
        let got = [share(|g| g != 0.0), share(|g| g == 1.0), average];
        assert_near(&got, &[open, one, expected], 1.5e-3);
        let square = g.iter().map(|g| (g - average).powi(2)).sum::<f64>();
        let deviation = (square / DRAWS as f64).sqrt();
        if gates == LOUIZOS && phi.abs() <= 1.0 {
            let known = if phi == 0.0 { 0.384731 } else { 0.350048 };
            assert_near(&[deviation], &[known], 1e-3);
        }
    }
}

#[test]
fn t5_identities() {
    for phi in [-4.0, -2.397896, -2.397894, -0.7, 0.0, 0.3, 1.9, 3.1] {
        for gates in [LOUIZOS, WARM] {
            assert_near(&[whole(gates, phi)], &[1.0 - gates.open_at(-phi)], 1e-12);
            assert_near(&[mean(gates, phi) + mean(gates, -phi)], &[1.0], 1e-8);
            assert_near(&[gates.settled(phi) + gates.settled(-phi)], &[1.0], 1e-12);
            assert!(gates.open_at(phi) < gates.open_at(phi + 1e-3));
        }
    }
    let wanted = [0.5, 0.9, 0.99].map(|open| phi_of(LOUIZOS, open));
    assert_near(&wanted, &[-1.598597, 0.598628, 2.996523], 5e-7);
    assert_near(
        &wanted.map(|phi| LOUIZOS.open_at(phi)),
        &[0.5, 0.9, 0.99],
        1e-12,
    );
    // The test-time gate is 0 up to -2.397895, where a rank of temperature 2/3 still is open in 31 of 100 samples.
    assert_eq!(LOUIZOS.settled(-2.397896), 0.0);
    assert!(LOUIZOS.settled(-2.397894) > 0.0);
    assert_eq!(LOUIZOS.settled(2.397896), 1.0);
    assert!(LOUIZOS.settled(2.397894) < 1.0);
    let at_the_end = [LOUIZOS.open_at(-2.397895), WARM.open_at(-2.397895)];
    assert_near(&at_the_end, &[0.3102, 0.5], 5e-5);
}

#[test]
fn t5_cold_gates_are_zero_or_one() {
    let cold = HardConcrete {
        beta: 1e-3,
        ..LOUIZOS
    };
    let (phi, draws) = (0.6, 20_000);
    let u = uniform(Key::new(1, Purpose::Test).site("cold"), draws);
    let (g, slopes) = sampled(cold, &vec![phi; draws], &u);
    let cut = g.iter().filter(|&&g| g == 0.0 || g == 1.0).count();
    assert!(cut > draws * 99 / 100, "{cut}");
    assert_near(&[g.iter().sum::<f64>() / draws as f64], &[sigma(phi)], 0.01);
    assert!(slopes.iter().all(|slope| slope.is_finite()));
}

#[test]
fn t11_the_ends_of_the_range_are_numbers() {
    // The largest and the smallest that are drawn.
    let u = [1e-6, 0.5, 1.0 - 1e-6].repeat(2);
    for dtype in [DType::F32, DType::F64] {
        for beta in [2.0 / 3.0, 1e-4] {
            let gates = HardConcrete { beta, ..LOUIZOS };
            let phi = vector(&[10.0, 10.0, 10.0, -10.0, -10.0, -10.0]);
            let phi = Var::from_tensor(&phi.to_dtype(dtype).unwrap()).unwrap();
            let g = gates.sample(phi.as_tensor(), &u).unwrap();
            let all = [&g, &gates.open(phi.as_tensor()).unwrap()].map(|x| ops::sum_all(x).unwrap());
            let (_, slopes) = ops::backward(&(&all[0] + &all[1]).unwrap(), &[], &[&phi]).unwrap();
            let slopes = numbers(slopes[0].as_ref().unwrap());
            assert!(slopes.iter().all(|slope| slope.is_finite()), "{slopes:?}");
            let within = |g: &f64| (0.0..=1.0).contains(g);
            assert!(numbers(&g).iter().all(within), "{g:?}");
        }
    }
}
