//! Every differentiable function against its composed twin and against differences.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod twins;

use candle_core::{DType, Device, Tensor};
use lowrank_ops as ops;
use ops::composed;
use ops::rng::{Key, Purpose};
use ops::{RotaryScaling, RotaryTable, Second};
use support::{assert_close, check, normal, numbers, stream};

#[test]
fn linear() {
    let shapes: [&[usize]; 2] = [&[2, 3, 7], &[5, 7]];
    let fused = |x: &[Tensor]| ops::linear(&x[0], &x[1], None);
    check("linear", &shapes, &fused, &|x| {
        composed::linear(&x[0], &x[1], None)
    });
    let vector: [&[usize]; 2] = [&[6], &[3, 6]];
    check("linear", &vector, &fused, &|x| {
        composed::linear(&x[0], &x[1], None)
    });
    let large: [&[usize]; 2] = [&[1, 67], &[33, 67]];
    check("linear", &large, &fused, &|x| {
        composed::linear(&x[0], &x[1], None)
    });
}

#[test]
fn linear_with_bias() {
    let shapes: [&[usize]; 3] = [&[4, 3], &[5, 3], &[5]];
    let fused = |x: &[Tensor]| ops::linear(&x[0], &x[1], Some(&x[2]));
    check("linear", &shapes, &fused, &|x| {
        composed::linear(&x[0], &x[1], Some(&x[2]))
    });
}

#[test]
fn low_rank() {
    for (rows, n_in, rank, n_out) in [(5, 7, 2, 6), (1, 9, 3, 4), (17, 33, 5, 19)] {
        let shapes: [&[usize]; 3] = [&[2, rows, n_in], &[rank, n_in], &[n_out, rank]];
        let fused = |x: &[Tensor]| ops::low_rank(&x[0], &x[1], &x[2], -1.75);
        check("low_rank", &shapes, &fused, &|x| {
            composed::low_rank(&x[0], &x[1], &x[2], -1.75)
        });
    }
}

#[test]
fn low_rank_of_rank_zero_is_zero() {
    let random = &mut stream("rank 0");
    let x = ops::leaf(&normal(random, &[4, 3], DType::F32)).unwrap();
    let a = ops::leaf(&normal(random, &[0, 3], DType::F32)).unwrap();
    let b = ops::leaf(&normal(random, &[5, 0], DType::F32)).unwrap();
    let y = ops::low_rank(&x, &a, &b, 2.0).unwrap();
    assert_eq!((y.dims(), numbers(&y)), (&[4, 5][..], vec![0.0; 20]));
    let loss = ops::sum_all(&y).unwrap();
    let (_, grads) = ops::backward(&loss, &[], &[&x, &a, &b]).unwrap();
    assert_eq!(numbers(grads[0].as_ref().unwrap()), [0.0; 12]);
    assert_eq!(grads[1].as_ref().unwrap().dims(), [0, 3]);
    assert_eq!(grads[2].as_ref().unwrap().dims(), [5, 0]);
}

#[test]
fn products_of_all_pairs() {
    for (r, s, n) in [(2, 3, 5), (4, 2, 67), (3, 3, 9)] {
        let shapes: [&[usize]; 2] = [&[r, n], &[s, n]];
        let fused = |x: &[Tensor]| ops::khatri_rao(&x[0], &x[1]);
        check("khatri_rao", &shapes, &fused, &|x| {
            composed::khatri_rao(&x[0], &x[1])
        });
        let shapes: [&[usize]; 2] = [&[n, r], &[n, s]];
        let fused = |x: &[Tensor]| ops::outer_rows(&x[0], &x[1]);
        check("outer_rows", &shapes, &fused, &|x| {
            composed::outer_rows(&x[0], &x[1])
        });
    }
}

#[test]
fn hadamard() {
    for (n_out, r, s, n_in) in [(5, 2, 3, 7), (33, 4, 4, 19)] {
        let shapes: [&[usize]; 4] = [&[n_out, r], &[r, n_in], &[n_out, s], &[s, n_in]];
        let fused = |x: &[Tensor]| ops::hadamard((&x[0], &x[1]), (&x[2], &x[3]), -1.75);
        check("hadamard", &shapes, &fused, &|x| {
            composed::hadamard((&x[0], &x[1]), (&x[2], &x[3]), -1.75)
        });
    }
}

