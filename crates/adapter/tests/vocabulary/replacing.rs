use crate::{Q0, assert_near, at, attached, config, matrix, param, random, toy};
use candle_core::{DType, Tensor};
use lowrank_adapter::{
    Ask, Attached, Kind, Memory, Merge, Pass, Selection, Share, Start, attach, run, sweep,
};
use lowrank_conformance::toy::{Head, Toy, batch};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::json;
use std::collections::BTreeMap;

/// Logits of five tokens in evaluation mode.
fn logits(toy: &Toy, selection: Selection) -> Tensor {
    let batch = batch(1, &[&[5]]).unwrap();
    let ask = Ask::Logits((0..5).collect());
    run(toy, &batch, &ask, None, &mut Pass::evaluation(selection)).unwrap()
}

/// Attaches without moving anything from its start.
fn fresh(toy: &mut Toy, keys: serde_json::Value) -> Attached {
    attach(toy, "one", &config(keys), Start::Seed(3)).unwrap()
}

fn set_scaled(attached: &Attached, name: &str, factor: f64) {
    let param = param(attached, name);
    param
        .set(&(param.snapshot().unwrap() * factor).unwrap())
        .unwrap();
}

/// Which parameters have a gradient, in order.
fn reached(toy: &Toy, attached: &Attached) -> Vec<String> {
    let batch = batch(1, &[&[5]]).unwrap();
    let mut pass = Pass::training_pass(Selection::one("one"), Key::new(1, Purpose::Dropout));
    let share = Share {
        token: 0.25,
        auxiliary: 1.0,
    };
    let params = attached.trained();
    let swept = sweep(toy, &batch, &mut pass, &params, share, Memory::Recompute).unwrap();
    let names = swept.grads.iter().map(|(param, _)| param.name().to_owned());
    names.collect()
}

#[test]
fn a_head_and_a_norm_train_whole() {
    let mut toy = toy();
    let keys = json!({"target_modules": [Q0], "modules_to_save": ["lm_head", "model.norm"]});
    let attached = fresh(&mut toy, keys);
    assert!(
        attached
            .params
            .iter()
            .all(|param| param.info().kind == Kind::Trained)
    );
    let base = matrix(&logits(&toy, Selection::none()));
    assert_near(&matrix(&logits(&toy, Selection::one("one"))), &base);

    // Both multiply the logits, so together they do by the product.
    set_scaled(&attached, "lm_head.weight", 1.5);
    set_scaled(&attached, "model.norm.weight", -2.0);
    let scaled: Vec<Vec<f64>> = base
        .iter()
        .map(|row| row.iter().map(|logit| -3.0 * logit).collect())
        .collect();
    assert_near(&matrix(&logits(&toy, Selection::one("one"))), &scaled);
    assert_near(&matrix(&logits(&toy, Selection::none())), &base);
    let reached = reached(&toy, &attached);
    assert_eq!(reached.len(), 4);
    assert!(reached.contains(&"lm_head.weight".to_owned()));
    assert!(reached.contains(&"model.norm.weight".to_owned()));

    let (merged, copy) = at(&mut toy, "lm_head", |linear| {
        let mut pass = Pass::evaluation(Selection::one("one"));
        let Merge::Exact(merged) = linear.merge(&mut pass).unwrap() else {
            panic!("a copy folds exactly");
        };
        (merged.weight, linear.base().weight().unwrap())
    });
    let expected: Vec<Vec<f64>> = matrix(&(copy * 1.5).unwrap());
    assert_near(&matrix(&merged), &expected);
}

#[test]
fn a_tied_head_is_untied_by_training_one_side() {
    for (entry, trained) in [
        ("lm_head", "lm_head.weight"),
        ("embed_tokens", "model.embed_tokens.weight"),
    ] {
        let mut toy = Toy::new(DType::F64, Head::Tied).unwrap();
        let keys = json!({"target_modules": [Q0], "modules_to_save": [entry]});
        let attached = fresh(&mut toy, keys);
        let names: Vec<&str> = attached.params.iter().map(|param| param.name()).collect();
        let (a, b) = (format!("{Q0}.lora_A.weight"), format!("{Q0}.lora_B.weight"));
        assert_eq!(names, [a.as_str(), b.as_str(), trained]);
        assert_eq!(reached(&toy, &attached), names);
        let base = matrix(&logits(&toy, Selection::none()));
        assert_near(&matrix(&logits(&toy, Selection::one("one"))), &base);
        set_scaled(&attached, trained, -0.5);
        let adapted = matrix(&logits(&toy, Selection::one("one")));
        if entry == "lm_head" {
            let halved: Vec<Vec<f64>> = base
                .iter()
                .map(|row| row.iter().map(|logit| -0.5 * logit).collect())
                .collect();
            assert_near(&adapted, &halved);
        } else {
            // The head still has the old table: another embedding under the same head.
            let gap = (adapted[0][0] + 0.5 * base[0][0]).abs();
            assert!(gap > 1e-3, "{gap}");
            let head = at(&mut toy, "lm_head", |linear| {
                linear.base().weight().unwrap()
            });
            let untouched = Toy::new(DType::F64, Head::Tied);
            let untouched = at(&mut untouched.unwrap(), "lm_head", |linear| {
                linear.base().weight().unwrap()
            });
            assert_near(&matrix(&head), &matrix(&untouched));
        }
        assert_near(&matrix(&logits(&toy, Selection::none())), &base);
    }
}

