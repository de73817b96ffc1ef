//! Functions that encoders have where LLaMA has others: layer normalisation and the Gaussian error linear unit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod twins;

use candle_core::{DType, Device, Tensor};
use lowrank_ops as ops;
use ops::composed;
use support::{assert_close, check, normal, numbers, stream};

#[test]
fn layer_norm() {
    for shape in [&[2, 3, 5][..], &[4, 67], &[9], &[35, 3]] {
        let last = &shape[shape.len() - 1..];
        let shapes: [&[usize]; 3] = [shape, last, last];
        let fused = |x: &[Tensor]| ops::layer_norm(&x[0], &x[1], &x[2], 0.3);
        check("layer_norm", &shapes, &fused, &|x| {
            composed::layer_norm(&x[0], &x[1], &x[2], 0.3)
        });
    }
}

/// Rows of several chunks: the values, and the same bits from one thread as from three.
#[test]
fn layer_norm_of_many_rows() {
    for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::F64, 1e-13)] {
        let random = &mut stream("many rows");
        let shapes: [&[usize]; 3] = [&[173, 29], &[29], &[29]];
        let leaves = shapes.map(|dims| ops::leaf(&normal(random, dims, dtype)).unwrap());
        let upstream = normal(random, &[173, 29], dtype);
        type Norm = fn(&Tensor, &Tensor, &Tensor, f64) -> ops::Result<Tensor>;
        let run = |norm: Norm| {
            let y = norm(&leaves[0], &leaves[1], &leaves[2], 1e-5).unwrap();
            let root = ops::Seed::apply(&y, &upstream).unwrap();
            let (_, grads) = ops::backward(&root, &[], &leaves.each_ref()).unwrap();
            let grads = grads.into_iter().map(Option::unwrap);
            [y.detach()].into_iter().chain(grads).collect::<Vec<_>>()
        };
        let fused = run(ops::layer_norm);
        for (fused, twin) in fused.iter().zip(&run(composed::layer_norm)) {
            assert_close(fused, twin, tolerance, "many rows");
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let again = pool.build().unwrap().install(|| run(ops::layer_norm));
            for (fused, again) in fused.iter().zip(&again) {
                assert_eq!(numbers(fused), numbers(again), "{threads} threads");
            }
        }
    }
}

#[test]
fn layer_norm_shifts_and_scales() {
    // Of (1, 3, 8) the mean is 4 and the variance 26/3; eps makes it 9.
    let x = Tensor::new(&[[1f64, 3., 8.], [1001., 1003., 1008.]], &Device::Cpu).unwrap();
    let weight = Tensor::new(&[3f64, 6., -1.5], &Device::Cpu).unwrap();
    let bias = Tensor::new(&[0.5f64, 0., 1.], &Device::Cpu).unwrap();
    let y = ops::layer_norm(&x, &weight, &bias, 1.0 / 3.0).unwrap();
    for row in y.to_vec2::<f64>().unwrap() {
        for (got, expected) in row.iter().zip([-2.5, -2.0, -1.0]) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }
    // A far mean costs the digits that it takes, no more.
    let [x, weight, bias] = [x, weight, bias].map(|x| x.to_dtype(DType::F32).unwrap());
    let y = ops::layer_norm(&x, &weight, &bias, 1.0 / 3.0).unwrap();
    for (got, expected) in y.to_vec2::<f32>().unwrap()[1]
        .iter()
        .zip([-2.5, -2.0, -1.0])
    {
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    }
}

#[test]
fn gelu() {
    for shape in [&[2, 3, 5][..], &[7], &[4, 33]] {
        let fused = |x: &[Tensor]| ops::gelu(&x[0]);
        check("gelu", &[shape], &fused, &|x| composed::gelu(&x[0]));
        let fused = |x: &[Tensor]| ops::gelu_tanh(&x[0]);
        check("gelu_tanh", &[shape], &fused, &|x| {
            composed::gelu_tanh(&x[0])
        });
    }
}

/// More numbers than one thread gets, in which candle's own error function is the oracle.
#[test]
fn gelu_of_many_numbers() {
    let x = normal(&mut stream("many"), &[3, 4001], DType::F64);
    let x = (x * 2.5).unwrap();
    for (dtype, tolerance) in [(DType::F32, 5e-7), (DType::F64, 1e-15)] {
        let x = x.to_dtype(dtype).unwrap();
        let wide = x.to_dtype(DType::F64).unwrap();
        let what = "many numbers";
        let twin = composed::gelu(&wide).unwrap();
        assert_close(&ops::gelu(&x).unwrap(), &twin, tolerance, what);
        let twin = composed::gelu_tanh(&wide).unwrap();
        assert_close(&ops::gelu_tanh(&x).unwrap(), &twin, tolerance, what);
    }
}

