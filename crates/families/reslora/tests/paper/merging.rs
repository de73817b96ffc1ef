//! What merges, and how far from the adapted layers it lies where that is not exact.

use super::toy::toy;
use super::*;

/// A toy whose norms were measured in one pass, and what it gives unmerged.
fn measured(keys: &Value) -> (Layers, Attached, Tensor) {
    let (layers, mut attached) = toy(keys, DType::F64);
    let records = layers.sweep(&attached, Memory::Keep).records;
    observe(&mut attached, &records);
    let h = layers.run(&layers.x, &mut evaluation());
    (layers, attached, h)
}

/// The factor 1 + α of each layer's B.
fn factors(layers: &Layers, attached: &Attached) -> Vec<f64> {
    let factor = |(i, layer): (usize, &Linear)| {
        let low_rank = layer.adapter(NAME).unwrap().low_rank().unwrap().unwrap();
        let own = param(attached, i, "lora_B.weight").value();
        let sum = |b: &Tensor| numbers(b).iter().map(|b| b.abs()).sum::<f64>();
        sum(&low_rank.b) / sum(&own)
    };
    layers.layers.iter().enumerate().map(factor).collect()
}

/// The merged weights are those of `low_rank`, as factors for others to read.
fn assert_low_rank_is_merge(layers: &Layers, exact: &[bool]) {
    for ((layer, merge), exact) in layers.layers.iter().zip(layers.merges()).zip(exact) {
        let low_rank = layer.adapter(NAME).unwrap().low_rank().unwrap().unwrap();
        let update = low_rank.b.matmul(&low_rank.a).unwrap();
        let weight = layer.base().weight().unwrap();
        let expected = (weight + (update * low_rank.scale).unwrap()).unwrap();
        let (merged, is_exact) = match merge {
            Merge::Exact(merged) => (merged, true),
            Merge::Approximate(merged) => (merged, false),
            Merge::InputDependent => panic!("{} does not merge", layer.path()),
        };
        assert_eq!((is_exact, low_rank.exact), (*exact, *exact));
        assert_close(&merged.weight, &expected, 1e-12);
    }
}

#[test]
fn block_shortcuts_merge_to_these_weights() {
    let check = |pre_num: i64, expected: [[f64; 4]; 2]| {
        let (layers, _) = toy(&json!({ "pre_num": pre_num }), DType::F64);
        let merged = layers.merged();
        assert_near(&numbers(&merged[1]), &expected[0], 1e-12);
        assert_near(&numbers(&merged[2]), &expected[1], 1e-12);
        assert_low_rank_is_merge(&layers, &[true; 3]);
    };
    check(-1, [[1.0, 1.0, 1.5, -0.5], [1.5, 0.0, 0.75, 1.0]]);
    check(1, [[1.0, 1.0, 1.5, -0.5], [0.5, 0.0, 0.75, 1.0]]);
}

