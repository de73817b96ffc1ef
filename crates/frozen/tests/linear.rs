//! The frozen layer against its composed form: values, gradients, and what is refused.

#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::{DType, Device, Tensor, Var};
use lowrank_frozen::{Compute, Direction, FrozenLinear};
use lowrank_ops as ops;
use lowrank_ops::gemm::Before;
use lowrank_ops::rng::{Key, Purpose};

fn random(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let mut stream = Key::new(11, Purpose::Test).site(name).stream();
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| stream.normal())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(ours: &Tensor, oracle: &Tensor, tolerance: f64) {
    assert_eq!(ours.dims(), oracle.dims());
    for (a, b) in values(ours).into_iter().zip(values(oracle)) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} {b}");
    }
}

/// x W^T + h B^T + bias with candle's own operations.
fn composed(x: &Tensor, w: &Tensor, bias: &Tensor, h: &Tensor, b: &Tensor) -> Tensor {
    let product = |x: &Tensor, w: &Tensor| {
        let n = x.dims().last().copied().unwrap();
        let rows = x.reshape(((), n)).unwrap();
        let y = rows.matmul(&w.t().unwrap().contiguous().unwrap()).unwrap();
        let mut dims = x.dims().to_vec();
        *dims.last_mut().unwrap() = w.dims()[0];
        y.reshape(dims).unwrap()
    };
    (product(x, w) + product(h, b))
        .unwrap()
        .broadcast_add(bias)
        .unwrap()
}

#[test]
fn outputs_and_gradients_equal_the_composed_form() {
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F64, 1e-12)] {
        for (lead, n_in, n_out, rank) in [
            (vec![7], 13, 5, 3),
            (vec![2, 9], 24, 31, 2),
            (vec![3, 1, 4], 6, 17, 5),
        ] {
            let shape = |last| [lead.clone(), vec![last]].concat();
            let var =
                |name, shape: &[usize]| Var::from_tensor(&random(name, shape, dtype)).unwrap();
            let (x, h, b) = (
                var("x", &shape(n_in)),
                var("h", &shape(rank)),
                var("b", &[n_out, rank]),
            );
            let bias = var("bias", &[n_out]);
            let w = random("w", &[n_out, n_in], dtype);
            let g = random("g", &shape(n_out), dtype);
            let layer = FrozenLinear::new(w.clone(), None)
                .unwrap()
                .with_bias(Some(bias.as_tensor().clone()));

            let ours = layer.forward_plus(&x, &h, &b).unwrap();
            let oracle = composed(&x, &w, &bias, &h, &b);
            assert_close(&ours, &oracle, tolerance);

            let leaves = [&x, &h, &b, &bias];
            let back = |y: &Tensor| {
                let root = ops::Seed::apply(y, &g).unwrap();
                ops::backward(&root, &[], &leaves).unwrap().1
            };
            for (ours, oracle) in back(&ours).into_iter().zip(back(&oracle)) {
                assert_close(&ours.unwrap(), &oracle.unwrap(), tolerance);
            }

            // Alone: the same with h = 0.
            let alone = layer.forward(&x).unwrap();
            let zero = h.zeros_like().unwrap();
            assert_close(&alone, &composed(&x, &w, &bias, &zero, &b), tolerance);
            let ours = back(&alone);
            let oracle = back(&composed(&x, &w, &bias, &zero, &b));
            assert_close(
                ours[0].as_ref().unwrap(),
                oracle[0].as_ref().unwrap(),
                tolerance,
            );
            assert!(ours[1].is_none() && ours[2].is_none());
            assert_close(
                ours[3].as_ref().unwrap(),
                oracle[3].as_ref().unwrap(),
                tolerance,
            );
        }
    }
}