#[test]
fn bias_modes_train_the_biases_that_they_name() {
    let target = "model.layers.1.self_attn.q_proj";
    let wrapped = format!("{target}.base_layer.bias");
    let rows: [(&str, Vec<&str>); 3] = [
        ("none", vec![]),
        ("chained_only", vec![&wrapped]),
        (
            "all",
            vec![
                "model.layers.0.self_attn.q_proj.bias",
                "model.layers.0.mlp.down_proj.bias",
                &wrapped,
                "model.layers.1.mlp.down_proj.bias",
                "model.layers.2.self_attn.q_proj.bias",
                "model.layers.2.mlp.down_proj.bias",
            ],
        ),
    ];
    for (mode, expected) in rows {
        let mut toy = toy();
        let keys =
            json!({"target_modules": [target, "model.layers.1.self_attn.k_proj"], "bias": mode});
        let attached = fresh(&mut toy, keys);
        let names = attached.params.iter().map(|param| param.name());
        let biases: Vec<&str> = names.filter(|name| name.ends_with("bias")).collect();
        assert_eq!(biases, expected, "{mode}");
        let reached = reached(&toy, &attached);
        for name in &biases {
            assert!(reached.contains(&(*name).to_owned()), "{name}");
        }
    }
}

#[test]
fn a_trained_bias_shifts_the_layer_and_its_merge() {
    let mut toy = toy();
    let attached = attached(
        &mut toy,
        "one",
        json!({"target_modules": [Q0], "bias": "all"}),
    );
    let x = random(&[3, 10], Key::new(4, Purpose::Test));
    let forward = |toy: &mut Toy| {
        at(toy, Q0, |linear| {
            let mut pass = Pass::evaluation(Selection::one("one"));
            matrix(&linear.forward(&x, &mut pass).unwrap())
        })
    };
    let before = forward(&mut toy);
    let bias = param(&attached, &format!("{Q0}.base_layer.bias"));
    bias.set(&(bias.snapshot().unwrap() + 2.5).unwrap())
        .unwrap();
    let shifted: Vec<Vec<f64>> = before
        .iter()
        .map(|row| row.iter().map(|y| y + 2.5).collect())
        .collect();
    assert_near(&forward(&mut toy), &shifted);
    let merged = at(&mut toy, Q0, |linear| {
        let mut pass = Pass::evaluation(Selection::one("one"));
        match linear.merge(&mut pass).unwrap() {
            Merge::Exact(merged) => merged.bias.unwrap(),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(
        merged.to_vec1::<f64>().unwrap(),
        bias.value().to_vec1::<f64>().unwrap()
    );
}

#[test]
fn a_bias_under_its_older_name_is_read() {
    let keys = json!({"target_modules": [Q0], "bias": "chained_only"});
    let saved = attached(&mut toy(), "one", keys.clone())
        .exported()
        .unwrap()
        .tensors;
    let old: BTreeMap<String, Tensor> = saved
        .iter()
        .map(|(name, value)| (name.replace(".base_layer", ""), value.clone()))
        .collect();
    assert!(old.contains_key(&format!("{Q0}.bias")));
    let mut toy = toy();
    let loaded = attach(
        &mut toy,
        "one",
        &config(keys),
        Start::Saved {
            tensors: old,
            seed: 3,
        },
    )
    .unwrap();
    for ((name, value), (again_name, again)) in
        saved.iter().zip(&loaded.exported().unwrap().tensors)
    {
        assert_eq!(name, again_name);
        let numbers = |value: &Tensor| value.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(numbers(value), numbers(again));
    }
}
