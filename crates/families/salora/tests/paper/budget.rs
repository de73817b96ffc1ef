//! The expected density, the multiplier, and the orthogonality term: T6, T7, T8.

use crate::{
    LOUIZOS, Layers, adapt, after, assert_near, matrix, numbers, param, penalty, random, step,
    value, vector,
};
use candle_core::{DType, Tensor, Var};
use lowrank_adapter::State;
use lowrank_ops::{self as ops};
use lowrank_salora::{BudgetUnit, Ranks, density_gap, expected_density, orthogonality};
use serde_json::json;

const PHI: [&[f64]; 2] = [&[2.5, 0.0], &[1.0, -1.0, -3.0]];

fn modules(costs: [usize; 2]) -> Vec<Ranks> {
    let ranks = |(cost, phi): (usize, &[f64])| Ranks {
        cost,
        phi: phi.to_vec(),
    };
    costs.into_iter().zip(PHI).map(ranks).collect()
}

#[test]
fn t6_density_and_its_gradient() {
    let (of_parameters, of_ranks) = (BudgetUnit::Parameters, BudgetUnit::Ranks);
    let uneven = modules([5, 10]);
    let density = [of_parameters, of_ranks].map(|unit| expected_density(&uneven, unit, LOUIZOS));
    assert_near(&density, &[0.67036214, 0.71783943], 6e-9);
    let even = modules([7, 7]);
    let density = [of_parameters, of_ranks].map(|unit| expected_density(&even, unit, LOUIZOS));
    assert_near(&density, &[0.71783943; 2], 6e-9);

    let phi = PHI.map(|phi| Var::from_tensor(&vector(phi)).unwrap());
    let shares = of_parameters.shares([(5, 2), (10, 3)].into_iter());
    let of = phi.each_ref().map(|phi| phi.as_tensor().clone());
    let gap = density_gap(&of, &shares, 0.5, LOUIZOS).unwrap();
    let (_, grads) = ops::backward(&(&gap * 2.0).unwrap(), &[], &phi.each_ref()).unwrap();
    // With lambda = 2; the multiplier rises by the gap itself.
    assert_near(&numbers(&gap), &[0.02902326], 6e-9);
    assert_near(&[2.0 * numbers(&gap)[0]], &[0.05804652], 6e-9);
    let of = |i: usize| numbers(grads[i].as_ref().unwrap());
    assert_near(&of(0), &[0.00136788, 0.01191632], 6e-9);
    assert_near(&of(1), &[0.01097748, 0.03899209, 0.02701098], 6e-9);
}

/// The same through an adapter: two modules whose sizes are 2 + 3 and 6 + 4.
#[test]
fn t6_by_the_controller() {
    let mut model = Layers::random(&[("first", 2, 3), ("second", 6, 4)], DType::F64);
    let keys = json!({
        "r": 2, "rank_pattern": { "second": 3 }, "t_start": 0, "orth_weight": 0, "density": 0.5,
    });
    let mut attached = adapt(&mut model, keys);
    for (path, phi) in ["first", "second"].into_iter().zip(PHI) {
        let phi_of = param(&attached, &format!("{path}.salora_phi"));
        phi_of.set(&vector(phi)).unwrap();
    }
    let lambda = |value: f64| State {
        values: json!({ "lambda": value, "live": 5 }),
        ..State::default()
    };
    attached
        .controller
        .as_mut()
        .unwrap()
        .restore(lambda(2.0))
        .unwrap();
    let at = step(2, 10);
    let (mut grads, penalty) = penalty(&attached, at);
    assert_near(&[penalty], &[0.05804652], 6e-9);
    let phi = param(&attached, "second.salora_phi");
    let of_phi = numbers(grads.get(&phi).unwrap());
    assert_near(&of_phi, &[0.01097748, 0.03899209, 0.02701098], 6e-9);
    // C is that of before the update.
    phi.set(&vector(&[-2.0; 3])).unwrap();
    assert_eq!(attached.controller.as_ref().unwrap().budget(), Some(5));
    phi.set(&vector(PHI[1])).unwrap();
    after(&mut attached, at, &mut grads);
    let state = attached.controller.as_ref().unwrap().state().unwrap();
    assert_near(
        &[state.values["lambda"].as_f64().unwrap()],
        &[2.02902326],
        6e-9,
    );
}

/// Eight ranks that only the budget acts on, by plain gradient descent with learning rate 10 and from lambda = 1.
fn descent(phi: f64, steps: u64) -> Vec<[f64; 3]> {
    let mut model = Layers::random(&[("up", 9, 8)], DType::F64);
    let keys = json!({
        "r": 8, "t_start": 0, "t_end": 1, "orth_weight": 0, "density": 0.5, "budget": "ranks", "eta_lambda": 1,
    });
    let mut attached = adapt(&mut model, keys);
    let phi_of = param(&attached, "up.salora_phi");
    phi_of.set(&vector(&[phi; 8])).unwrap();
    let start = State {
        values: json!({ "lambda": 1.0, "live": 8 }),
        ..State::default()
    };
    attached
        .controller
        .as_mut()
        .unwrap()
        .restore(start)
        .unwrap();
    let mut seen = Vec::new();
    for index in 1..=steps {
        let at = step(index, 1000);
        let before = LOUIZOS.open_at(value(&attached, "up.salora_phi")[0]);
        let (mut grads, _) = penalty(&attached, at);
        let controller = attached.controller.as_mut().unwrap();
        controller.after_backward(at, &mut grads).unwrap();
        let change = (grads.get(&phi_of).unwrap() * 10.0).unwrap();
        phi_of
            .set(&(phi_of.snapshot().unwrap() - change).unwrap())
            .unwrap();
        controller
            .after_update(at, &grads, &mut crate::Silent)
            .unwrap();
        let lambda = controller.state().unwrap().values["lambda"]
            .as_f64()
            .unwrap();
        seen.push([before, lambda, value(&attached, "up.salora_phi")[0]]);
    }
    seen
}

