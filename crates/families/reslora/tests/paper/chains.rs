//! Where chains begin, what reduces to LoRA, what is counted, and that nothing outlives a pass.

use super::*;

const TYPES: [&str; 3] = ["is", "bs", "ms"];

#[test]
fn nothing_earlier_is_lora() {
    for dtype in [DType::F32, DType::F64] {
        for res_type in ["bs", "ms"] {
            let mut layers = Layers::random(&[(7, 5); 3], dtype);
            let keys = json!({ "r": 3, "lora_alpha": 4, "res_type": res_type, "pre_num": 0 });
            let attached = layers.adapt(&keys);
            randomise(&attached);
            assert_lora(&layers, &attached, 4.0 / 3.0, 0..3);
        }
        // A chain of one.
        for (res_type, times) in [("is", 2.0), ("bs", 1.0), ("ms", 1.0)] {
            let mut layers = Layers::random(&[(7, 5)], dtype);
            let attached = layers.adapt(&json!({ "r": 3, "lora_alpha": 4, "res_type": res_type }));
            randomise(&attached);
            assert_lora(&layers, &attached, times * (4.0 / 3.0), 0..1);
        }
    }
}

/// These layers are LoRA's, bit for bit.
#[track_caller]
fn assert_lora(
    layers: &Layers,
    attached: &Attached,
    scale: f64,
    which: impl Iterator<Item = usize>,
) {
    let input = |layer: &Linear| {
        let (_, n_in) = layer.base().dims();
        random(layer.path(), &[4, n_in])
            .to_dtype(layer.base().dtype())
            .unwrap()
    };
    let inputs: Vec<Tensor> = layers.layers.iter().map(input).collect();
    let outputs = layers.outputs(&inputs, &mut evaluation());
    for i in which {
        let (a, b) = (
            param(attached, i, "lora_A.weight"),
            param(attached, i, "lora_B.weight"),
        );
        let base = layers.layers[i].base();
        let expected = base.forward_low_rank(&inputs[i], &a.value(), &b.value(), scale);
        assert_same_bits(&outputs[i], &expected.unwrap());
    }
}

#[test]
fn a_fresh_adapter_is_its_base_and_only_b_moves() {
    for res_type in TYPES {
        let weights = (0..4).map(|i| random(&format!("W {i}"), &[6, 6])).collect();
        let mut layers = Layers::new(random("x", &[3, 6]), weights);
        let base = layers.run(&layers.x, &mut Pass::evaluation(Selection::none()));
        let attached = layers.adapt(&json!({ "r": 2, "lora_alpha": 3, "res_type": res_type }));
        assert_close(&layers.run(&layers.x, &mut evaluation()), &base, 1e-12);
        let grads = layers.sweep(&attached, Memory::Keep).grads;
        for param in attached.trained() {
            let largest = numbers(grads.get(&param).unwrap()).into_iter();
            let largest = largest.fold(0f64, |most, x| most.max(x.abs()));
            let is_a = param.name().ends_with("lora_A.weight");
            assert_eq!(largest == 0.0, is_a, "{}: {largest}", param.name());
            let bound = 1.0 / 6f64.sqrt();
            let start = numbers(&param.value());
            assert!(
                start
                    .iter()
                    .all(|x| x.abs() <= if is_a { bound } else { 0.0 })
            );
            assert_eq!(start.iter().any(|x| x.abs() > 0.8 * bound), is_a);
        }
    }
}

#[test]
fn parameters_are_those_of_lora() {
    let check = |layers: usize, width: usize, rank: usize, expected: usize| {
        for res_type in TYPES {
            let linear = |name: &str, i: usize| {
                let path = format!("model.layers.{i}.self_attn.{name}");
                Linear::new(path, FrozenLinear::absent(width, width))
            };
            let both = |i| ["q_proj", "v_proj"].map(|name| linear(name, i));
            let mut model = Layers {
                x: matrix(&[&[0.0]]),
                layers: (0..layers).flat_map(both).collect(),
            };
            let attached = model.adapt(&json!({ "r": rank, "res_type": res_type }));
            assert_eq!(attached.trainable_parameters(), expected);
        }
    };
    // LLaMA2-7B and RoBERTa-large.
    check(32, 4096, 4, 2_097_152);
    check(32, 4096, 16, 8_388_608);
    check(24, 1024, 4, 393_216);
}

/// With all earlier blocks, the mean rank of a chain of 32 is 16.5 times r.
#[test]
fn the_cost_of_all_blocks() {
    let mut layers = Layers::random(&[(4, 3); 32], DType::F32);
    layers.adapt(&json!({ "r": 2, "pre_num": -1 }));
    let rank = |layer: &Linear| {
        let low_rank = layer.adapter(NAME).unwrap().low_rank().unwrap().unwrap();
        low_rank.a.dim(0).unwrap()
    };
    let ranks: usize = layers.layers.iter().map(rank).sum();
    assert_eq!(ranks, 33 * 32);
}