/// x, x times the share below it, and the same with the hyperbolic tangent, computed with 40 digits.
const KNOWN: [(f64, f64, f64); 12] = [
    (
        -12.0,
        -2.131_778_534_493_214_8e-32,
        -1.635_985_449_353_481e-61,
    ),
    (
        -6.0,
        -5.919_525_870_226_188_8e-9,
        -8.439_646_700_762_297e-11,
    ),
    (-4.0, -1.266_849_673_324_796_8e-4, -7.024_594_819_237_269e-5),
    (
        -2.5,
        -1.552_416_331_444_033_8e-2,
        -1.508_426_608_999_858_2e-2,
    ),
    (-1.0, -0.158_655_253_931_457_05, -0.158_808_009_391_723_3),
    (-0.5, -0.154_268_769_362_993_45, -0.154_285_990_174_856_08),
    (-0.125, -5.628_272_189_623_589e-2, -5.628_280_137_577_661e-2),
    (0.25, 0.149_676_581_420_730_93, 0.149_675_350_701_685),
    (1.0, 0.841_344_746_068_542_9, 0.841_191_990_608_276_7),
    (1.5, 1.399_789_198_096_713, 1.399_571_576_980_233),
    (3.5, 3.499_185_798_223_375_7, 3.499_383_802_344_626),
    (8.0, 7.999_999_999_999_995, 8.0),
];

#[test]
fn gelu_of_known_numbers() {
    for (dtype, tolerance) in [(DType::F32, 5e-6), (DType::F64, 2e-13)] {
        let x: Vec<f64> = KNOWN.iter().map(|known| known.0).collect();
        let x = Tensor::new(x, &Device::Cpu).unwrap();
        let x = x.to_dtype(dtype).unwrap();
        let (exact, tanh) = (ops::gelu(&x).unwrap(), ops::gelu_tanh(&x).unwrap());
        let results = numbers(&exact).into_iter().zip(numbers(&tanh));
        for ((exact, tanh), (x, of_exact, of_tanh)) in results.zip(KNOWN) {
            for (got, expected) in [(exact, of_exact), (tanh, of_tanh)] {
                // Relative to what it is, the tails too, but for what f32 cannot hold.
                let least = if dtype == DType::F32 { 1e-37 } else { 0.0 };
                let off = (got - expected).abs();
                assert!(
                    off <= tolerance * expected.abs() + least,
                    "{x}: {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn gelu_of_large_numbers_is_themselves_or_zero() {
    for dtype in [DType::F32, DType::F64] {
        for function in [ops::gelu, ops::gelu_tanh] {
            let x = Tensor::new(&[-1e30f64, -50.0, 0.0, 50.0, 1e30], &Device::Cpu).unwrap();
            let x = ops::leaf(&x.to_dtype(dtype).unwrap()).unwrap();
            let y = function(&x).unwrap();
            let expected = [0.0, 0.0, 0.0, 50.0, numbers(&x)[4]];
            for (got, expected) in numbers(&y).into_iter().zip(expected) {
                assert!((got - expected).abs() < 1e-300, "{got} {expected}");
            }
            let loss = ops::sum_all(&y).unwrap();
            let (_, grads) = ops::backward(&loss, &[], &[&x]).unwrap();
            let grads = numbers(grads[0].as_ref().unwrap());
            for (got, expected) in grads.into_iter().zip([0.0, 0.0, 0.5, 1.0, 1.0]) {
                assert!((got - expected).abs() < 1e-300, "{got} {expected}");
            }
            let nan = Tensor::new(&[f64::NAN], &Device::Cpu).unwrap();
            let nan = function(&nan.to_dtype(dtype).unwrap()).unwrap();
            assert!(numbers(&nan)[0].is_nan());
        }
    }
}

#[test]
fn what_is_refused() {
    let random = &mut stream("refused");
    let mut draw = |dims: &[usize]| normal(random, dims, DType::F32);
    let (x, three, two) = (draw(&[2, 3]), draw(&[3]), draw(&[2]));
    let message = |weight: &Tensor, bias: &Tensor, eps: f64| {
        let result = ops::layer_norm(&x, weight, bias, eps);
        result.unwrap_err().to_string()
    };
    assert_eq!(
        message(&two, &three, 1e-5),
        "layer_norm: the weight has shape [2], expected [3]"
    );
    assert_eq!(
        message(&three, &two, 1e-5),
        "layer_norm: the bias has shape [2], expected [3]"
    );
    assert_eq!(
        message(&three, &three, f64::INFINITY),
        "layer_norm: eps is inf, expected a number of at least 0"
    );
}

#[test]
fn all_of_it_holds_of_the_twins() {
    // Far from 0 candle's error function is not as exact as ours.
    twins::run_composed(&["gelu_of_known_numbers", "gelu_of_large_numbers"]);
}
