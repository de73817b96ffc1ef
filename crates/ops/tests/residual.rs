//! Sums of a residual, alone and together with the norm that follows.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod twins;

use candle_core::{DType, Device, Tensor};
use lowrank_ops as ops;
use ops::composed;
use support::{check, normal, numbers, stream};

#[test]
fn add() {
    for shape in [&[3, 4, 5][..], &[6, 17], &[9]] {
        let fused = |x: &[Tensor]| ops::add(&x[0], &x[1]);
        check("add", &[shape, shape], &fused, &|x| Ok((&x[0] + &x[1])?));
    }
    // Longer than what one thread gets.
    let random = &mut stream("long");
    for dtype in [DType::F32, DType::F64] {
        let [x, y] = [0, 1].map(|_| normal(random, &[3, 2999], dtype));
        let sum = ops::add(&x, &y).unwrap();
        assert_eq!(numbers(&sum), numbers(&(&x + &y).unwrap()));
    }
}

#[test]
fn a_tensor_may_be_added_to_itself() {
    let x = ops::leaf(&normal(&mut stream("itself"), &[2, 3], DType::F32)).unwrap();
    let loss = ops::sum_all(&ops::add(&x, &x).unwrap()).unwrap();
    let (_, grads) = ops::backward(&loss, &[], &[&x]).unwrap();
    assert_eq!(numbers(grads[0].as_ref().unwrap()), [2.0; 6]);
}

/// The sum, the norm, or both side by side, of `add_rms_norm` and of its parts.
fn outputs(sum: Tensor, normed: Tensor, which: [bool; 2]) -> ops::Result<Tensor> {
    let last = sum.rank() - 1;
    Ok(match which {
        [true, false] => sum,
        [false, _] => normed,
        _ => Tensor::cat(&[sum, normed], last)?,
    })
}

#[test]
fn add_rms_norm() {
    for shape in [&[2, 3, 5][..], &[4, 67], &[9], &[35, 3]] {
        let shapes: [&[usize]; 3] = [shape, shape, &shape[shape.len() - 1..]];
        // The sum alone does not depend on the weight, so it goes through the check of `add` below.
        for which in [[false, true], [true, true]] {
            let fused = |x: &[Tensor]| {
                let (sum, normed) = ops::add_rms_norm(&x[0], &x[1], &x[2], 0.3)?;
                outputs(sum, normed, which)
            };
            let twin = |x: &[Tensor]| {
                let sum = (&x[0] + &x[1])?;
                let normed = composed::rms_norm(&sum, &x[2], 0.3)?;
                outputs(sum, normed, which)
            };
            check("add_rms_norm", &shapes, &fused, &twin);
        }
    }
}

#[test]
fn the_sum_of_add_rms_norm_is_that_of_add() {
    let random = &mut stream("sum alone");
    for dtype in [DType::F32, DType::F64] {
        let [x, y] = [0, 1].map(|_| ops::leaf(&normal(random, &[5, 7], dtype)).unwrap());
        let weight = ops::leaf(&normal(random, &[7], dtype)).unwrap();
        let upstream = normal(random, &[5, 7], dtype);
        let (sum, normed) = ops::add_rms_norm(&x, &y, &weight, 1e-5).unwrap();
        let plain = ops::add(&x, &y).unwrap();
        assert_eq!(numbers(&sum), numbers(&plain));
        let again = ops::rms_norm(&plain, &weight, 1e-5).unwrap();
        assert_eq!(numbers(&normed), numbers(&again));
        // With the norm dropped or not counting, the gradient passes through as it is, and the weight has none.
        let root = ops::Seed::apply(&sum, &upstream).unwrap();
        let (_, grads) = ops::backward(&root, &[], &[&x, &y, &weight]).unwrap();
        for grad in &grads[..2] {
            assert_eq!(numbers(grad.as_ref().unwrap()), numbers(&upstream));
        }
        assert!(grads[2].is_none());
    }
}

/// A residual stream that is used again after the norm: its gradient arrives from both outputs.
#[test]
fn a_stream_of_residuals_equals_its_parts() {
    let shapes: [&[usize]; 4] = [&[3, 6], &[3, 6], &[6], &[6]];
    let fused = |x: &[Tensor]| {
        let (stream, normed) = ops::add_rms_norm(&x[0], &x[1], &x[2], 0.2)?;
        let (stream, normed) = ops::add_rms_norm(&stream, &normed, &x[3], 0.2)?;
        ops::swiglu(&stream, &normed)
    };
    let twin = |x: &[Tensor]| {
        let stream = (&x[0] + &x[1])?;
        let normed = composed::rms_norm(&stream, &x[2], 0.2)?;
        let stream = (&stream + &normed)?;
        composed::swiglu(&stream, &composed::rms_norm(&stream, &x[3], 0.2)?)
    };
    check("add_rms_norm", &shapes, &fused, &twin);
}

#[test]
fn what_is_refused() {
    let random = &mut stream("refused");
    let mut draw = |dims: &[usize]| normal(random, dims, DType::F32);
    let (x, wide, weight) = (draw(&[2, 3]), draw(&[2, 4]), draw(&[3]));
    let message = |result: ops::Result<Tensor>| result.unwrap_err().to_string();
    assert_eq!(
        message(ops::add(&x, &wide)),
        "add: y has shape [2, 4], expected [2, 3]"
    );
    let normed = |x: &Tensor, y: &Tensor, weight: &Tensor, eps: f64| {
        ops::add_rms_norm(x, y, weight, eps).map(|(_, normed)| normed)
    };
    assert_eq!(
        message(normed(&x, &wide, &weight, 1e-5)),
        "add_rms_norm: y has shape [2, 4], expected [2, 3]"
    );
    assert_eq!(
        message(normed(&x, &x, &draw(&[2]), 1e-5)),
        "add_rms_norm: the weight has shape [2], expected [3]"
    );
    assert_eq!(
        message(normed(&x, &x, &weight, -0.5)),
        "add_rms_norm: eps is -0.5, expected a number of at least 0"
    );
    let empty = Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        message(normed(&empty, &empty, &empty, 1e-5)),
        "add_rms_norm: x has shape [2, 0], expected (.., n) with n > 0"
    );
}

#[test]
fn all_of_it_holds_of_the_twins() {
    twins::run_composed(&[]);
}