#[test]
fn orthogonality() {
    fn frames(x: &[Tensor]) -> [ops::Frame<'_>; 3] {
        [
            ops::Frame::Rows(&x[0]),
            ops::Frame::Columns(&x[1]),
            ops::Frame::Rows(&x[2]),
        ]
    }
    for deviation in [ops::Deviation::Norm, ops::Deviation::Square] {
        let shapes: [&[usize]; 3] = [&[3, 7], &[35, 4], &[2, 5]];
        let fused = |x: &[Tensor]| ops::orthogonality(&frames(x), deviation);
        check("orthogonality", &shapes, &fused, &|x| {
            composed::orthogonality(&frames(x), deviation)
        });
    }
}

/// A A^T - I is [[1, 2], [2, 3]], whose norm is the root of 18. Where rows are orthonormal, or there are none, nothing
/// pulls.
#[test]
fn orthogonality_by_hand() {
    use ops::{Deviation, Frame};
    let a = Tensor::new(&[[1f64, 1.], [0., 2.]], &Device::Cpu).unwrap();
    let of = |frames: &[Frame<'_>], deviation| {
        let sum = ops::orthogonality(frames, deviation).unwrap();
        sum.to_scalar::<f64>().unwrap()
    };
    let norm = of(&[Frame::Rows(&a)], Deviation::Norm);
    assert!((norm - 4.242_641).abs() < 1e-6, "{norm}");
    let square = of(&[Frame::Rows(&a), Frame::Rows(&a)], Deviation::Square);
    assert!((square - 36.0).abs() < 1e-12, "{square}");
    for dims in [[2, 2], [0, 4]] {
        let rows = match dims {
            [0, n] => Tensor::zeros((0, n), DType::F64, &Device::Cpu),
            _ => Tensor::eye(2, DType::F64, &Device::Cpu),
        };
        let rows = ops::leaf(&rows.unwrap()).unwrap();
        let sum = ops::orthogonality(&[Frame::Rows(&rows)], Deviation::Norm).unwrap();
        assert!(sum.to_scalar::<f64>().unwrap() < 1e-14);
        let (_, grads) = ops::backward(&sum, &[], &[&rows]).unwrap();
        let grad = grads[0].as_ref().unwrap();
        assert_eq!(numbers(grad), vec![0.0; rows.elem_count()]);
    }
}

#[test]
fn kronecker() {
    fn product(x: &[Tensor]) -> Second<'_> {
        let (a, b) = (&x[2], &x[3]);
        Second::Product { a, b }
    }
    // The last one has more rows than are multiplied at once.
    for (rows, [l, m], [k, n], r) in [
        (3, [2, 4], [5, 3], 2),
        (1, [3, 2], [4, 7], 3),
        (35, [6, 5], [3, 4], 2),
    ] {
        let shapes: [&[usize]; 3] = [&[2, rows, m * n], &[l, m], &[k, n]];
        let fused = |x: &[Tensor]| ops::kronecker(&x[0], &x[1], Second::Whole(&x[2]), -1.75);
        check("kronecker", &shapes, &fused, &|x| {
            composed::kronecker(&x[0], &x[1], Second::Whole(&x[2]), -1.75)
        });
        let shapes: [&[usize]; 4] = [&[2, rows, m * n], &[l, m], &[k, r], &[r, n]];
        let fused = |x: &[Tensor]| ops::kronecker(&x[0], &x[1], product(x), -1.75);
        check("kronecker", &shapes, &fused, &|x| {
            composed::kronecker(&x[0], &x[1], product(x), -1.75)
        });
    }
}

#[test]
fn add_bias() {
    for shape in [&[3, 4, 5][..], &[7, 130], &[6]] {
        let shapes: [&[usize]; 2] = [shape, &shape[shape.len() - 1..]];
        let fused = |x: &[Tensor]| ops::add_bias(&x[0], &x[1]);
        check("add_bias", &shapes, &fused, &|x| {
            composed::add_bias(&x[0], &x[1])
        });
    }
}

#[test]
fn scale_columns() {
    // The last one has more rows than are summed at once.
    for shape in [&[3, 4, 5][..], &[7, 130], &[6], &[5, 14, 3]] {
        let shapes: [&[usize]; 2] = [shape, &shape[shape.len() - 1..]];
        let fused = |x: &[Tensor]| ops::scale_columns(&x[0], &x[1]);
        check("scale_columns", &shapes, &fused, &|x| {
            composed::scale_columns(&x[0], &x[1])
        });
    }
}

