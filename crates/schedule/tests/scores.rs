//! Scores: worked numbers, and a state that comes back.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Kind, Masks, Param, ParamInfo, Probe, Result, State};
use lowrank_ops::Grads;
use lowrank_schedule::{Components, GateValue, Magnitude, Score, Sensitivity};

/// Nothing is asked of it.
struct Silent;

impl Probe for Silent {
    fn losses(&mut self, _: &[Masks]) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }
}

fn param(index: usize, axis: usize, value: &Tensor) -> Param {
    let info = ParamInfo {
        owner: "test".into(),
        index,
        name: format!("tensor_{index}"),
        kind: Kind::Trained,
        group: "default",
        rank_axis: Some(axis),
        decay: true,
        learning_rate: None,
    };
    Param::new(info, value).unwrap()
}

fn tensor(rows: &[&[f64]]) -> Tensor {
    let flat: Vec<f64> = rows.concat();
    Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn near(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-12, "{got} {expected}");
    }
}

#[test]
fn sensitivity_and_uncertainty_are_adaloras() {
    // Two slots of one number each, so that a slot's score is that number's.
    let p = param(0, 0, &tensor(&[&[1.0], &[-2.0]]));
    let sites = [Components {
        params: vec![p.clone()],
        gate: None,
    }];
    let mut score = Sensitivity::new(&sites, 0.85, 0.85).unwrap();
    let mut step = |grads: [f64; 2]| {
        let mut all = Grads::default();
        all.insert(&p, tensor(&[&grads[..1], &grads[1..]]));
        score.observe(&sites, &all).unwrap();
        score.scores(&sites, &mut Silent).unwrap()[0].clone()
    };
    near(&step([0.1, 0.2]), &[0.000_191_25, 0.003_06]);
    near(&step([0.3, -0.1]), &[0.05775 * 0.047_175, 0.081 * 0.0612]);
}

#[test]
fn a_slots_parts_are_averaged_and_tensors_added() {
    // With both betas 0 the score of a number is 0, so the averages are set through the state.
    let a = param(0, 0, &tensor(&[&[0.0, 0.0], &[0.0, 0.0]]));
    let e = param(1, 0, &tensor(&[&[0.0], &[0.0]]));
    let b = param(2, 1, &tensor(&[&[0.0, 0.0], &[0.0, 0.0], &[0.0, 0.0]]));
    let sites = [Components {
        params: vec![a, e, b],
        gate: None,
    }];
    let mut score = Sensitivity::new(&sites, 0.85, 0.85).unwrap();
    let mut state = State::default();
    let values = [
        tensor(&[&[1.0, 3.0], &[2.0, 2.0]]),
        tensor(&[&[0.5], &[1.0]]),
        tensor(&[&[1.0, 0.0], &[3.0, 2.0], &[2.0, 4.0]]),
    ];
    for (i, value) in values.iter().enumerate() {
        let ones = value.ones_like().unwrap();
        state
            .tensors
            .insert(format!("importance.tensor_{i}"), value.clone());
        state
            .tensors
            .insert(format!("uncertainty.tensor_{i}"), ones);
    }
    score.restore(state).unwrap();
    near(&score.scores(&sites, &mut Silent).unwrap()[0], &[4.5, 5.0]);

    // What is saved comes back, and a forgotten slot is worth nothing.
    let saved = score.state().unwrap();
    let mut again = Sensitivity::new(&sites, 0.85, 0.85).unwrap();
    again.restore(saved).unwrap();
    again.forget(&sites[0], &[0]).unwrap();
    near(&again.scores(&sites, &mut Silent).unwrap()[0], &[0.0, 5.0]);
    let missing = again.restore(State::default()).unwrap_err().to_string();
    assert!(
        missing.contains("tensor `importance.tensor_0` is missing"),
        "{missing}"
    );
}

#[test]
fn f32_is_computed_in_f32() {
    let value = tensor(&[&[0.3], &[-1.7]]).to_dtype(DType::F32).unwrap();
    let p = param(0, 0, &value);
    let sites = [Components {
        params: vec![p.clone()],
        gate: None,
    }];
    let mut score = Sensitivity::new(&sites, 0.85, 0.75).unwrap();
    let mut grads = Grads::default();
    let grad = tensor(&[&[0.2], &[0.1]]).to_dtype(DType::F32).unwrap();
    grads.insert(&p, grad);
    score.observe(&sites, &grads).unwrap();
    let of = |p: f32, g: f32| {
        let ipt = (p * g).abs();
        let importance = (1.0 - 0.85_f64) as f32 * ipt;
        let uncertainty = (1.0 - 0.75_f64) as f32 * (ipt - importance).abs();
        f64::from(importance * uncertainty)
    };
    let scores = score.scores(&sites, &mut Silent).unwrap();
    assert_eq!(scores[0], [of(0.3, 0.2), of(-1.7, 0.1)]);
}

#[test]
fn magnitude_is_the_norm_of_the_component() {
    let a = param(0, 0, &tensor(&[&[3.0, 4.0, 0.0], &[0.0, -1.0, 0.0]]));
    let b = param(1, 1, &tensor(&[&[2.0, 0.5], &[0.0, 1.0]]));
    let sites = [Components {
        params: vec![a, b],
        gate: None,
    }];
    let scores = Magnitude.scores(&sites, &mut Silent).unwrap();
    near(&scores[0], &[10.0, 1.25_f64.sqrt()]);
    let gate = param(2, 0, &Tensor::new(&[-0.5, 0.25], &Device::Cpu).unwrap());
    let scores = GateValue::new(vec![gate])
        .scores(&sites, &mut Silent)
        .unwrap();
    near(&scores[0], &[0.5, 0.25]);
}
