//! The output layer together with its loss, against the logits and their loss one after the other.
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::{DType, Device, Tensor, Var};
use lowrank_frozen::{Compute, FrozenLinear};
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};

fn random(name: &str, shape: &[usize], scale: f64, dtype: DType) -> Tensor {
    let mut stream = Key::new(11, Purpose::Test).site(name).stream();
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| (stream.uniform() - 0.5) * scale)
        .collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Differences of at most `tolerance` times the largest number of the right side.
#[track_caller]
fn assert_close(ours: &[f64], oracle: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), oracle.len(), "{what}");
    let size = oracle.iter().fold(0f64, |size, x| size.max(x.abs()));
    for (at, (a, b)) in ours.iter().zip(oracle).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "{what} at {at}: {a} {b}");
    }
}

fn targets(rows: usize, n_out: usize) -> Vec<u32> {
    let mut stream = Key::new(3, Purpose::Test).stream();
    (0..rows)
        .map(|_| stream.below(n_out as u64) as u32)
        .collect()
}

/// Losses, and the gradient of x when the loss of row i counts (i mod 4) - 1.5 times.
fn run(
    x: &Tensor,
    losses: impl Fn(&Tensor) -> lowrank_frozen::Result<Tensor>,
) -> (Vec<f64>, Vec<f64>) {
    let x = Var::from_tensor(x).unwrap();
    let losses = losses(&x).unwrap();
    let rows = losses.dims1().unwrap();
    let weights: Vec<f64> = (0..rows).map(|row| (row % 4) as f64 - 1.5).collect();
    let weights = Tensor::new(weights, &Device::Cpu).unwrap();
    let root = ops::Seed::apply(&losses, &weights.to_dtype(x.dtype()).unwrap()).unwrap();
    let (_, grads) = ops::backward(&root, &[], &[&x]).unwrap();
    (values(&losses), values(grads[0].as_ref().unwrap()))
}

fn apart(layer: &FrozenLinear, x: &Tensor, targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    run(x, |x| Ok(ops::cross_entropy(&layer.forward(x)?, targets)?))
}

#[test]
fn losses_and_gradients_are_those_of_the_logits() {
    for (held, dtype, tolerance) in [
        (DType::F32, DType::F32, 5e-6),
        (DType::F64, DType::F64, 1e-13),
        (DType::BF16, DType::F32, 5e-6),
        (DType::F16, DType::F32, 5e-6),
    ] {
        for (rows, n_in, n_out) in [(1, 5, 7), (6, 33, 21), (45, 70, 131), (3, 16, 1000)] {
            let what = format!("{held:?} {rows} {n_in} {n_out}");
            let weight = random("w", &[n_out, n_in], 2.0, DType::F64)
                .to_dtype(held)
                .unwrap();
            let x = random("x", &[rows, n_in], 3.0, dtype);
            let targets = targets(rows, n_out);
            let layer = FrozenLinear::new(weight, None).unwrap();
            let (losses, grad) = run(&x, |x| layer.cross_entropy(x, &targets));
            let (oracle, oracle_grad) = apart(&layer, &x, &targets);
            assert_close(&losses, &oracle, tolerance, &what);
            assert_close(&grad, &oracle_grad, tolerance, &format!("{what}, gradient"));

            // With a bias, which may be trained.
            let bias = Var::from_tensor(&random("bias", &[n_out], 1.0, dtype)).unwrap();
            let layer = layer.with_bias(Some(bias.as_tensor().clone()));
            let (losses, grad) = run(&x, |x| layer.cross_entropy(x, &targets));
            let (oracle, oracle_grad) = apart(&layer, &x, &targets);
            assert_close(&losses, &oracle, tolerance, &what);
            assert_close(&grad, &oracle_grad, tolerance, &format!("{what}, gradient"));
        }
    }
}

#[test]
fn smoothed_labels_give_the_losses_and_gradients_of_the_logits() {
    for (held, dtype, tolerance) in [
        (DType::F32, DType::F32, 5e-6),
        (DType::F64, DType::F64, 1e-13),
        (DType::BF16, DType::F32, 5e-6),
    ] {
        for (rows, n_in, n_out, smoothing) in [(6, 33, 21, 0.1), (45, 70, 131, 0.6)] {
            let what = format!("{held:?} {rows} {n_in} {n_out} {smoothing}");
            let weight = random("w", &[n_out, n_in], 2.0, held);
            let x = random("x", &[rows, n_in], 3.0, dtype);
            let targets = targets(rows, n_out);
            let layer = FrozenLinear::new(weight, None).unwrap();
            let ours = |x: &Tensor| layer.smoothed_cross_entropy(x, &targets, smoothing);
            let (losses, grad) = run(&x, ours);
            let (oracle, oracle_grad) = run(&x, |x| {
                let logits = layer.forward(x)?;
                Ok(ops::composed::smoothed_cross_entropy(
                    &logits, &targets, smoothing,
                )?)
            });
            assert_close(&losses, &oracle, tolerance, &what);
            assert_close(&grad, &oracle_grad, tolerance, &format!("{what}, gradient"));
            let (plain, _) = apart(&layer, &x, &targets);
            assert!(
                losses.iter().zip(&plain).all(|(a, b)| (a - b).abs() > 1e-3),
                "{what}"
            );
            // With a bias, and with differences in f64.
            if held == DType::F64 {
                let bias = random("bias", &[n_out], 1.0, dtype);
                let layer = layer.clone().with_bias(Some(bias));
                let total = |x: &Tensor| {
                    let losses = layer
                        .smoothed_cross_entropy(x, &targets, smoothing)
                        .unwrap();
                    let weigh = |(row, loss): (usize, f64)| ((row % 4) as f64 - 1.5) * loss;
                    values(&losses)
                        .into_iter()
                        .enumerate()
                        .map(weigh)
                        .sum::<f64>()
                };
                let (_, grad) = run(&x, |x| layer.smoothed_cross_entropy(x, &targets, smoothing));
                let mut numbers = values(&x);
                for at in [0, n_in + 1, rows * n_in - 1] {
                    let middle = numbers[at];
                    let mut at_value = |value: f64| {
                        numbers[at] = value;
                        total(&Tensor::from_slice(&numbers, x.shape(), &Device::Cpu).unwrap())
                    };
                    let slope = (at_value(middle + 1e-5) - at_value(middle - 1e-5)) / 2e-5;
                    numbers[at] = middle;
                    assert!(
                        (grad[at] - slope).abs() < 1e-7,
                        "{what}: {} {slope}",
                        grad[at]
                    );
                }
            }
        }
    }
}

