//! Packed weights against the dense layer of the same numbers: f16, bf16 and every block type.

#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, Var};
use lowrank_frozen::{BlockType, Encoding, FrozenEmbedding, FrozenLinear, Stored};
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use proptest::prelude::*;

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut stream = Key::new(13, Purpose::Test).site(name).stream();
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| stream.normal() as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

const CANDLES: [(BlockType, GgmlDType); 12] = [
    (BlockType::Q4_0, GgmlDType::Q4_0),
    (BlockType::Q4_1, GgmlDType::Q4_1),
    (BlockType::Q5_0, GgmlDType::Q5_0),
    (BlockType::Q5_1, GgmlDType::Q5_1),
    (BlockType::Q8_0, GgmlDType::Q8_0),
    (BlockType::Q8_1, GgmlDType::Q8_1),
    (BlockType::Q2K, GgmlDType::Q2K),
    (BlockType::Q3K, GgmlDType::Q3K),
    (BlockType::Q4K, GgmlDType::Q4K),
    (BlockType::Q5K, GgmlDType::Q5K),
    (BlockType::Q6K, GgmlDType::Q6K),
    (BlockType::Q8K, GgmlDType::Q8K),
];

/// A random matrix in every packed form, with the numbers that candle reads out of it.
fn every_form(n_out: usize, n_in: usize) -> Vec<(Stored, Tensor)> {
    let matrix = random("w", &[n_out, n_in]);
    let mut forms = Vec::new();
    for dtype in [DType::F16, DType::BF16] {
        let half = matrix.to_dtype(dtype).unwrap();
        let dense = half.to_dtype(DType::F32).unwrap();
        let stored = Stored::new(half).unwrap();
        assert_eq!(stored.encoding(), Encoding::Plain(dtype));
        assert_eq!(stored.bytes(), n_out * n_in * 2);
        forms.push((stored, dense));
    }
    for (block, candles) in CANDLES {
        if n_in.is_multiple_of(block.numbers()) {
            let quantised = QTensor::quantize(&matrix, candles).unwrap();
            let bytes = quantised.data().unwrap();
            let stored = Stored::blocks(block, &bytes, (n_out, n_in)).unwrap();
            assert_eq!(stored.encoding(), Encoding::Blocks(block));
            assert_eq!(stored.bytes(), bytes.len());
            forms.push((stored, quantised.dequantize(&Device::Cpu).unwrap()));
        }
    }
    forms
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (values(got), values(expected));
    // Sums in another order: an f32 rounding of the largest.
    let size = expected.iter().fold(1f32, |size, x| size.max(x.abs()));
    for (got, expected) in got.iter().zip(&expected) {
        let off = (got - expected).abs();
        assert!(off <= 2e-6 * size, "{what}: {got} against {expected}");
    }
}

