use crate::{Q0, at, matrix, random, toy};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Ask, Batch, Memory, Param, Pass, Selection, Share, run, sweep, train_all};
use lowrank_conformance::toy::{Head, Toy, VOCABULARY, batch};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::sum_all;

const SHARE: Share = Share {
    token: 0.125,
    auxiliary: 1.0,
};

fn pass() -> Pass {
    Pass::training_pass(Selection::one("full"), Key::new(1, Purpose::Dropout))
}

fn loss(toy: &Toy, batch: &Batch) -> f64 {
    let losses = run(toy, batch, &Ask::Losses, None, &mut pass()).unwrap();
    SHARE.token * sum_all(&losses).unwrap().to_scalar::<f64>().unwrap()
}

/// The derivative of the loss along `direction`, by a central difference.
fn difference(toy: &Toy, batch: &Batch, param: &Param, direction: &Tensor) -> f64 {
    let start = param.snapshot().unwrap();
    let at = |by: f64| {
        param
            .set(&(&start + (direction * by).unwrap()).unwrap())
            .unwrap();
        loss(toy, batch)
    };
    let slope = (at(2e-6) - at(-2e-6)) / 4e-6;
    param.set(&start).unwrap();
    slope
}

#[test]
fn every_weight_trains_and_a_tied_one_once() {
    for head in [Head::Own, Head::Tied] {
        let mut toy = Toy::new(DType::F64, head).unwrap();
        let batch = batch(2, &[&[5], &[2, 3]]).unwrap();
        let before = loss(&toy, &batch);
        let params = train_all(&mut toy, "full").unwrap();
        assert_eq!(loss(&toy, &batch).to_bits(), before.to_bits());

        // Embedding, three blocks of six layers, two biases and two norms, the norm, and the head if it has its own.
        let own_head = usize::from(head == Head::Own);
        assert_eq!(params.len(), 1 + 3 * 10 + 1 + own_head);
        let scalars: usize = params.iter().map(Param::elem_count).sum();
        let attention = 18 * 10 + 18 + 2 * (6 * 10) + 10 * 18;
        let block = attention + 14 * 10 + 10 * 14 + 10 + 2 * 10;
        assert_eq!(scalars, (1 + own_head) * VOCABULARY * 10 + 3 * block + 10);
        assert_eq!(params[0].name(), "model.embed_tokens.weight");
        let has_head = params.iter().any(|param| param.name() == "lm_head.weight");
        assert_eq!(has_head, head == Head::Own);

        for memory in [Memory::Keep, Memory::Recompute] {
            let swept = sweep(&toy, &batch, &mut pass(), &params, SHARE, memory).unwrap();
            assert_eq!(swept.grads.len(), params.len());
            for param in &params {
                let key = Key::new(5, Purpose::Test).site(param.name());
                let direction = random(param.shape().dims(), key);
                let product = (swept.grads.get(param).unwrap() * &direction).unwrap();
                let got = sum_all(&product).unwrap().to_scalar::<f64>().unwrap();
                let expected = difference(&toy, &batch, param, &direction);
                assert!(
                    (got - expected).abs() < 1e-8 + 1e-6 * expected.abs(),
                    "{}: {got}, differences say {expected}",
                    param.name()
                );
            }
        }
    }
}

#[test]
fn a_weight_is_held_once() {
    let mut toy = Toy::new(DType::F64, Head::Tied).unwrap();
    let params = train_all(&mut toy, "full").unwrap();
    let set = |name: &str| {
        let param = params.iter().find(|param| param.name() == name).unwrap();
        let doubled = (param.snapshot().unwrap() * 2.0).unwrap();
        param.set(&doubled).unwrap();
        matrix(&doubled)
    };
    let q = set(&format!("{Q0}.weight"));
    let table = set("model.embed_tokens.weight");
    let base = |toy: &mut Toy, path: &str| {
        at(toy, path, |linear| matrix(&linear.base().weight().unwrap()))
    };
    assert_eq!(base(&mut toy, Q0), q);
    assert_eq!(base(&mut toy, "lm_head"), table);
}

#[test]
fn the_name_follows_the_rules_of_adapters() {
    let error = train_all(&mut toy(), "a.b").unwrap_err();
    assert_eq!(
        error.to_string(),
        "adapter `a.b`: a name must not be empty or contain `.` or `/`"
    );
}
