//! Starts at the weight itself: what they are, that the base is left alone, and what is exported.

use crate::{
    Layers, adapt, assert_near, matrix, merged, numbers, one_layer, output, random, tensor, value,
};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{AdapterConfig, Attached, Exported, ResidualBase, Selection, Start, attach};
use lowrank_adapter::{Pass, Source};
use lowrank_lora::Lora;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const RESIDUAL: [&str; 3] = ["pissa", "pissa_niter_2", "olora"];

fn keys(init: &str, r: usize, alpha: f64) -> Value {
    json!({ "r": r, "lora_alpha": alpha, "init_lora_weights": init, "target_modules": ["up"] })
}

/// B A.
fn product(attached: &Attached, a: &str, b: &str) -> Tensor {
    let (a, b) = (tensor(attached, a), tensor(attached, b));
    b.matmul(&a).unwrap()
}

fn update(attached: &Attached) -> Tensor {
    product(attached, "up.lora_A.weight", "up.lora_B.weight")
}

fn start(attached: &Attached) -> Tensor {
    product(attached, "up.lora_A_start", "up.lora_B_start")
}

#[test]
fn pissa_by_hand() {
    let mut model = one_layer(matrix(&[&[3., 0., 0.], &[0., 2., 0.], &[0., 0., 1.]]), None);
    let attached = adapt(&mut model, &keys("pissa", 1, 2.0), Start::Seed(1));
    let root = 1.5f64.sqrt();
    for name in ["up.lora_A.weight", "up.lora_B.weight"] {
        let sizes: Vec<f64> = value(&attached, name).iter().map(|x| x.abs()).collect();
        assert_near(&sizes, &[root, 0.0, 0.0], 1e-15);
    }
    let rest = (model.0[0].base().weight().unwrap() - (start(&attached) * 2.0).unwrap()).unwrap();
    assert_near(
        &numbers(&rest),
        &[0., 0., 0., 0., 2., 0., 0., 0., 1.],
        1e-14,
    );
}

#[test]
fn olora_by_hand() {
    let mut model = one_layer(matrix(&[&[3., 1.], &[4., 2.]]), None);
    let attached = adapt(&mut model, &keys("olora", 1, 2.0), Start::Seed(1));
    assert_near(&numbers(&update(&attached)), &[3., 1.32, 4., 1.76], 1e-14);
    let rest = (model.0[0].base().weight().unwrap() - (start(&attached) * 2.0).unwrap()).unwrap();
    assert_near(&numbers(&rest), &[-3., -1.64, -4., -1.52], 1e-14);
}

