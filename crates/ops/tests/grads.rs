//! Parameters, the way back, and cutting a graph in two.

use candle_core::{Device, Result as CandleResult, Tensor};
use lowrank_ops as ops;
use ops::{Grads, Kind, Param, ParamInfo, Seed, Tracking};
use std::error::Error;

struct All;
struct Nothing;

impl Tracking for All {
    fn trains(&self, _: &Param) -> bool {
        true
    }
}

impl Tracking for Nothing {
    fn trains(&self, _: &Param) -> bool {
        false
    }
}

fn param(owner: &str, index: usize, kind: Kind, values: &[f64]) -> ops::Result<Param> {
    let info = ParamInfo {
        owner: owner.into(),
        index,
        name: format!("{owner}.{index}"),
        kind,
        group: "default",
        rank_axis: None,
        decay: true,
        learning_rate: None,
    };
    Param::new(info, &Tensor::new(values, &Device::Cpu)?)
}

fn numbers(tensor: &Tensor) -> CandleResult<Vec<f64>> {
    tensor.flatten_all()?.to_vec1()
}

#[test]
fn only_what_a_pass_trains_gets_a_gradient() -> Result<(), Box<dyn Error>> {
    let trained = param("a", 0, Kind::Trained, &[2.0, -3.0])?;
    let saved = param("a", 1, Kind::Saved, &[5.0, 7.0])?;
    let product = |x: &Tensor, y: &Tensor| -> ops::Result<Tensor> { ops::sum_all(&x.mul(y)?) };
    let loss = product(&trained.get(&All), &saved.get(&All))?;
    let (grads, _) = ops::backward(&loss, &[trained.clone(), saved.clone()], &[])?;
    assert_eq!(grads.len(), 1);
    let grad = grads.get(&trained).ok_or("a gradient")?;
    assert_eq!(numbers(grad)?, [5.0, 7.0]);
    assert!(!grad.track_op());
    let loss = product(&trained.get(&Nothing), &saved.get(&Nothing))?;
    assert!(!loss.track_op());
    assert!(ops::backward(&loss, &[trained], &[])?.0.is_empty());
    Ok(())
}

#[test]
fn a_graph_cut_in_two_gives_the_same_gradients() -> Result<(), Box<dyn Error>> {
    let w = param("a", 0, Kind::Trained, &[0.5, -1.5, 2.0])?;
    let v = param("a", 1, Kind::Trained, &[1.25, 0.75, -0.5])?;
    let x = ops::leaf(&Tensor::new(&[3.0f64, 1.0, -2.0], &Device::Cpu)?)?;
    let first = |x: &Tensor| ops::swiglu(x, &w.get(&All));
    let second = |h: &Tensor| ops::sum_all(&ops::swiglu(h, &v.get(&All))?);
    let params = [w.clone(), v.clone()];

    let (whole, leaves) = ops::backward(&second(&first(&x)?)?, &params, &[&x])?;
    let h = first(&x)?;
    let cut = ops::leaf(&h)?;
    let (mut parts, between) = ops::backward(&second(&cut)?, &params, &[&cut])?;
    assert_eq!(parts.len(), 1);
    let seed = Seed::apply(&h, between[0].as_ref().ok_or("a gradient")?)?;
    assert_eq!(seed.to_scalar::<f64>()?, 0.0);
    let (more, cut_leaves) = ops::backward(&seed, &params, &[&x])?;
    parts.merge(more)?;
    for param in &params {
        let (whole, parts) = (
            whole.get(param).ok_or("whole")?,
            parts.get(param).ok_or("parts")?,
        );
        assert_eq!(numbers(whole)?, numbers(parts)?);
    }
    assert!(
        numbers(whole.get(&w).ok_or("w")?)?
            .iter()
            .all(|grad| *grad != 0.0)
    );
    let [leaf, cut_leaf] = [&leaves[0], &cut_leaves[0]].map(|leaf| leaf.as_ref().ok_or("a leaf"));
    assert_eq!(numbers(leaf?)?, numbers(cut_leaf?)?);

    let wrong = Seed::apply(&h, &h.narrow(0, 0, 2)?)
        .map(|_| ())
        .err()
        .ok_or("refused")?;
    assert_eq!(
        wrong.to_string(),
        "Seed: the gradient has shape [2], expected [3]"
    );
    Ok(())
}