#[test]
fn gather_columns() {
    for (shape, columns) in [
        (&[2, 3, 7][..], &[5, 0, 6, 2][..]),
        (&[9, 130], &[129, 3]),
        (&[1, 2, 3, 5], &[1, 4, 1]),
        (&[6], &[2]),
    ] {
        let fused = |x: &[Tensor]| ops::gather_columns(&x[0], columns);
        check("gather_columns", &[shape], &fused, &|x| {
            composed::gather_columns(&x[0], columns)
        });
    }
    let x = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu).unwrap();
    let picked = ops::gather_columns(&x, &[2, 0]).unwrap();
    assert_eq!(numbers(&picked), [3.0, 1.0, 6.0, 4.0]);
}

#[test]
fn row_norms_squared() {
    let x = Tensor::new(&[[3f32, -4., 0.], [1., 2., -2.]], &Device::Cpu).unwrap();
    assert_eq!(ops::row_norms_squared(&x).unwrap(), [25.0, 9.0]);
    assert_eq!(
        ops::row_norms_squared(&x.t().unwrap()).unwrap(),
        [10.0, 20.0, 4.0]
    );
}

#[test]
fn add_scaled() {
    let weight = Tensor::new(&[[1f32, -2., 3.]], &Device::Cpu).unwrap();
    let update = Tensor::new(&[[4f32, 0.5, -1.]], &Device::Cpu).unwrap();
    let sum = ops::add_scaled(&weight, &update, -2.0).unwrap();
    assert_eq!(numbers(&sum), [-7.0, -3.0, 5.0]);
}

#[test]
fn rms_norm() {
    for shape in [&[2, 3, 5][..], &[4, 67], &[9]] {
        let shapes: [&[usize]; 2] = [shape, &shape[shape.len() - 1..]];
        let fused = |x: &[Tensor]| ops::rms_norm(&x[0], &x[1], 0.3);
        check("rms_norm", &shapes, &fused, &|x| {
            composed::rms_norm(&x[0], &x[1], 0.3)
        });
    }
}

#[test]
fn swiglu() {
    for shape in [&[2, 3, 5][..], &[7]] {
        let fused = |x: &[Tensor]| ops::swiglu(&x[0], &x[1]);
        check("swiglu", &[shape, shape], &fused, &|x| {
            composed::swiglu(&x[0], &x[1])
        });
    }
    let gate = Tensor::new(&[-200f32, 200., 0.], &Device::Cpu).unwrap();
    let up = Tensor::new(&[3f32, 0.5, 2.], &Device::Cpu).unwrap();
    assert_eq!(
        numbers(&ops::swiglu(&gate, &up).unwrap()),
        [0.0, 100.0, 0.0]
    );
}

#[test]
fn rotary() {
    let scaling = RotaryScaling::Linear { factor: 1.5 };
    for (dims, scaling) in [
        ([2, 3, 4, 6], RotaryScaling::None),
        ([1, 2, 5, 10], scaling),
    ] {
        let table = RotaryTable::new(dims[3], 100.0, &scaling).unwrap();
        let positions: Vec<u32> = (0..(dims[0] * dims[2]) as u32)
            .map(|i| i * 7 % 5 + i / 6)
            .collect();
        let fused = |x: &[Tensor]| ops::rotary(&x[0], &table, &positions);
        check("rotary", &[&dims], &fused, &|x| {
            composed::rotary(&x[0], &table, &positions)
        });
    }
}

#[test]
fn rotary_turns_the_halves() {
    // One pair a half: (1, 2, 3, 4) rotates (1, 3) by 2 radians and (2, 4) by 2 * 100^(-1/2) = 0.2.
    let table = RotaryTable::new(4, 100.0, &RotaryScaling::None).unwrap();
    let x = Tensor::new(&[[[[1f64, 2., 3., 4.]]]], &Device::Cpu).unwrap();
    let y = ops::rotary(&x, &table, &[2]).unwrap();
    let (cos, sin) = (2f64.cos(), 2f64.sin());
    let (slow_cos, slow_sin) = (0.2f64.cos(), 0.2f64.sin());
    let expected = [
        cos - 3.0 * sin,
        2.0 * slow_cos - 4.0 * slow_sin,
        3.0 * cos + sin,
        4.0 * slow_cos + 2.0 * slow_sin,
    ];
    let expected = Tensor::new(&[[[expected]]], &Device::Cpu).unwrap();
    assert_close(&y, &expected, 1e-15, "rotary");
}

