//! CHANGE: two worked examples of the paper, or its formulas on numbers, computed another way than by the layer.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    AdapterConfig, Attached, Error, Linear, Model, Part, Pass, Result, Selection, Source, Start,
    attach,
};
use lowrank_conformance::toy::{Head, Toy};
use lowrank_reslora::Reslora;
use serde_json::{Value, json};

/// A layer of the toy model, `[14, 10]`.
const SITE: &str = "model.layers.1.mlp.up_proj";

/// The toy model in f64 with the family at [`SITE`] alone.
fn adapted(mut keys: Value) -> Result<(Toy, Attached)> {
    keys["target_modules"] = json!([SITE]);
    let keys = keys.as_object().cloned().unwrap_or_default();
    let config = AdapterConfig::parse(&Reslora, &keys, Source::RunFile)?;
    let mut toy = Toy::new(DType::F64, Head::Own)?;
    let attached = attach(&mut toy, "default", &config, Start::Seed(3))?;
    Ok((toy, attached))
}

/// Looks at the layer.
fn at_site<T>(toy: &mut Toy, look: impl Fn(&Linear) -> Result<T>) -> Result<T> {
    let mut seen = None;
    toy.parts(&mut |part| {
        if let Part::Linear(linear) = part
            && linear.path() == SITE
        {
            seen = Some(look(linear));
        }
    });
    seen.unwrap_or_else(|| Err(Error::Other(format!("there is no {SITE}"))))
}

/// Numbers that differ from each other: sin(1), sin(2), ..
fn numbers(rows: usize, columns: usize) -> Result<Tensor> {
    let numbers: Vec<f64> = (1..=rows * columns).map(|i| (i as f64).sin()).collect();
    Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?)
}

/// The largest difference.
fn gap(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar()?)
}

#[test]
fn the_layer_is_the_formula() -> Result<()> {
    let (mut toy, attached) = adapted(json!({ "r": 3, "lora_alpha": 4.5 }))?;
    let [a, b] = &attached.params[..] else {
        panic!("{:?}", attached.params)
    };
    b.set(&numbers(14, 3)?)?;
    let x = numbers(5, 10)?;
    let y = at_site(&mut toy, |linear| {
        linear.forward(&x, &mut Pass::evaluation(Selection::one("default")))
    })?;
    let weight = at_site(&mut toy, |linear| Ok(linear.base().weight()?))?;
    let update = (b.value().matmul(&a.value())? * 1.5)?;
    let expected = x.matmul(&(weight + update)?.t()?)?;
    assert!(gap(&y, &expected)? < 1e-12);
    Ok(())
}

#[test]
fn a_module_has_r_times_both_sides() -> Result<()> {
    let (_, attached) = adapted(json!({ "r": 3 }))?;
    assert_eq!(attached.trainable_parameters(), 3 * (14 + 10));
    Ok(())
}