/// Every form a weight is held in, with and without dropout: values, and the gradients of x, A, B and the bias.
#[test]
fn the_low_rank_path_equals_its_parts() {
    for (held, dtype, tolerance) in [
        (DType::F32, DType::F32, 1e-4),
        (DType::F64, DType::F64, 1e-12),
        (DType::F16, DType::F32, 1e-4),
        (DType::BF16, DType::F32, 1e-4),
    ] {
        for (lead, n_in, n_out, rank) in [
            (vec![7], 13, 5, 3),
            (vec![2, 9], 24, 31, 2),
            (vec![3, 1, 4], 6, 17, 5),
        ] {
            let shape = |last| [lead.clone(), vec![last]].concat();
            let var =
                |name, shape: &[usize]| Var::from_tensor(&random(name, shape, dtype)).unwrap();
            let x = var("x", &shape(n_in));
            let (a, b) = (var("a", &[n_in, rank]), var("b", &[n_out, rank]));
            let bias = var("bias", &[n_out]);
            let w = random("w", &[n_out, n_in], DType::F64)
                .to_dtype(held)
                .unwrap();
            let g = random("g", &shape(n_out), dtype);
            let layer = FrozenLinear::new(w, None)
                .unwrap()
                .with_bias(Some(bias.as_tensor().clone()));
            let key = Key::new(5, Purpose::Test).site("dropped");
            let back = |y: &Tensor| {
                let root = ops::Seed::apply(y, &g).unwrap();
                let grads = ops::backward(&root, &[], &[&x, &a, &b, &bias]).unwrap().1;
                grads.into_iter().map(Option::unwrap).collect::<Vec<_>>()
            };
            for p in [0.0, 0.4] {
                // A has other strides than a fresh tensor.
                let view = a.as_tensor().t().unwrap();
                let ours = if p == 0.0 {
                    layer.forward_low_rank(&x, &view, &b, 1.75)
                } else {
                    let dropout = ops::Dropout::new(p, key).unwrap();
                    layer.forward_low_rank_dropped(&x, &view, &b, 1.75, dropout)
                };
                let ours = ours.unwrap();
                let dropped = ops::dropout(&x, p, key).unwrap();
                let update = ops::low_rank(&dropped, &view, &b, 1.75).unwrap();
                let oracle = (layer.forward(&x).unwrap() + update).unwrap();
                assert_close(&ours, &oracle, tolerance);
                for (ours, oracle) in back(&ours).iter().zip(&back(&oracle)) {
                    assert_close(ours, oracle, tolerance);
                }
            }
        }
    }
}

/// Values, and the gradients of x, A and the bias, beside those of an update whose B picks the outputs.
#[test]
fn the_path_to_some_outputs_equals_the_low_rank_path() {
    for (held, dtype, tolerance) in [
        (DType::F32, DType::F32, 1e-4),
        (DType::F64, DType::F64, 1e-12),
        (DType::BF16, DType::F32, 1e-4),
    ] {
        for (lead, n_in, outputs) in [
            (vec![7], 13, &[4u32, 0, 2][..]),
            (vec![2, 9], 24, &[1, 3]),
            (vec![3, 1, 4], 6, &[2, 2, 0, 4]),
        ] {
            let (n_out, rank) = (5, outputs.len());
            let shape = |last| [lead.clone(), vec![last]].concat();
            let var =
                |name, shape: &[usize]| Var::from_tensor(&random(name, shape, dtype)).unwrap();
            let (x, a) = (var("x", &shape(n_in)), var("a", &[n_in, rank]));
            let bias = var("bias", &[n_out]);
            let w = random("w", &[n_out, n_in], DType::F64)
                .to_dtype(held)
                .unwrap();
            let g = random("g", &shape(n_out), dtype);
            let mut b = vec![0f64; n_out * rank];
            for (slot, output) in outputs.iter().enumerate() {
                b[*output as usize * rank + slot] = 1.0;
            }
            let b = Tensor::from_vec(b, (n_out, rank), &Device::Cpu).unwrap();
            let b = b.to_dtype(dtype).unwrap();
            let layer = FrozenLinear::new(w, None)
                .unwrap()
                .with_bias(Some(bias.as_tensor().clone()));
            let back = |y: &Tensor| {
                let root = ops::Seed::apply(y, &g).unwrap();
                let grads = ops::backward(&root, &[], &[&x, &a, &bias]).unwrap().1;
                grads.into_iter().map(Option::unwrap).collect::<Vec<_>>()
            };
            for p in [0.0, 0.4] {
                let view = a.as_tensor().t().unwrap();
                let key = Key::new(5, Purpose::Test).site("dropped");
                let dropout = (p > 0.0).then(|| ops::Dropout::new(p, key).unwrap());
                let ours = layer.forward_low_rank_at(&x, &view, outputs, 1.75, dropout);
                let ours = ours.unwrap();
                let oracle = match dropout {
                    None => layer.forward_low_rank(&x, &view, &b, 1.75),
                    Some(dropout) => layer.forward_low_rank_dropped(&x, &view, &b, 1.75, dropout),
                };
                let oracle = oracle.unwrap();
                assert_close(&ours, &oracle, tolerance);
                for (ours, oracle) in back(&ours).iter().zip(&back(&oracle)) {
                    assert_close(ours, oracle, tolerance);
                }
            }
        }
    }
}