#[test]
fn embedding() {
    let ids = [4, 0, 4, 2, 4, 1];
    let fused = |x: &[Tensor]| ops::embedding(&x[0], &ids, (2, 3));
    check("embedding", &[&[6, 5]], &fused, &|x| {
        composed::embedding(&x[0], &ids, (2, 3))
    });
    let table = normal(&mut stream("table"), &[6, 5], DType::F32);
    let y = ops::embedding(&table, &ids, (2, 3)).unwrap();
    assert_eq!(
        y.to_vec3::<f32>().unwrap()[1][0],
        table.to_vec2::<f32>().unwrap()[2]
    );
}

#[test]
fn gather_rows() {
    for rows in [&[3, 3, 0, 1, 3][..], &[2]] {
        let fused = |x: &[Tensor]| ops::gather_rows(&x[0], rows);
        check("gather_rows", &[&[4, 7]], &fused, &|x| {
            composed::gather_rows(&x[0], rows)
        });
    }
    let none = ops::gather_rows(&normal(&mut stream("none"), &[4, 7], DType::F32), &[]).unwrap();
    assert_eq!(none.dims(), [0, 7]);
}

#[test]
fn dropout() {
    let key = Key::new(5, Purpose::Dropout).step(3).site("layers.1");
    for dims in [&[3, 5][..], &[2, 3, 7]] {
        let fused = |x: &[Tensor]| ops::dropout(&x[0], 0.4, key);
        check("dropout", &[dims], &fused, &|x| {
            composed::dropout(&x[0], 0.4, key)
        });
    }
}

#[test]
fn cross_entropy() {
    let targets = [2, 0, 8, 2];
    let fused = |x: &[Tensor]| ops::cross_entropy(&x[0], &targets);
    check("cross_entropy", &[&[4, 9]], &fused, &|x| {
        composed::cross_entropy(&x[0], &targets)
    });
    // Large logits neither overflow nor lose the small difference.
    let logits = Tensor::new(&[[1000f32, 999., -1000.]], &Device::Cpu).unwrap();
    let loss = numbers(&ops::cross_entropy(&logits, &[1]).unwrap())[0];
    assert!(
        (loss - (1.0 + (-1f64).exp().ln_1p())).abs() < 1e-6,
        "{loss}"
    );
}

#[test]
fn smoothed_cross_entropy() {
    let targets = [2, 0, 8, 2];
    for smoothing in [0.1, 0.75] {
        let fused = |x: &[Tensor]| ops::smoothed_cross_entropy(&x[0], &targets, smoothing);
        check("cross_entropy", &[&[4, 9]], &fused, &|x| {
            composed::smoothed_cross_entropy(&x[0], &targets, smoothing)
        });
    }
    // Of two classes, with logits a and b: log(e^a + e^b) - 0.8 b - 0.2 (a + b) / 2.
    let logits = Tensor::new(&[[500f64, 498.5]], &Device::Cpu).unwrap();
    let loss = numbers(&ops::smoothed_cross_entropy(&logits, &[1], 0.2).unwrap())[0];
    let expected = 500.0 + (-1.5f64).exp().ln_1p() - 0.8 * 498.5 - 0.2 * 499.25;
    assert!((loss - expected).abs() < 1e-12, "{loss} {expected}");
    // Nothing smoothed is the same bits.
    let plain = ops::cross_entropy(&logits, &[1]).unwrap();
    let none = ops::smoothed_cross_entropy(&logits, &[1], 0.0).unwrap();
    assert_eq!(numbers(&plain), numbers(&none));
}

#[test]
fn sum_all() {
    for dims in [&[3, 4, 5][..], &[7], &[2, 5000]] {
        let x = normal(&mut stream("sum"), dims, DType::F32);
        let sum = numbers(&ops::sum_all(&x).unwrap())[0];
        assert!(
            (sum - numbers(&x).iter().sum::<f64>()).abs() < 1e-4,
            "{sum}"
        );
    }
    let fused = |x: &[Tensor]| ops::sum_all(&x[0]);
    check("sum_all", &[&[3, 4, 5]], &fused, &|x| {
        composed::sum_all(&x[0])
    });
}

#[test]
fn sums_are_taken_in_f64() {
    // In f32, 1 is lost beside 2^24.
    let mut numbers = vec![0.25f32; 4096];
    numbers[0] = 16_777_216.0;
    let x = Tensor::new(numbers, &Device::Cpu).unwrap();
    let sum = ops::sum_all(&x).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(sum, 16_777_216.0 + 1024.0);
    assert_eq!(
        ops::norm_squared(&x).unwrap(),
        281_474_976_710_656.0 + 4095.0 / 16.0
    );
}