#[test]
fn gradients_add_up_and_scale_in_order_of_declaration() -> Result<(), Box<dyn Error>> {
    let (a, b) = (
        param("a", 2, Kind::Trained, &[0.0])?,
        param("a", 10, Kind::Trained, &[0.0])?,
    );
    let of = |value: f64| Tensor::new(&[value], &Device::Cpu);
    let mut grads = Grads::default();
    grads.add(&b, of(3.0)?)?;
    grads.add(&a, of(5.0)?)?;
    grads.add(&b, of(-1.0)?)?;
    let mut other = Grads::default();
    other.insert(&b, of(10.0)?);
    grads.merge(other)?;
    grads.scale(0.5)?;
    let all: Vec<(&str, Vec<f64>)> = (grads.iter())
        .map(|(param, grad)| Ok((param.name(), numbers(grad)?)))
        .collect::<CandleResult<_>>()?;
    assert_eq!(all, [("a.2", vec![2.5]), ("a.10", vec![6.0])]);
    assert!(
        grads
            .add(&a, Tensor::new(&[1.0, 2.0], &Device::Cpu)?)
            .is_err()
    );
    Ok(())
}

#[test]
fn a_parameter_keeps_its_own_copy() -> Result<(), Box<dyn Error>> {
    let source = ops::leaf(&Tensor::new(&[1.0f64, 2.0], &Device::Cpu)?)?;
    let info = param("a", 0, Kind::Trained, &[0.0])?.info().clone();
    let param = Param::new(info, &source)?;
    let (alias, snapshot) = (param.value(), param.snapshot()?);
    param.set(&Tensor::new(&[3.0f64, 4.0], &Device::Cpu)?)?;
    assert_eq!(numbers(&alias)?, [3.0, 4.0]);
    assert_eq!(numbers(&snapshot)?, [1.0, 2.0]);
    assert_eq!(numbers(&source)?, [1.0, 2.0]);
    let error = param
        .set(&Tensor::new(&[3.0f64], &Device::Cpu)?)
        .err()
        .ok_or("refused")?;
    let message = "Param::set: the new value has shape [1], expected [2] (a.0)";
    assert_eq!(error.to_string(), message);
    assert_eq!(numbers(&param.value())?, [3.0, 4.0]);
    Ok(())
}

#[test]
fn a_parameter_is_changed_in_place() -> Result<(), Box<dyn Error>> {
    let param = param("a", 0, Kind::Trained, &[1.0, -2.0, 4.0])?;
    let (alias, snapshot) = (param.value(), param.snapshot()?);
    param.change(|numbers: &mut [f64]| numbers.iter_mut().for_each(|x| *x *= 0.5))?;
    assert_eq!(numbers(&alias)?, [0.5, -1.0, 2.0]);
    assert_eq!(numbers(&snapshot)?, [1.0, -2.0, 4.0]);
    let error = param.change(|numbers: &mut [f32]| numbers.fill(0.0));
    assert_eq!(
        error.err().ok_or("refused")?.to_string(),
        "Param::change: `a.0` has dtype f64, expected f32"
    );
    assert_eq!(numbers(&param.value())?, [0.5, -1.0, 2.0]);
    Ok(())
}

#[test]
fn a_graph_holds_what_its_backward_needs() -> Result<(), Box<dyn Error>> {
    let w = param("a", 0, Kind::Trained, &[2.0, -3.0, 0.5])?;
    let fixed = Tensor::new(&[1.0, 4.0, 7.0], &Device::Cpu)?;
    let leaf = w.get(&All);
    // A view adds nothing, a product its result; what is not tracked is not part of a graph.
    let product = leaf.mul(&fixed)?;
    let first = product.narrow(0, 0, 2)?;
    assert_eq!(ops::graph_bytes([&leaf]), 3 * 8);
    assert_eq!(ops::graph_bytes([&product]), 6 * 8);
    assert_eq!(ops::graph_bytes([&first]), 6 * 8);
    assert_eq!(ops::graph_bytes([&first, &product, &leaf]), 6 * 8);
    let sum = ops::sum_all(&first)?;
    assert_eq!(ops::graph_bytes([&sum]), 7 * 8);
    assert_eq!(ops::graph_bytes([&fixed, &w.value(), &product.detach()]), 0);
    Ok(())
}
