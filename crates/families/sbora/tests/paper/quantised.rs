//! QSBoRA: the same on a base in NF4, which is never written to.

use crate::{Adapted, BOTH, assert_near, keys, numbers, random, saved};
use candle_core::{DType, Tensor};
use lowrank_frozen::{FrozenLinear, Nf4, Scales, Stored};
use lowrank_sbora::Variant;

#[test]
fn codes_by_hand() {
    let block = Nf4::quantise(&[0.5, -1.0, 0.25, 2.0], false).unwrap();
    // Two codes a byte, the first in the high bits.
    assert_eq!(block.codes, [10 << 4 | 2, 9 << 4 | 15]);
    assert!(matches!(&block.scales, Scales::Single(scales) if scales == &[2.0]));
    let mut values = [0f32; 4];
    block.dequantise(0, &mut values);
    let values = values.map(f64::from);
    assert_near(
        &values,
        &[0.492_224_6, -1.050_146_1, 0.321_860_4, 2.0],
        1e-6,
    );
}

/// Unmerged, on four bits, beside the dequantised weight with the update folded in.
#[test]
fn unmerged_is_dequantised_and_merged() {
    for (double, variant) in [false, true]
        .into_iter()
        .flat_map(|double| BOTH.map(|v| (double, v)))
    {
        let single =
            |what: &str, shape: &[usize]| random(what, shape).to_dtype(DType::F32).unwrap();
        let w = single("W", &[48, 96]).flatten_all().unwrap();
        let held = Nf4::quantise(&w.to_vec1::<f32>().unwrap(), double).unwrap();
        let base = FrozenLinear::stored(Stored::nf4(held, (48, 96)).unwrap());
        let before: Vec<f64> = numbers(&base.weight().unwrap());
        let (indices, shape) = match variant {
            Variant::Fa => ([90u32, 3, 41], [48, 3]),
            Variant::Fb => ([40, 3, 21], [3, 96]),
        };
        let start = saved(variant, &indices, &single("factor", &shape));
        let adapted = Adapted::on(base, keys(variant, 3, 0.75), start).unwrap();
        let x = single("x", &[2, 5, 96]);
        let merged: Tensor = adapted.merged();
        let dense = FrozenLinear::new(merged.clone(), None).unwrap();
        let expected = numbers(&dense.forward(&x).unwrap());
        assert_near(&numbers(&adapted.output(&x)), &expected, 1e-5);

        // The base is as it was, and the merge differs from it where indices say, bit for bit.
        assert_eq!(numbers(&adapted.layer().base().weight().unwrap()), before);
        for (at, (before, after)) in before.iter().zip(numbers(&merged)).enumerate() {
            let place = [at / 96, at % 96][variant.axis()] as u32;
            assert_eq!(
                before.to_bits() == after.to_bits(),
                !indices.contains(&place)
            );
        }
        // Gradients are those on the dequantised weight.
        let g = single("g", &[2, 5, 48]);
        let weight = adapted.layer().base().weight().unwrap();
        let factor = adapted.factor().value();
        let twin = Adapted::new(
            &weight,
            keys(variant, 3, 0.75),
            saved(variant, &indices, &factor),
        );
        let (got, expected) = (adapted.gradients(&x, &g), twin.gradients(&x, &g));
        assert_near(&got.0, &expected.0, 1e-5);
        assert_near(&got.1, &expected.1, 1e-5);
    }
}