/// Products in bf16 round their operands: the losses are those of the same rounded products, and gradients differ by
/// what it makes to round softmax before or after it is weighed.
#[test]
fn bf16_products_give_the_losses_of_their_logits() {
    let (rows, n_in, n_out) = (45, 70, 131);
    let targets = targets(rows, n_out);
    let x = random("x", &[rows, n_in], 3.0, DType::F32);
    for held in [DType::F32, DType::BF16] {
        let weight = random("w", &[n_out, n_in], 2.0, held);
        let plain = FrozenLinear::new(weight, None).unwrap();
        let layer = plain.clone().with_compute(Compute::Bf16);
        let (losses, grad) = run(&x, |x| layer.cross_entropy(x, &targets));
        let (oracle, oracle_grad) = apart(&layer, &x, &targets);
        assert_close(&losses, &oracle, 1e-5, "losses");
        assert_close(&grad, &oracle_grad, 1e-2, "gradient");
        let (exact, exact_grad) = apart(&plain, &x, &targets);
        assert_close(&losses, &exact, 1e-2, "losses beside f32's");
        assert_close(&grad, &exact_grad, 2e-2, "gradient beside f32's");
    }
}

/// So wide a head that seven rows fill the room for logits: nine are two parts, of five and four.
#[test]
fn logits_of_a_few_rows_at_a_time_give_the_same() {
    let (rows, n_in, n_out) = (9, 2, (1 << 21) + 17);
    let mut targets = targets(rows, n_out);
    (targets[4], targets[5]) = (0, n_out as u32 - 1);
    for (held, dtype, tolerance) in [
        (DType::F32, DType::F32, 1e-5),
        (DType::BF16, DType::F32, 1e-5),
        (DType::F64, DType::F64, 1e-12),
    ] {
        let x = random("x", &[rows, n_in], 6.0, dtype);
        let weight = random("w", &[n_out, n_in], 4.0, held);
        let layer = FrozenLinear::new(weight, None).unwrap();
        let (losses, grad) = run(&x, |x| layer.cross_entropy(x, &targets));
        let (mut oracle, mut oracle_grad) = (Vec::new(), Vec::new());
        // Four at a time, which begins with the weight of the first again.
        for first in (0..rows).step_by(4) {
            let count = 4.min(rows - first);
            let x = x.narrow(0, first, count).unwrap();
            let (losses, grad) = apart(&layer, &x, &targets[first..first + count]);
            oracle.extend(losses);
            oracle_grad.extend(grad);
        }
        assert_close(&losses, &oracle, tolerance, &format!("{held:?}"));
        let what = format!("{held:?}, gradient");
        assert_close(&grad, &oracle_grad, tolerance, &what);
    }
}

#[test]
fn inputs_may_be_strided_and_untracked() {
    let (rows, n_in, n_out) = (9, 12, 31);
    let wide = random("x", &[n_in, rows + 4], 3.0, DType::F32);
    let strided = wide.t().unwrap().narrow(0, 2, rows).unwrap();
    assert!(!strided.is_contiguous());
    let layer = FrozenLinear::new(random("w", &[n_out, n_in], 2.0, DType::F32), None).unwrap();
    let targets = targets(rows, n_out);
    let losses = layer.cross_entropy(&strided, &targets).unwrap();
    assert!(!losses.track_op());
    let copy = strided.force_contiguous().unwrap();
    assert_eq!(
        values(&losses),
        values(&layer.cross_entropy(&copy, &targets).unwrap())
    );
    let none = copy.narrow(0, 0, 0).unwrap();
    assert_eq!(layer.cross_entropy(&none, &[]).unwrap().dims(), [0]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let layer = FrozenLinear::new(random("w", &[7, 12], 1.0, DType::F32), None).unwrap();
    let x = random("x", &[2, 12], 1.0, DType::F32);
    let message = |x: &Tensor, targets: &[u32]| {
        let result = layer.cross_entropy(x, targets);
        result.unwrap_err().to_string()
    };
    assert_eq!(
        message(&x, &[1, 7]),
        "FrozenLinear::cross_entropy: index 7 is out of range, the table has 7 rows"
    );
    assert_eq!(
        message(&x, &[1, 2, 3]),
        "FrozenLinear: x has shape [2, 12], expected [3, 12]"
    );
    assert_eq!(
        message(&x.to_dtype(DType::F64).unwrap(), &[1, 2]),
        "FrozenLinear: x has dtype f64, the weight has f32"
    );
}