#[test]
fn the_low_rank_path_is_its_formula() {
    let (x, a, b) = (
        random("x", &[2, 5, 12], DType::F64),
        random("a", &[3, 12], DType::F64),
        random("b", &[7, 3], DType::F64),
    );
    let layer = FrozenLinear::new(
        random("w", &[7, 12], DType::F64),
        Some(random("c", &[7], DType::F64)),
    )
    .unwrap();
    let ours = layer.forward_low_rank(&x, &a, &b, 1.75).unwrap();
    let oracle = (layer.forward(&x).unwrap() + ops::low_rank(&x, &a, &b, 1.75).unwrap()).unwrap();
    assert_close(&ours, &oracle, 1e-12);
}

#[test]
fn untracked_arguments_get_no_gradient_and_no_graph() {
    let layer = FrozenLinear::new(random("w", &[7, 12], DType::F32), None).unwrap();
    let x = random("x", &[5, 12], DType::F32);
    let h = random("h", &[5, 2], DType::F32);
    let b = Var::from_tensor(&random("b", &[7, 2], DType::F32)).unwrap();
    assert!(!layer.forward(&x).unwrap().track_op());
    let y = layer.forward_plus(&x, &h, &b).unwrap();
    let root = ops::Seed::apply(&y, &y.ones_like().unwrap()).unwrap();
    let (_, grads) = ops::backward(&root, &[], &[&b]).unwrap();
    // dB = 1^T h: every row is the column sums of h.
    let sums = h.sum(0).unwrap().broadcast_as((7, 2)).unwrap();
    assert_close(grads[0].as_ref().unwrap(), &sums, 1e-5);
}

#[test]
fn strided_inputs_are_read_in_order() {
    let layer = FrozenLinear::new(random("w", &[7, 12], DType::F32), None).unwrap();
    let wide = random("x", &[12, 20], DType::F32);
    let strided = wide.t().unwrap().narrow(0, 3, 6).unwrap();
    assert!(!strided.is_contiguous());
    let copy = strided.force_contiguous().unwrap();
    assert_eq!(
        values(&layer.forward(&strided).unwrap()),
        values(&layer.forward(&copy).unwrap())
    );
}

#[test]
fn a_weight_is_shared_and_never_copied() {
    let table = random("table", &[29, 6], DType::F32);
    let head = FrozenLinear::new(table.clone(), None).unwrap();
    let address = |tensor: &Tensor| ops::data::<f32>(tensor).unwrap().as_ptr();
    assert_eq!(address(&head.weight().unwrap()), address(&table));
    assert_eq!(
        address(&head.with_bias(None).weight().unwrap()),
        address(&table)
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let layer = FrozenLinear::new(random("w", &[7, 12], DType::F32), None).unwrap();
    let t = |shape: &[usize]| random("t", shape, DType::F32);
    let message = |result: lowrank_frozen::Result<Tensor>| result.unwrap_err().to_string();
    assert_eq!(
        message(layer.forward(&t(&[3, 11]))),
        "FrozenLinear: x has shape [3, 11], expected (.., 12)"
    );
    assert_eq!(
        message(layer.forward_plus(&t(&[3, 12]), &t(&[2, 4]), &t(&[7, 4]))),
        "FrozenLinear: h has shape [2, 4], expected [3] and a rank"
    );
    assert_eq!(
        message(layer.forward_plus(&t(&[3, 12]), &t(&[3, 4]), &t(&[7, 5]))),
        "FrozenLinear: B has shape [7, 5], expected [7, 4]"
    );
    assert_eq!(
        message(layer.forward(&random("x", &[3, 12], DType::F64))),
        "FrozenLinear: x has dtype f64, the weight has f32"
    );
    assert_eq!(
        message(layer.forward_low_rank_at(&t(&[3, 12]), &t(&[3, 12]), &[1, 2], 2.0, None)),
        "FrozenLinear: A has shape [3, 12], expected [2, 12]"
    );
    assert_eq!(
        message(layer.forward_low_rank_at(&t(&[3, 12]), &t(&[2, 12]), &[1, 7], 2.0, None)),
        "FrozenLinear::forward_low_rank_at: index 7 is out of range, the table has 7 rows"
    );
    assert_eq!(
        message(FrozenLinear::absent(7, 12).forward(&t(&[3, 12]))),
        "the weight [7, 12] was not loaded, only its shape is known"
    );
    let integers = t(&[7, 12]).to_dtype(DType::U32).unwrap();
    let error = FrozenLinear::new(integers, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "FrozenLinear: dtype u32 is not supported, expected f32, f64, f16 or bf16"
    );
    let error = FrozenLinear::new(t(&[7, 12]), Some(t(&[12])))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "FrozenLinear: the bias has shape [12], expected [7]");
}