#[test]
fn block_shortcuts_merge_exactly_at_random_sizes() {
    let mut stream = Key::new(31, Purpose::Test).site("sizes").stream();
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
        for pre_num in [0, 1, 3, -1] {
            for _ in 0..3 {
                let mut size =
                    |least: u64, most: u64| (least + stream.below(most - least)) as usize;
                let (n_out, n_in, rank, rows) = (size(9, 40), size(41, 70), size(2, 8), size(2, 7));
                let mut layers = Layers::random(&[(n_out, n_in); 5], dtype);
                let attached =
                    layers.adapt(&json!({ "r": rank, "lora_alpha": 3, "pre_num": pre_num }));
                randomise(&attached);
                let input = |i| {
                    random(&format!("x {i}"), &[rows, n_in])
                        .to_dtype(dtype)
                        .unwrap()
                };
                let inputs: Vec<Tensor> = (0..5).map(input).collect();
                let unmerged = layers.outputs(&inputs, &mut evaluation());
                let merged = layers
                    .folded()
                    .outputs(&inputs, &mut Pass::evaluation(Selection::none()));
                for (i, (got, expected)) in merged.iter().zip(&unmerged).enumerate() {
                    assert!(matches!(layers.merges()[i], Merge::Exact(_)));
                    assert_close(got, expected, tolerance);
                    // The stacked LoRA of the blocks that reach this one.
                    let layer = &layers.layers[i];
                    let stacked = layer.adapter(NAME).unwrap().low_rank().unwrap().unwrap();
                    let reached = usize::try_from(pre_num).map_or(i, |most| most.min(i));
                    assert_eq!(stacked.a.dims(), [(reached + 1) * rank, n_in]);
                    assert!(stacked.exact);
                    let plain = layer.base().forward_low_rank(
                        &inputs[i],
                        &stacked.a,
                        &stacked.b,
                        stacked.scale,
                    );
                    assert_close(&plain.unwrap(), expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn without_a_mode_only_heads_merge() {
    for (res_type, factor) in [("is", 2.0), ("ms", 1.0)] {
        let (layers, attached) = toy(&json!({ "res_type": res_type }), DType::F64);
        assert!(attached.controller.is_none());
        let merges = layers.merges();
        let [
            Merge::Exact(head),
            Merge::InputDependent,
            Merge::InputDependent,
        ] = &merges[..]
        else {
            panic!("{merges:?}")
        };
        // W_0 + 2 B_0 A_0, twice for the doubled input.
        assert_near(
            &numbers(&head.weight),
            &[1.0 + factor, 0.0, 0.0, 1.0],
            1e-12,
        );
        let low_rank = |i: usize| layers.layers[i].adapter(NAME).unwrap().low_rank().unwrap();
        assert!(low_rank(0).is_some_and(|head| head.exact));
        assert!(low_rank(1).is_none() && low_rank(2).is_none());
    }
}

#[test]
fn input_shortcuts_by_inputs() {
    let (layers, attached, h) = measured(&json!({ "res_type": "is", "merge": "bi" }));
    let squares = [6.25, 22.25, 43.5];
    for (i, square) in squares.into_iter().enumerate() {
        let norm = numbers(&param(&attached, i, "reslora_norm").value());
        assert_near(&norm, &[f64::sqrt(square)], 1e-12);
    }
    let expected = [2.0, 1.529_998_9, 1.715_188_3];
    assert_near(&factors(&layers, &attached), &expected, 1e-7);
    let merged = layers.merged();
    assert_near(
        &numbers(&merged[1]),
        &[0.0, 1.0, 1.764_999_5, -0.764_999_5],
        1e-6,
    );
    assert_near(
        &numbers(&merged[2]),
        &[0.142_405_9, -0.715_188_3, 0.428_797_1, 1.857_594_1],
        1e-6,
    );
    let folded = layers.folded();
    let got = folded.run(&layers.x, &mut Pass::evaluation(Selection::none()));
    assert_near(
        &numbers(&got),
        &[-2.407_871_7, 7.851_435_1, 4.131_683, -10.332_088_7],
        1e-6,
    );
    assert_near(&[relative_error(&got, &h)], &[0.3120], 5e-5);
    assert_low_rank_is_merge(&layers, &[true, false, false]);

    // Without the shortcut, which is LoRA: worse.
    let (plain, _) = toy(&json!({ "pre_num": 0 }), DType::F64);
    let dropped = plain.run(&layers.x, &mut evaluation());
    assert_near(&[relative_error(&dropped, &h)], &[0.5513], 5e-5);
}

#[test]
fn input_shortcuts_by_weights() {
    let (layers, attached) = toy(&json!({ "res_type": "is", "merge": "bw" }), DType::F64);
    assert!(attached.controller.is_none());
    let base = |layers: &Layers| -> Vec<Tensor> {
        let layers = layers.layers.iter();
        layers
            .map(|layer| layer.base().weight().unwrap().copy().unwrap())
            .collect()
    };
    let before = base(&layers);
    let merged = layers.merged();
    assert_near(&numbers(&merged[0]), &[3.0, 0.0, 0.0, 1.0], 1e-12);
    assert_near(&numbers(&merged[1]), &[0.0, 1.0, 2.0, -1.0], 1e-12);
    assert_near(
        &numbers(&merged[2]),
        &[-0.145_497_2, -1.290_994_4, 0.572_748_6, 2.145_497_2],
        1e-7,
    );
    let expected = [2.0, 2.0, 1.0 + (10f64 / 6.0).sqrt()];
    assert_near(&factors(&layers, &attached), &expected, 1e-12);
    assert_low_rank_is_merge(&layers, &[true, false, false]);
    for (before, after) in before.iter().zip(base(&layers)) {
        assert_same_bits(&after, before);
    }
    let h = layers.run(&layers.x, &mut evaluation());
    let got = layers
        .folded()
        .run(&layers.x, &mut Pass::evaluation(Selection::none()));
    // Worse than no merge here: a heuristic.
    assert_near(&[relative_error(&got, &h)], &[0.8527], 5e-5);

    let error = layers.layers[2]
        .merge(&mut evaluation())
        .err()
        .map(|error| error.to_string());
    let expected = "model.layers.2.self_attn.q_proj: `merge = \"bw\"` needs the merged weights of the layers before, and \
                    they were not merged in this pass";
    assert_eq!(error.as_deref(), Some(expected));
}

/// Both ways to the norms of merged weights, where no matrix is square and the chain is long enough for α to move.
#[test]
fn norms_of_merged_weights_need_no_merged_weights() {
    let mut layers = Layers::random(&[(7, 5); 6], DType::F64);
    let attached =
        layers.adapt(&json!({ "r": 3, "lora_alpha": 2, "res_type": "is", "merge": "bw" }));
    randomise(&attached);
    assert_low_rank_is_merge(&layers, &[true, false, false, false, false, false]);
    let merged = layers.merged();
    let norm = |i: usize| {
        numbers(&merged[i])
            .iter()
            .map(|x| x * x)
            .sum::<f64>()
            .sqrt()
    };
    let found = factors(&layers, &attached);
    for (i, found) in found.iter().enumerate().skip(2) {
        assert_near(&[*found], &[1.0 + norm(i - 2) / norm(i - 1)], 1e-12);
    }
}

#[test]
fn middle_shortcuts_by_inputs() {
    let keys = json!({ "res_type": "ms", "pre_num": 1, "merge": "bi" });
    let (layers, attached, h) = measured(&keys);
    for (i, square) in [2.0, 6.25, 24.5].into_iter().enumerate() {
        let norm = numbers(&param(&attached, i, "reslora_norm").value());
        assert_near(&norm, &[f64::sqrt(square)], 1e-12);
    }
    let expected = [1.0, 1.565_685_4, 1.505_076_3];
    assert_near(&factors(&layers, &attached), &expected, 1e-7);
    let got = layers
        .folded()
        .run(&layers.x, &mut Pass::evaluation(Selection::none()));
    assert_near(&[relative_error(&got, &h)], &[0.1930], 5e-5);
    assert_low_rank_is_merge(&layers, &[true, false, false]);

    let (layers, attached, _) = measured(&json!({ "res_type": "ms", "merge": "bi" }));
    assert_near(&factors(&layers, &attached)[2..], &[1.790_790_6], 1e-7);
}

#[test]
fn middle_shortcuts_by_weights() {
    let keys = json!({ "res_type": "ms", "pre_num": 1, "merge": "bw" });
    let (layers, attached, h) = measured(&keys);
    for (i, norm) in [2.5, 3.5, 4.956_056_9].into_iter().enumerate() {
        let found = numbers(&param(&attached, i, "reslora_norm").value());
        assert_near(&found, &[norm], 1e-7);
    }
    let a = |i: usize| {
        let adapter = layers.layers[i].adapter(NAME).unwrap();
        numbers(&adapter.low_rank().unwrap().unwrap().a)
    };
    assert_near(&a(0), &[1.0, 0.0], 1e-12);
    assert_near(&a(1), &[1.714_285_7, -1.0], 1e-7);
    assert_near(&a(2), &[1.206_206_6, 0.293_793_4], 1e-7);
    let got = layers
        .folded()
        .run(&layers.x, &mut Pass::evaluation(Selection::none()));
    assert_near(&[relative_error(&got, &h)], &[0.7302], 5e-5);
    assert_low_rank_is_merge(&layers, &[true, false, false]);
}

/// Two layers that saw these inputs in one training pass: the second's output merged and unmerged, and its 1 + α.
fn two(keys: &Value, inputs: &[Tensor; 2]) -> (Tensor, Tensor, f64) {
    let n_in = inputs[0].dim(1).unwrap();
    let mut layers = Layers::random(&[(5, n_in); 2], DType::F64);
    let mut attached = layers.adapt(keys);
    randomise(&attached);
    let mut pass = training();
    layers.outputs(inputs, &mut pass);
    let records = pass.take_records();
    observe(&mut attached, &records);
    let expected = layers.outputs(inputs, &mut evaluation()).swap_remove(1);
    let plain = &mut Pass::evaluation(Selection::none());
    let got = layers.folded().outputs(inputs, plain).swap_remove(1);
    let factor = factors(&layers, &attached)[1];
    (got, expected, factor)
}

#[test]
fn proportional_inputs_merge_exactly() {
    let x = random("x", &[3, 4]);
    let times = |factor: f64| (&x * factor).unwrap();
    let keys = |rest: Value| {
        let mut keys = json!({ "r": 2, "lora_alpha": 3 });
        let rest = rest.as_object().unwrap().clone();
        keys.as_object_mut().unwrap().extend(rest);
        keys
    };
    let by_inputs = keys(json!({ "res_type": "is", "merge": "bi" }));
    let (got, expected, factor) = two(&by_inputs, &[x.clone(), times(0.25)]);
    assert_near(&[factor], &[5.0], 1e-12);
    assert_close(&got, &expected, 1e-10);

    // A norm has no sign: the documented limit.
    let (got, expected, factor) = two(&by_inputs, &[x.clone(), times(-0.25)]);
    assert_near(&[factor], &[5.0], 1e-12);
    assert!(relative_error(&got, &expected) > 0.3);

    let stacked = keys(json!({ "res_type": "ms", "merge": "bw" }));
    let (got, expected, _) = two(&stacked, &[times(2.5), x.clone()]);
    assert_close(&got, &expected, 1e-10);

    // One token and rank 1: u is a number, and its sign is turned to that of the first layer's.
    let middle = json!({ "r": 1, "lora_alpha": 3, "res_type": "ms", "merge": "bi" });
    let token = |what: &str| random(what, &[1, 4]);
    let turned = [1.0, -1.0].map(|sign| {
        let (got, expected, _) = two(&middle, &[token("one"), (token("other") * sign).unwrap()]);
        relative_error(&got, &expected)
    });
    assert!(turned[0].min(turned[1]) < 1e-10, "{turned:?}");
    assert!(turned[0].max(turned[1]) > 1e-3, "{turned:?}");
}

#[test]
fn means_of_norms_are_divided_and_padding_is_left_out() {
    let mut layers = Layers::random(&[(5, 4); 2], DType::F64);
    let mut attached = layers.adapt(&json!({ "r": 2, "res_type": "is", "merge": "bi" }));
    randomise(&attached);
    assert_near(&factors(&layers, &attached), &[2.0, 2.0], 1e-12);
    let of_norm = |norm: f64| {
        let x = random("x", &[3, 4]);
        let length = numbers(&x).iter().map(|x| x * x).sum::<f64>().sqrt();
        (x * (norm / length)).unwrap()
    };
    for norms in [[3.0, 4.0], [0.0, 0.0], [5.0, 8.0]] {
        let mut pass = training();
        layers.outputs(&norms.map(of_norm), &mut pass);
        let records = pass.take_records();
        assert_eq!(records.len(), 2);
        observe(&mut attached, &records);
    }
    // A ratio of means; a norm of 0 says nothing.
    assert_near(&factors(&layers, &attached), &[2.0, 1.0 + 4.0 / 6.0], 1e-12);

    // What is exported can be merged after loading.
    let exported = attached.exported().unwrap();
    let mut loaded = Layers::random(&[(5, 4); 2], DType::F64);
    let start = Start::Saved {
        tensors: exported.tensors.into_iter().collect(),
        seed: 1,
    };
    let again = attach(&mut loaded, NAME, &exported.config, start).unwrap();
    assert_near(&factors(&loaded, &again), &[2.0, 1.0 + 4.0 / 6.0], 1e-12);
    assert_same_bits(&loaded.merged()[1], &layers.merged()[1]);

    // An evaluation measures nothing; nor does padding count.
    let mut pass = evaluation();
    layers.outputs(&[of_norm(2.0), of_norm(3.0)], &mut pass);
    assert!(pass.take_records().is_empty());
    let weights = vec![random("W", &[4, 4]); 2];
    let mut square = Layers::new(random("x", &[5, 4]), weights);
    let attached = square.adapt(&json!({ "r": 2, "res_type": "is", "merge": "bi" }));
    randomise(&attached);
    let share = Share {
        token: 1.0,
        auxiliary: 1.0,
    };
    let batch = tokens(3, 5);
    let trained = attached.trained();
    let swept = sweep(
        &square,
        &batch,
        &mut training(),
        &trained,
        share,
        Memory::Keep,
    )
    .unwrap();
    let real = numbers(&square.x.narrow(0, 0, 3).unwrap());
    let norm = real.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert_near(&numbers(&swept.records[0].2), &[norm], 1e-12);
}
