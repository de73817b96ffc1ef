//! NF4 against bitsandbytes, bit for bit; golden/nf4.py made the file.

#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::{DType, Device, Tensor, Var};
use lowrank_frozen::{Encoding, Error, FrozenEmbedding, FrozenLinear, Nf4, Scales, Stored};
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::simd::Level;
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::Path;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nf4.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        let tensor = self.0[name].to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }
}

const CASES: [&str; 9] = [
    "normal",
    "spanning",
    "odd",
    "short",
    "zero_tail",
    "adversarial",
    "huge",
    "constant",
    "large",
];

#[track_caller]
fn assert_bits(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            got.to_bits() == expected.to_bits(),
            "{what}: number {at} is {got:e}, expected {expected:e}"
        );
    }
}

fn dequantised(numbers: &Nf4) -> Vec<f32> {
    let mut into = vec![f32::NAN; numbers.numbers];
    numbers.dequantise(0, &mut into);
    into
}

#[test]
fn codes_scales_and_numbers_are_those_of_bitsandbytes() {
    let golden = Golden::read();
    for case in CASES {
        let found = Nf4::quantise(&golden.numbers(&format!("{case}.input")), false).unwrap();
        assert!(
            found.codes == golden.bytes(&format!("{case}.codes")),
            "{case}"
        );
        let Scales::Single(scales) = &found.scales else {
            panic!("{case}: the scales are double quantised");
        };
        assert_bits(case, scales, &golden.numbers(&format!("{case}.absmax")));
        if case != "large" {
            let expected = golden.numbers(&format!("{case}.numbers"));
            assert_bits(case, &dequantised(&found), &expected);
        }
    }
}

#[track_caller]
fn assert_double(golden: &Golden, case: &str, found: &Nf4) {
    let Scales::Double {
        codes,
        map,
        scales,
        offset,
    } = &found.scales
    else {
        panic!("{case}: the scales are not double quantised");
    };
    let name = |part: &str| format!("{case}.double.{part}");
    assert_bits(case, &[*offset], &golden.numbers(&name("offset")));
    assert_bits(case, scales, &golden.numbers(&name("absmax")));
    assert!(*codes == golden.bytes(&name("codes")), "{case}");
    assert_bits(case, map.as_slice(), &golden.numbers("map"));
}

#[test]
fn doubly_quantised_scales_and_numbers_are_those_of_bitsandbytes() {
    let golden = Golden::read();
    for case in CASES {
        let numbers = golden.numbers(&format!("{case}.input"));
        let found = Nf4::quantise(&numbers, true);
        if case == "huge" {
            // The sum of its scales is no f32.
            assert!(matches!(found, Err(Error::NotFinite)), "{found:?}");
            continue;
        }
        let found = found.unwrap();
        assert!(
            found.codes == golden.bytes(&format!("{case}.codes")),
            "{case}"
        );
        assert_double(&golden, case, &found);
        if case != "large" {
            let expected = golden.numbers(&format!("{case}.double.numbers"));
            assert_bits(case, &dequantised(&found), &expected);
        }
    }
}

#[test]
fn a_mean_of_many_scales_is_summed_as_torch_does() {
    let number = |i: usize| {
        let size = 1000 + (i / 64).pow(2) * 37 % 9001;
        let centred = (i * 48271 % size) as i32 - (size / 2) as i32;
        centred as f32 / 16384.0
    };
    let numbers: Vec<f32> = (0..9000 * 64 + 17).map(number).collect();
    let found = Nf4::quantise(&numbers, true).unwrap();
    assert_double(&Golden::read(), "many", &found);
}

fn random(name: &str, count: usize) -> Vec<f32> {
    let mut stream = Key::new(29, Purpose::Test).site(name).stream();
    (0..count).map(|_| 0.3 * stream.normal() as f32).collect()
}

fn levels() -> impl Iterator<Item = Level> {
    let has = |level: &Level| *level <= Level::of_machine();
    Level::WORDS.into_iter().map(|(_, level)| level).filter(has)
}