#[test]
fn norm_and_finiteness() {
    let x = normal(&mut stream("norm"), &[70, 130], DType::F64);
    let view = x.t().unwrap().narrow(0, 5, 90).unwrap();
    let expected: f64 = numbers(&view).iter().map(|x| x * x).sum();
    let norm = ops::norm_squared(&view).unwrap();
    assert!((norm / expected - 1.0).abs() < 1e-13, "{norm} {expected}");
    assert!(ops::all_finite(&view).unwrap());
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut values = numbers(&x);
        values[9000] = bad;
        let x = Tensor::from_vec(values, (70, 130), &Device::Cpu).unwrap();
        assert!(!ops::all_finite(&x).unwrap(), "{bad}");
        assert!(
            !ops::all_finite(&x.to_dtype(DType::F32).unwrap()).unwrap(),
            "{bad}"
        );
        assert!(ops::all_finite(&x.narrow(0, 0, 60).unwrap()).unwrap());
    }
    let half = x.to_dtype(DType::BF16).unwrap();
    let error = ops::all_finite(&half).unwrap_err();
    assert_eq!(
        error.to_string(),
        "all_finite: dtype bf16 is not supported, expected f32 or f64"
    );
}

#[test]
fn bits_do_not_depend_on_the_run() {
    let random = &mut stream("bits");
    let x = ops::leaf(&normal(random, &[300, 70], DType::F32)).unwrap();
    let weight = ops::leaf(&normal(random, &[70], DType::F32)).unwrap();
    let a = ops::leaf(&normal(random, &[8, 70], DType::F32)).unwrap();
    let b = ops::leaf(&normal(random, &[90, 8], DType::F32)).unwrap();
    let once = || {
        let y = ops::rms_norm(&x, &weight, 1e-5).unwrap();
        let y = ops::low_rank(&y, &a, &b, 0.5).unwrap();
        let loss = ops::sum_all(&ops::swiglu(&y, &y).unwrap()).unwrap();
        let (_, grads) = ops::backward(&loss, &[], &[&x, &weight, &a, &b]).unwrap();
        grads
            .iter()
            .flat_map(|grad| numbers(grad.as_ref().unwrap()))
            .collect::<Vec<_>>()
    };
    let first = once();
    for _ in 0..5 {
        assert!(once() == first);
    }
}

#[test]
fn add() {
    let shapes: [&[usize]; 2] = [&[3, 2, 7], &[3, 2, 7]];
    let fused = |x: &[Tensor]| ops::add(&x[0], &x[1]);
    check("add", &shapes, &fused, &|x| composed::add(&x[0], &x[1]));
}

#[test]
fn add_rms_norm() {
    let shapes: [&[usize]; 3] = [&[2, 3, 9], &[2, 3, 9], &[9]];
    // Both results take part, each with its own weight.
    let joined = |(sum, normed): (Tensor, Tensor)| -> ops::Result<Tensor> {
        Ok(Tensor::cat(&[sum, (normed * 1.5)?], 0)?)
    };
    let fused = |x: &[Tensor]| joined(ops::add_rms_norm(&x[0], &x[1], &x[2], 1e-3)?);
    check("add_rms_norm", &shapes, &fused, &|x| {
        joined(composed::add_rms_norm(&x[0], &x[1], &x[2], 1e-3)?)
    });
}

#[test]
fn sums_of_the_twins() {
    let x = normal(&mut stream("sums"), &[5, 9], DType::F32);
    let (ours, twin) = (
        ops::norm_squared(&x).unwrap(),
        composed::norm_squared(&x).unwrap(),
    );
    assert!((ours - twin).abs() < 1e-12 * twin, "{ours} {twin}");
    let ours = ops::row_norms_squared(&x).unwrap();
    let twin = composed::row_norms_squared(&x).unwrap();
    assert_eq!(ours.len(), twin.len());
    for (ours, twin) in ours.into_iter().zip(twin) {
        assert!((ours - twin).abs() < 1e-12 * twin, "{ours} {twin}");
    }
    assert!(composed::all_finite(&x).unwrap());
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let wrong = Tensor::new(&[1f32, wrong, -3.0], &Device::Cpu).unwrap();
        assert!(!composed::all_finite(&wrong).unwrap());
    }
}

#[test]
fn all_of_it_holds_of_the_twins() {
    twins::run_composed(&[]);
}