#[test]
fn outputs_and_gradients_equal_the_dense_layers() {
    // The last is more than one panel, and its last panel is not full.
    for (lead, n_in, n_out, rank) in [
        (vec![7], 32, 5, 3),
        (vec![2, 9], 13, 31, 2),
        (vec![3, 1, 4], 256, 17, 5),
        (vec![], 64, 3, 4),
        (vec![2, 3], 512, 1201, 2),
    ] {
        let shape = |last| [lead.clone(), vec![last]].concat();
        let var = |name, shape: &[usize]| Var::from_tensor(&random(name, shape)).unwrap();
        let (x, h) = (var("x", &shape(n_in)), var("h", &shape(rank)));
        let (b, bias) = (var("b", &[n_out, rank]), var("bias", &[n_out]));
        let g = random("g", &shape(n_out));
        for (stored, dense) in every_form(n_out, n_in) {
            let what = format!("{} {n_out} x {n_in}", stored.encoding().name());
            let packed = FrozenLinear::stored(stored).with_bias(Some(bias.as_tensor().clone()));
            let dense = FrozenLinear::new(dense, None).unwrap();
            assert_eq!(packed.dims(), (n_out, n_in));
            assert_eq!(packed.dtype(), DType::F32);
            assert_eq!(
                values(&packed.weight().unwrap()),
                values(&dense.weight().unwrap()),
                "{what}"
            );
            let dense = dense.with_bias(Some(bias.as_tensor().clone()));
            let back = |y: &Tensor| {
                let root = ops::Seed::apply(y, &g).unwrap();
                ops::backward(&root, &[], &[&x, &h, &b, &bias]).unwrap().1
            };
            for (got, expected, tracked) in [
                (packed.forward(&x).unwrap(), dense.forward(&x).unwrap(), 2),
                (
                    packed.forward_plus(&x, &h, &b).unwrap(),
                    dense.forward_plus(&x, &h, &b).unwrap(),
                    4,
                ),
            ] {
                assert_close(&what, &got, &expected);
                let again = back(&got);
                let grads = back(&got);
                assert_eq!(grads.iter().flatten().count(), tracked);
                for ((got, again), expected) in grads.iter().zip(&again).zip(back(&expected)) {
                    if let (Some(got), Some(again)) = (got, again) {
                        assert_close(&what, got, &expected.unwrap());
                        assert_eq!(values(got), values(again), "{what}: not the same bits");
                    }
                }
            }
        }
    }
}

#[test]
fn the_gradient_matches_differences() {
    let (stored, _) = every_form(6, 32).swap_remove(3);
    let layer = FrozenLinear::stored(stored);
    let x = Var::from_tensor(&random("x", &[2, 32])).unwrap();
    let g = random("g", &[2, 6]);
    let objective = |x: &Tensor| {
        let y = (layer.forward(x).unwrap() * &g).unwrap();
        values(&y).iter().map(|y| f64::from(*y)).sum::<f64>()
    };
    let root = ops::Seed::apply(&layer.forward(&x).unwrap(), &g).unwrap();
    let (_, grads) = ops::backward(&root, &[], &[&x]).unwrap();
    let grad = values(grads[0].as_ref().unwrap());
    let start = values(&x);
    // The layer is linear, so a large step is exact but for rounding.
    for at in [0, 17, 40, 63] {
        let moved = |step: f32| {
            let mut numbers = start.clone();
            numbers[at] += step;
            objective(&Tensor::from_vec(numbers, (2, 32), &Device::Cpu).unwrap())
        };
        let slope = (moved(0.5) - moved(-0.5)) as f32;
        assert!((slope - grad[at]).abs() < 1e-4, "{slope} {}", grad[at]);
    }
}

#[test]
fn strided_inputs_are_read_in_order() {
    let wide = random("x", &[64, 20]);
    let strided = wide.t().unwrap().narrow(0, 3, 6).unwrap();
    assert!(!strided.is_contiguous());
    let copy = strided.force_contiguous().unwrap();
    for (stored, _) in every_form(7, 64) {
        let layer = FrozenLinear::stored(stored);
        assert_eq!(
            values(&layer.forward(&strided).unwrap()),
            values(&layer.forward(&copy).unwrap())
        );
    }
    // So are strided weights.
    let half = random("w", &[12, 7]).to_dtype(DType::F16).unwrap();
    let transposed = Stored::new(half.t().unwrap()).unwrap();
    let dense = half.to_dtype(DType::F32).unwrap().t().unwrap();
    assert_eq!(values(&transposed.to_dense().unwrap()), values(&dense));
}