#[test]
fn bf16_products_are_those_of_rounded_numbers() {
    let rounded = |name: &str, shape: &[usize]| {
        let drawn = random(name, shape, DType::BF16);
        drawn.to_dtype(DType::F32).unwrap()
    };
    let (rows, n_in, n_out, rank) = (37, 70, 45, 3);
    let x = Var::from_tensor(&rounded("x", &[rows, n_in])).unwrap();
    let g = rounded("g", &[rows, n_out]);
    let var = |name, shape: &[usize]| Var::from_tensor(&random(name, shape, DType::F32)).unwrap();
    let (a, b) = (var("a", &[rank, n_in]), var("b", &[n_out, rank]));
    let w = random("w", &[n_out, n_in], DType::F32);
    let twin = FrozenLinear::new(w.to_dtype(DType::BF16).unwrap(), None).unwrap();
    let layer = FrozenLinear::new(w, None)
        .unwrap()
        .with_compute(Compute::Bf16);
    assert_eq!(layer.compute(), Compute::Bf16);
    assert_eq!(layer.with_bias(None).compute(), Compute::Bf16);
    let run = |layer: &FrozenLinear| {
        let y = layer.forward_low_rank(&x, &a, &b, 1.5).unwrap();
        let root = ops::Seed::apply(&y, &g).unwrap();
        let grads = ops::backward(&root, &[], &[&x, &a, &b]).unwrap().1;
        let grads = grads.into_iter().map(Option::unwrap);
        std::iter::once(y.detach()).chain(grads).collect::<Vec<_>>()
    };
    for (ours, oracle) in run(&layer).iter().zip(&run(&twin)) {
        assert_close(ours, oracle, 1e-4);
    }

    // The same over slices, added to what is there.
    let y = values(&twin.forward(&x).unwrap());
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut into = vec![2f32; rows * n_out];
    layer
        .product_into(
            Direction::Forward,
            &flat(&x),
            rows,
            Before::Added,
            &mut into,
        )
        .unwrap();
    for (ours, oracle) in into.iter().zip(&y) {
        let oracle = oracle + 2.0;
        assert!((f64::from(*ours) - oracle).abs() <= 1e-4 * oracle.abs().max(1.0));
    }
    let short = layer.product_into(
        Direction::Backward,
        &flat(&x),
        rows,
        Before::Ignored,
        &mut into,
    );
    assert!(short.is_err());
}

#[test]
fn an_f64_weight_is_computed_with_in_f64_whatever_is_chosen() {
    let (x, w) = (
        random("x", &[9, 21], DType::F64),
        random("w", &[13, 21], DType::F64),
    );
    let layer = FrozenLinear::new(w, None).unwrap();
    let y = layer.forward(&x).unwrap();
    let layer = layer.with_compute(Compute::Bf16);
    assert_eq!(values(&layer.forward(&x).unwrap()), values(&y));
    let refused = layer.product_into(
        Direction::Forward,
        &[0.0; 21],
        1,
        Before::Ignored,
        &mut [0.0; 13],
    );
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("f64"), "{message}");
}

/// As on a GPU, where candle multiplies and no kernel of ours runs; a choice of bf16 is refused there.
#[test]
fn all_of_it_holds_of_composed_functions() {
    let variable = lowrank_ops::composed::VARIABLE;
    if std::env::var_os(variable).is_some() {
        return;
    }
    let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
    let output = tests
        .env(variable, "composed")
        .args(["--skip", "bf16_products_are_those_of_rounded_numbers"])
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}