/// The bytes of the layer's weight.
fn bytes(model: &Layers) -> Vec<u8> {
    let weight = model.0[0].base().weight().unwrap();
    let numbers = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn single(what: &str, shape: &[usize]) -> Tensor {
    random(what, shape).to_dtype(DType::F32).unwrap()
}

#[test]
fn residual_starts_leave_the_base_alone() {
    for init in RESIDUAL {
        for dora in [false, true] {
            let mut model = one_layer(single("w", &[8, 11]), None);
            let before = bytes(&model);
            let x = single("x", &[5, 11]);
            let base = output(&model, &x);
            let mut keys = keys(init, 3, 4.5);
            keys["use_dora"] = dora.into();
            let attached = adapt(&mut model, &keys, Start::Seed(6));
            assert_near(&numbers(&output(&model, &x)), &numbers(&base), 1e-5);
            assert_near(
                &numbers(&merged(&model)),
                &numbers(&single("w", &[8, 11])),
                1e-5,
            );
            // A step of training changes A and B, and what is subtracted is what it was.
            let subtracted = numbers(&start(&attached));
            let mut pass =
                Pass::training_pass(Selection::one("default"), Key::new(1, Purpose::Dropout));
            let y = model.0[0].forward(&x, &mut pass).unwrap();
            let loss = ops::sum_all(&y.sqr().unwrap()).unwrap();
            let (grads, _) = ops::backward(&loss, &attached.params, &[]).unwrap();
            assert_eq!(grads.len(), attached.trained().len());
            for (param, grad) in grads.iter() {
                assert!(ops::norm_squared(grad).unwrap() > 0.0);
                let step = (grad * 0.01).unwrap();
                param
                    .set(&(param.snapshot().unwrap() - step).unwrap())
                    .unwrap();
            }
            assert_eq!(numbers(&start(&attached)), subtracted);
            assert_eq!(bytes(&model), before, "{init}");
            let none = model.0[0].forward(&x, &mut Pass::evaluation(Selection::none()));
            assert_eq!(numbers(&none.unwrap()), numbers(&base));
        }
    }
}

#[test]
fn iterations_come_near_to_the_best_approximation() {
    // Columns that fade, so that singular values do.
    let fading: Vec<f64> = (0..31).map(|i| 0.85f64.powi(i)).collect();
    let fading = Tensor::new(fading, &Device::Cpu).unwrap();
    let weight = random("w", &[24, 31]).broadcast_mul(&fading).unwrap();
    let approximation = |init: &str| {
        let mut model = one_layer(weight.clone(), None);
        update(&adapt(&mut model, &keys(init, 4, 6.0), Start::Seed(6)))
    };
    let best = approximation("pissa");
    let gap = |init: &str| {
        let gap = (approximation(init) - &best).unwrap();
        ops::norm_squared(&gap).unwrap().sqrt()
    };
    let (few, many) = (gap("pissa_niter_1"), gap("pissa_niter_60"));
    assert!(few > 0.1 && many < 1e-3, "{few} {many}");
}

#[test]
fn an_orthogonal_start_is_two_factors_whose_product_is_nothing() {
    let (n_out, n_in, r) = (96, 400, 40);
    let mut model = one_layer(random("w", &[n_out, n_in]), None);
    let attached = adapt(&mut model, &keys("orthogonal", r, 8.0), Start::Seed(6));
    let largest = numbers(&update(&attached))
        .into_iter()
        .fold(0f64, |a, b| a.max(b.abs()));
    assert!(largest < 1e-14, "{largest:e}");
    // n r / 2 squares of mean 1 / 100.
    for (name, side) in [("up.lora_A.weight", n_in), ("up.lora_B.weight", n_out)] {
        let norm = ops::norm_squared(&tensor(&attached, name)).unwrap();
        let expected = (side * r / 2) as f64 / 100.0;
        assert!(
            (norm / expected - 1.0).abs() < 0.06,
            "{name}: {norm} {expected}"
        );
    }
}

fn moved(attached: &Attached) {
    for param in attached.trained() {
        let noise = (random(param.name(), param.shape().dims()) * 0.3).unwrap();
        param
            .set(&(param.snapshot().unwrap() + noise).unwrap())
            .unwrap();
    }
}

fn load(model: &mut Layers, config: &AdapterConfig, tensors: Vec<(String, Tensor)>) -> Attached {
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    attach(model, "default", config, Start::Saved { tensors, seed: 4 }).unwrap()
}

/// W + s' B' A' = (W - s B₀ A₀) + s B A, at twice the ranks and over the untouched base.
#[test]
fn what_is_exported_is_plain_lora() {
    let weight = random("w", &[7, 10]);
    let x = random("x", &[3, 10]);
    let both = RESIDUAL
        .into_iter()
        .flat_map(|init| [(init, false), (init, true)]);
    for (init, stabilised) in both {
        let mut keys = keys(init, 4, 6.0);
        keys["use_rslora"] = stabilised.into();
        let scale = if stabilised { 3.0 } else { 1.5 };
        let mut model = one_layer(weight.clone(), None);
        let attached = adapt(&mut model, &keys, Start::Seed(6));
        moved(&attached);
        let rest = (&weight - (start(&attached) * scale).unwrap()).unwrap();
        let expected = (rest + (update(&attached) * scale).unwrap()).unwrap();
        assert_near(&numbers(&merged(&model)), &numbers(&expected), 1e-13);

        let Exported { config, tensors } = attached.exported().unwrap();
        let shapes: Vec<&[usize]> = tensors.iter().map(|(_, tensor)| tensor.dims()).collect();
        assert_eq!(
            shapes,
            [&[8, 10][..], &[7, 8]],
            "more than the matrix allows to start with"
        );
        assert_eq!(config.own["init_lora_weights"], json!(true));
        assert_eq!(config.own["r"], json!(8));
        let alpha = config.own["lora_alpha"].as_f64().unwrap();
        let doubled = if stabilised { 2f64.sqrt() } else { 2.0 };
        assert_near(&[alpha], &[6.0 * doubled], 1e-15);

        let mut second = one_layer(weight.clone(), None);
        let loaded = load(&mut second, &config, tensors);
        assert_eq!(loaded.params.len(), 2);
        assert_near(&numbers(&merged(&second)), &numbers(&expected), 1e-13);
        assert_near(
            &numbers(&output(&second, &x)),
            &numbers(&output(&model, &x)),
            1e-13,
        );
    }
}

#[test]
fn every_pattern_is_doubled() {
    let mut keys = keys("pissa", 2, 3.0);
    keys["rank_pattern"] = json!({ "up": 3, "other": 5 });
    keys["alpha_pattern"] = json!({ "u.": 2.5 });
    let mut model = one_layer(random("w", &[7, 10]), None);
    let exported = adapt(&mut model, &keys, Start::Seed(6)).exported().unwrap();
    let own = &exported.config.own;
    assert_eq!(own["rank_pattern"], json!({ "other": 10, "up": 6 }));
    assert_eq!(own["alpha_pattern"], json!({ "u.": 5 }));
    assert_eq!((&own["r"], &own["lora_alpha"]), (&json!(4), &json!(6)));
}

/// A and B as PEFT saves them without converting, over the base before and over what the training left of it.
#[test]
fn an_unconverted_file_is_read_on_either_base() {
    let weight = random("w", &[7, 10]);
    let x = random("x", &[3, 10]);
    for init in ["pissa", "olora"] {
        let mut model = one_layer(weight.clone(), None);
        let attached = adapt(&mut model, &keys(init, 4, 6.0), Start::Seed(6));
        moved(&attached);
        let expected = numbers(&output(&model, &x));
        let file: Vec<(String, Tensor)> = attached.params[..2]
            .iter()
            .map(|param| (param.name().to_owned(), param.snapshot().unwrap()))
            .collect();
        let residual = (&weight - (start(&attached) * 1.5).unwrap()).unwrap();
        let keys = keys(init, 4, 6.0);
        let keys: &Map<String, Value> = keys.as_object().unwrap();
        for (base, weight) in [
            (ResidualBase::Original, weight.clone()),
            (ResidualBase::Residual, residual),
        ] {
            let config = AdapterConfig::parse(&Lora, keys, Source::AdapterFolder).unwrap();
            let config = config.read_as(Some(base)).unwrap();
            let mut second = one_layer(weight, None);
            let loaded = load(&mut second, &config, file.clone());
            assert_near(&numbers(&output(&second, &x)), &expected, 1e-12);
            // Read on the residual it is plain LoRA there; on the original it goes on as what it was.
            let shape = loaded.exported().unwrap().tensors[0].1.dims()[0];
            let rank = if base == ResidualBase::Original { 8 } else { 4 };
            assert_eq!(shape, rank, "{base:?}");
        }
    }
}