/// Layers 0 and 1 fit, 2 has another shape and 3 fits it, and 4 fits 0 and 1 but not the one before it.
#[test]
fn a_chain_ends_where_a_shape_changes() {
    let dims = [(7, 5), (7, 5), (6, 5), (6, 5), (7, 5)];
    for (res_type, times) in [("is", 2.0), ("bs", 1.0), ("ms", 1.0)] {
        let mut layers = Layers::random(&dims, DType::F64);
        let keys = json!({ "r": 3, "lora_alpha": 4, "res_type": res_type, "pre_num": -1 });
        let attached = layers.adapt(&keys);
        randomise(&attached);
        let scale = 4.0 / 3.0;
        if res_type == "bs" {
            assert_lora(&layers, &attached, scale, [0, 2, 4].into_iter());
        }
        // What the first two chains compute, by hand.
        let inputs: Vec<Tensor> = (0..5).map(|i| random(&format!("x {i}"), &[4, 5])).collect();
        let outputs = layers.outputs(&inputs, &mut evaluation());
        let down = |x: &Tensor, i: usize| {
            let a = param(&attached, i, "lora_A.weight").value();
            x.matmul(&a.t().unwrap()).unwrap()
        };
        let up = |h: Tensor, i: usize| {
            let b = param(&attached, i, "lora_B.weight").value();
            (h.matmul(&b.t().unwrap()).unwrap() * scale).unwrap()
        };
        for (i, x) in inputs.iter().enumerate() {
            let update = match (res_type, i) {
                (_, 0 | 2 | 4) => (up(down(x, i), i) * times).unwrap(),
                ("is", i) => up(down(&(x + &inputs[i - 1]).unwrap(), i), i),
                ("bs", i) => (up(down(x, i), i) + up(down(x, i - 1), i - 1)).unwrap(),
                (_, i) => up((down(x, i) + down(&inputs[i - 1], i - 1)).unwrap(), i),
            };
            let expected = (layers.layers[i].base().forward(x).unwrap() + update).unwrap();
            assert_close(&outputs[i], &expected, 1e-12);
        }
    }
}

/// `pre_num` counts earlier blocks, and what is handed on is each block's own u.
#[test]
fn earlier_blocks_are_counted_from_the_nearest() {
    for pre_num in [1, 2, 3] {
        let mut layers = Layers::random(&[(7, 5); 5], DType::F64);
        let keys = json!({ "r": 2, "lora_alpha": 3, "res_type": "ms", "pre_num": pre_num });
        let attached = layers.adapt(&keys);
        randomise(&attached);
        let inputs: Vec<Tensor> = (0..5).map(|i| random(&format!("x {i}"), &[4, 5])).collect();
        let outputs = layers.outputs(&inputs, &mut evaluation());
        let value = |i: usize, name: &str| param(&attached, i, name).value().t().unwrap();
        let u: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, x)| x.matmul(&value(i, "lora_A.weight")).unwrap())
            .collect();
        for i in 0..5usize {
            let mut v = u[i].clone();
            for earlier in &u[i.saturating_sub(pre_num)..i] {
                v = (v + earlier).unwrap();
            }
            let update = (v.matmul(&value(i, "lora_B.weight")).unwrap() * 1.5).unwrap();
            let expected = layers.layers[i].base().forward(&inputs[i]).unwrap() + update;
            assert_close(&outputs[i], &expected.unwrap(), 1e-12);
        }
    }
}

#[test]
fn a_pass_leaves_nothing_to_the_next() {
    for res_type in TYPES {
        let fresh = || {
            let weights = (0..4).map(|i| random(&format!("W {i}"), &[6, 6])).collect();
            let mut layers = Layers::new(random("x", &[3, 6]), weights);
            let attached = layers.adapt(&json!({ "r": 2, "res_type": res_type, "pre_num": 2 }));
            randomise(&attached);
            layers
        };
        let (one, other) = (random("one", &[2, 3, 6]), random("other", &[1, 5, 6]));
        for pass in [evaluation, training] {
            let expected = fresh().run(&one, &mut pass());
            let layers = fresh();
            layers.run(&one, &mut pass());
            layers.run(&other, &mut pass());
            assert_same_bits(&layers.run(&one, &mut pass()), &expected);
        }
    }
}

#[test]
fn tokens_one_by_one_are_the_whole() {
    for res_type in TYPES {
        let weights = (0..4).map(|i| {
            random(&format!("W {i}"), &[6, 6])
                .to_dtype(DType::F32)
                .unwrap()
        });
        let mut layers = Layers::new(matrix(&[&[0.0]]), weights.collect());
        let attached = layers.adapt(&json!({ "r": 2, "res_type": res_type, "pre_num": 2 }));
        randomise(&attached);
        let x = random("x", &[1, 5, 6]).to_dtype(DType::F32).unwrap();
        let whole = layers.run(&x, &mut evaluation());
        let token = |at| layers.run(&x.narrow(1, at, 1).unwrap(), &mut evaluation());
        let pieces: Vec<Tensor> = (0..5).map(token).collect();
        assert_close(&Tensor::cat(&pieces, 1).unwrap(), &whole, 1e-5);
    }
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let check = |keys: Value, expected: &str| {
        let keys = keys.as_object().unwrap();
        let parsed = AdapterConfig::parse(&Reslora, keys, Source::RunFile);
        let message = parsed.err().map(|error| error.to_string());
        assert_eq!(message.as_deref(), Some(expected));
    };
    check(
        json!({ "pre_num": -2 }),
        "`pre_num = -2`: expected a number of earlier blocks, or -1 for all of them",
    );
    check(
        json!({ "res_type": "xs" }),
        "`res_type = \"xs\"`, expected one of `is`, `bs`, `ms`",
    );
    check(
        json!({ "merge": "by" }),
        "`merge = \"by\"`, expected one of `none`, `bi`, `bw`",
    );
    check(json!({ "r": 0 }), "`r = 0`, expected an integer above 0");
    let mut layers = Layers::random(&[(7, 5)], DType::F64);
    let error = attach(
        &mut layers,
        NAME,
        &config(&json!({ "r": 6 })),
        Start::Seed(3),
    );
    assert_eq!(
        error.err().map(|error| error.to_string()).as_deref(),
        Some(
            "model.layers.0.self_attn.q_proj: r = 6 is larger than the matrix [7, 5] allows; use at most 5"
        )
    );
}