proptest! {
    #[test]
    fn any_range_is_a_part_of_the_whole_at_every_level(
        count in 1usize..5000,
        ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        double in any::<bool>(),
    ) {
        let numbers = Nf4::quantise(&random("range", count), double).unwrap();
        let whole = dequantised(&numbers);
        let (a, b) = (ends.0.index(count), ends.1.index(count + 1));
        let (from, to) = (a.min(b), a.max(b));
        for level in levels() {
            let mut part = vec![f32::NAN; to - from];
            numbers.dequantise_at(level, from, &mut part);
            prop_assert_eq!(&part, &whole[from..to]);
        }
    }

    #[test]
    fn a_number_becomes_the_nearest_of_sixteen(
        numbers in prop::collection::vec(prop_oneof![-3f32..3.0, -1e-3f32..1e-3, -1e9f32..1e9], 1..300),
    ) {
        let found = dequantised(&Nf4::quantise(&numbers, false).unwrap());
        for (found, numbers) in found.chunks(64).zip(numbers.chunks(64)) {
            let scale = numbers.iter().fold(0f32, |scale, x| scale.max(x.abs()));
            for (found, x) in found.iter().zip(numbers) {
                let off = |value: f32| (value * scale - x).abs();
                let nearest = Nf4::VALUES.into_iter().map(off).fold(f32::INFINITY, f32::min);
                // Roundings of the quotient, and of the product.
                prop_assert!((found - x).abs() <= nearest + 2e-7 * scale);
                prop_assert!((found - x).abs() <= 0.152 * scale + 2e-7 * scale);
            }
        }
    }

    #[test]
    fn double_quantisation_moves_a_scale_by_little(
        scales in prop::collection::vec(0.01f32..5.0, 2..700),
    ) {
        // One block for each scale.
        let numbers: Vec<f32> = scales.iter().flat_map(|scale| [*scale; 64]).collect();
        let found = dequantised(&Nf4::quantise(&numbers, true).unwrap());
        let mean = scales.iter().sum::<f32>() / scales.len() as f32;
        for (found, scales) in found.chunks(64 * 256).zip(scales.chunks(256)) {
            let most = scales.iter().fold(0f32, |most, x| most.max((x - mean).abs()));
            for (found, scale) in found.chunks(64).zip(scales) {
                // Half the distance of the widest neighbours among the 256 values, 0.0141.
                prop_assert!((found[0] - scale).abs() <= 0.0072 * most + 1e-5);
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 63, 64, 129] {
            let mut numbers = random("bad", 130);
            numbers[at] = bad;
            for double in [false, true] {
                let found = Nf4::quantise(&numbers, double);
                assert!(matches!(found, Err(Error::NotFinite)), "{bad} at {at}");
            }
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let refused = |numbers: Nf4, dims| Stored::nf4(numbers, dims).unwrap_err().to_string();
    let double = || Nf4::quantise(&random("parts", 170), true).unwrap();
    assert_eq!(
        refused(double(), (17, 11)),
        "nf4: 170 numbers are not a matrix of 17 rows and 11 columns"
    );
    let mut numbers = double();
    numbers.codes.pop();
    assert_eq!(
        refused(numbers, (17, 10)),
        "nf4: 170 numbers have 85 bytes of codes, got 84"
    );
    let mut numbers = double();
    numbers.scales = Scales::Single(vec![1.0; 2]);
    assert_eq!(
        refused(numbers, (17, 10)),
        "nf4: 3 blocks have 3 scales, got 2"
    );
    let mut numbers = double();
    if let Scales::Double { scales, .. } = &mut numbers.scales {
        scales.push(1.0);
    }
    assert_eq!(
        refused(numbers, (17, 10)),
        "nf4: 3 blocks have 1 scales of scales, got 2"
    );
}

#[test]
fn nothing_is_quantised_to_nothing() {
    for double in [false, true] {
        let numbers = Nf4::quantise(&[], double).unwrap();
        let stored = Stored::nf4(numbers, (0, 5)).unwrap();
        assert_eq!(stored.to_dense().unwrap().dims(), [0, 5]);
    }
}

/// Rows that begin within a block and within a byte, and more than one panel.
#[test]
fn outputs_and_gradients_equal_the_dense_layers() {
    for (rows, n_in, n_out) in [(6, 35, 19), (3, 512, 1201), (5, 64, 7)] {
        let weight = random("w", n_in * n_out);
        for double in [false, true] {
            let numbers = Nf4::quantise(&weight, double).unwrap();
            let dense = Tensor::from_vec(dequantised(&numbers), (n_out, n_in), &Device::Cpu);
            let dense = dense.unwrap();
            let (codes, bytes) = (numbers.codes.len(), numbers.bytes());
            let stored = Stored::nf4(numbers, (n_out, n_in)).unwrap();
            assert_eq!(stored.encoding(), Encoding::Nf4 { double });
            assert_eq!(stored.encoding().name(), "nf4");
            assert_eq!(stored.bytes(), bytes);
            let blocks = (n_in * n_out).div_ceil(64);
            let scales = match double {
                false => blocks * 4,
                true => blocks + (blocks.div_ceil(256) + 1) * 4,
            };
            assert_eq!(bytes - codes, scales);
            assert!(stored.all_finite().unwrap());
            let table = FrozenEmbedding::new(stored.clone());
            let ids = [4, 0, 6, 4];
            let found = table.forward(&ids, (2, 2)).unwrap();
            let expected = ops::embedding(&dense, &ids, (2, 2)).unwrap();
            assert_eq!(values(&found), values(&expected));

            let (packed, dense) = (
                FrozenLinear::stored(stored),
                FrozenLinear::new(dense, None).unwrap(),
            );
            assert_eq!(packed.dtype(), DType::F32);
            assert_eq!(
                values(&packed.weight().unwrap()),
                values(&dense.weight().unwrap())
            );
            let x = Tensor::from_vec(random("x", rows * n_in), (rows, n_in), &Device::Cpu).unwrap();
            let g = Tensor::from_vec(random("g", rows * n_out), (rows, n_out), &Device::Cpu);
            let (x, g) = (Var::from_tensor(&x).unwrap(), g.unwrap());
            let outputs = |layer: &FrozenLinear| {
                let y = layer.forward(&x).unwrap();
                let root = ops::Seed::apply(&y, &g).unwrap();
                let grads = ops::backward(&root, &[], &[&x]).unwrap().1;
                [values(&y), values(grads[0].as_ref().unwrap())]
            };
            for (got, expected) in outputs(&packed).iter().zip(&outputs(&dense)) {
                for (got, expected) in got.iter().zip(expected) {
                    // Sums in another order.
                    assert!((got - expected).abs() <= 1e-5, "{got} {expected}");
                }
            }
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