#[test]
fn t7_the_multiplier_rises_until_the_budget_is_met() {
    let seen = descent(2.5, 31);
    for (step, expected) in [
        (0, [0.983675, 1.233941, 2.480582]),
        (1, [0.983360, 1.467579, 2.456184]),
        (10, [0.973884, 3.536504, 1.920333]),
        (20, [0.701547, 5.241832, -1.292645]),
        (30, [0.500000, 5.247849, -1.598597]),
    ] {
        assert_near(&seen[step], &expected, 6e-7);
    }
    assert!(seen.is_sorted_by(|one, next| one[1] <= next[1]));
    let rising = descent(-4.0, 12);
    assert!(
        rising[0][0] < 0.5 && rising.is_sorted_by(|one, next| one[2] < next[2]),
        "{rising:?}"
    );
}

fn value_of(p: &Tensor, q: &Tensor) -> f64 {
    orthogonality(p, q).unwrap().to_scalar().unwrap()
}

#[test]
fn t8_orthogonality_by_hand() {
    let slopes = |p: &Tensor, q: &Tensor| {
        let leaves = [p, q].map(|x| Var::from_tensor(x).unwrap());
        let term = orthogonality(leaves[0].as_tensor(), leaves[1].as_tensor()).unwrap();
        let (_, grads) = ops::backward(&term, &[], &leaves.each_ref()).unwrap();
        let grads = grads.iter().map(|grad| numbers(grad.as_ref().unwrap()));
        (numbers(&term)[0], grads.collect::<Vec<_>>())
    };
    let p = matrix(&[&[1., 0.], &[0., 1.], &[1., 1.]]);
    let q = matrix(&[&[0.6, 0.8], &[0.8, -0.6]]);
    let (term, grads) = slopes(&p, &q);
    assert_near(&[term], &[4.0], 1e-14);
    assert_near(&grads[0], &[4., 4., 4., 4., 8., 8.], 1e-13);
    assert_near(&grads[1], &[0.0; 4], 1e-13);
    let (term, grads) = slopes(&p.zeros_like().unwrap(), &q);
    assert_near(&[term], &[2.0], 1e-14);
    assert_eq!(grads[0], [0.0; 6]);
    // 4 P (PᵀP - I) and 4 (QQᵀ - I) Q.
    let (p, q) = (random("p", &[5, 3]), random("q", &[3, 7]));
    let unit = Tensor::eye(3, DType::F64, p.device()).unwrap();
    let of_p = (p.t().unwrap().matmul(&p).unwrap() - &unit).unwrap();
    let of_q = (q.matmul(&q.t().unwrap()).unwrap() - &unit).unwrap();
    let (_, grads) = slopes(&p, &q);
    assert_near(
        &grads[0],
        &numbers(&(p.matmul(&of_p).unwrap() * 4.0).unwrap()),
        1e-11,
    );
    assert_near(
        &grads[1],
        &numbers(&(of_q.matmul(&q).unwrap() * 4.0).unwrap()),
        1e-11,
    );
}

#[test]
fn t8_rotations_change_nothing() {
    let (p, q) = (random("p", &[6, 3]), random("q", &[3, 5]));
    let (left, _) = ops::linalg::qr(&random("left", &[6, 6])).unwrap();
    let (right, _) = ops::linalg::qr(&random("right", &[5, 5])).unwrap();
    let turned = value_of(&left.matmul(&p).unwrap(), &q.matmul(&right).unwrap());
    let plain = value_of(&p, &q);
    assert!((turned / plain - 1.0).abs() < 1e-12, "{turned} {plain}");
}

/// E||QQᵀ - I||² = r (r + 1) / n_in for rows of variance 1 / n_in.
#[test]
fn t8_q_starts_nearly_orthonormal() {
    const DRAWS: usize = 20_000;
    let (r, n_in) = (8, 64);
    let all = (random("starts", &[DRAWS, r * n_in]) * (n_in as f64).powf(-0.5)).unwrap();
    let none = Tensor::zeros((3, r), DType::F64, all.device()).unwrap();
    let term = |i: usize| {
        let q = all.get(i).unwrap().reshape((r, n_in)).unwrap();
        // P = 0 adds r.
        value_of(&none, &q) - r as f64
    };
    let mean = (0..DRAWS).map(term).sum::<f64>() / DRAWS as f64;
    assert_near(&[mean], &[1.125], 0.02);
}

/// What an adapter starts from: P = 0, Q of that variance, phi = 2.5 with a little noise.
#[test]
fn the_start() {
    let mut model = Layers::random(&[("up", 70, 400)], DType::F64);
    let attached = adapt(&mut model, json!({ "r": 40 }));
    assert!(
        value(&attached, "up.lora_B.weight")
            .iter()
            .all(|&p| p == 0.0)
    );
    let q = value(&attached, "up.lora_A.weight");
    let variance = q.iter().map(|q| q * q).sum::<f64>() / q.len() as f64;
    assert!((variance * 400.0 - 1.0).abs() < 0.05, "{variance}");
    let phi = value(&attached, "up.salora_phi");
    assert_near(&phi, &[2.5; 40], 0.05);
    let mean = phi.iter().sum::<f64>() / 40.0;
    let variance = phi.iter().map(|phi| (phi - mean).powi(2)).sum::<f64>() / 39.0;
    assert!((variance.sqrt() - 0.01).abs() < 0.004, "{variance}");
}