#[test]
fn a_table_decodes_rows_and_lends_them_to_a_head() {
    let ids = [3, 0, 28, 3, 11, 5];
    for (stored, dense) in every_form(29, 256) {
        let table = FrozenEmbedding::new(stored);
        assert_eq!((table.dims(), table.dtype()), ((29, 256), DType::F32));
        let rows = table.forward(&ids, (2, 3)).unwrap();
        let expected = ops::embedding(&dense, &ids, (2, 3)).unwrap();
        assert_eq!(rows.dims(), [2, 3, 256]);
        assert_eq!(values(&rows), values(&expected));
        assert_eq!(values(&table.weight().unwrap()), values(&dense));
        let head = table.head();
        let x = random("x", &[4, 256]);
        let expected = FrozenLinear::new(dense, None).unwrap().forward(&x).unwrap();
        assert_close("head", &head.forward(&x).unwrap(), &expected);

        let refused = |ids: &[u32], shape| table.forward(ids, shape).unwrap_err().to_string();
        assert_eq!(
            refused(&[1, 29], (1, 2)),
            "embedding: index 29 is out of range, the table has 29 rows"
        );
        assert_eq!(
            refused(&[1, 2], (1, 3)),
            "embedding: ids has shape [2], expected 1 * 3 ids"
        );
    }
    let table = FrozenEmbedding::new(Stored::new(random("table", &[29, 6])).unwrap());
    let rows = table.forward(&ids, (3, 2)).unwrap();
    let expected = ops::embedding(&table.weight().unwrap(), &ids, (3, 2)).unwrap();
    assert_eq!(values(&rows), values(&expected));
}

#[test]
fn what_cannot_be_held_is_refused() {
    let message = |result: lowrank_frozen::Result<Stored>| result.unwrap_err().to_string();
    assert_eq!(
        message(Stored::blocks(BlockType::Q4_1, &[0; 40], (2, 48))),
        "40 bytes of q4_1 blocks are not a matrix of 2 rows and 48 columns"
    );
    assert_eq!(
        message(Stored::blocks(BlockType::Q6K, &[0; 209], (1, 256))),
        "209 bytes of q6_k blocks are not a matrix of 1 rows and 256 columns"
    );
    assert!(Stored::blocks(BlockType::Q8_0, &[0; 34], (usize::MAX, 64)).is_err());
    let integers = Tensor::zeros((2, 3), DType::U8, &Device::Cpu).unwrap();
    assert_eq!(
        message(Stored::new(integers)),
        "FrozenLinear: dtype u8 is not supported, expected f32, f64, f16 or bf16"
    );
    assert!(Stored::new(random("w", &[3])).is_err());
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    for (stored, _) in every_form(3, 256) {
        assert!(stored.all_finite().unwrap(), "{:?}", stored.encoding());
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let mut numbers = vec![0.5f32; 70_000];
        numbers[69_998] = f32::INFINITY;
        let matrix = Tensor::from_vec(numbers, (100, 700), &Device::Cpu).unwrap();
        let stored = Stored::new(matrix.to_dtype(dtype).unwrap()).unwrap();
        assert!(!stored.all_finite().unwrap());
    }
    // The scale of a q8_0 block is its first two bytes, an f16; 0x7c00 is its infinity.
    let mut bytes = vec![1; 34 * 4];
    bytes[34 * 3 + 1] = 0x7c;
    bytes[34 * 3] = 0;
    let stored = Stored::blocks(BlockType::Q8_0, &bytes, (2, 64)).unwrap();
    assert!(!stored.all_finite().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_blocks(bytes in prop::collection::vec(any::<u8>(), 300)) {
        for (block, candles) in CANDLES {
            let bytes = &bytes[1..=block.bytes()];
            let stored = Stored::blocks(block, bytes, (1, block.numbers())).unwrap();
            let storage = candles.from_data(bytes.to_vec().into());
            let ours = values(&stored.to_dense().unwrap());
            let expected = storage.dequantize(block.numbers()).unwrap();
            let expected = expected.as_slice::<f32>().unwrap();
            let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&ours), bits(expected));
        }
    }
}

/// As on a GPU, where candle multiplies and no kernel of ours runs.
#[test]
fn all_of_it_holds_of_composed_functions() {
    let variable = lowrank_ops::composed::VARIABLE;
    if std::env::var_os(variable).is_some() {
        return;
    }
    let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
    let output = tests.env(variable, "composed").output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}
