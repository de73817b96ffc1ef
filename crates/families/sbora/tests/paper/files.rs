//! What a file says counts, and what it must not say.

use crate::{Adapted, BOTH, Worked, keys, large, numbers, random, saved};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{AnyFamily, Start};
use lowrank_frozen::FrozenLinear;
use lowrank_sbora::{Sbora, Variant};
use serde_json::json;
use std::collections::BTreeMap;

#[test]
fn indices_are_read_and_not_drawn_again() {
    for variant in BOTH {
        let (_, factor, adapted) = large(variant, DType::F64);
        let expected = match variant {
            Variant::Fa => [8, 1, 6],
            Variant::Fb => [5, 0, 2],
        };
        assert_eq!(adapted.indices(), expected);
        let exported = adapted.attached.exported().unwrap();
        let tensors: BTreeMap<String, Tensor> = exported.tensors.into_iter().collect();
        assert_eq!(tensors["up.sbora_idx"].dtype(), DType::U32);
        // A seed that would draw others changes nothing.
        let mut keys = keys(variant, 3, 4.5);
        keys["index_seed"] = json!(77);
        let (w, x) = (random("W", &[7, 11]), random("x", &[4, 11]));
        let start = Start::Saved { tensors, seed: 3 };
        let again = Adapted::new(&w, keys, start);
        assert_eq!(again.indices(), expected);
        assert_eq!(numbers(&again.factor().value()), numbers(&factor));
        assert_eq!(numbers(&again.output(&x)), numbers(&adapted.output(&x)));
    }
}

fn refused(variant: Variant, start: Start) -> String {
    let base = FrozenLinear::new(Worked::new().w, None).unwrap();
    let error = Adapted::on(base, keys(variant, 2, 1.0), start).map(drop);
    error.unwrap_err().to_string()
}

#[test]
fn bad_indices_are_refused() {
    let example = Worked::new();
    for (variant, factor, count, places) in [
        (Variant::Fa, &example.b, 4, "columns"),
        (Variant::Fb, &example.a, 3, "rows"),
    ] {
        assert_eq!(
            refused(variant, saved(variant, &[1, count], factor)),
            format!("up: tensor `up.sbora_idx` holds {count}, and the weight has {count} {places}")
        );
        assert_eq!(
            refused(variant, saved(variant, &[1, u32::MAX], factor)),
            format!(
                "up: tensor `up.sbora_idx` holds {}, and the weight has {count} {places}",
                u32::MAX
            )
        );
        assert_eq!(
            refused(variant, saved(variant, &[1, 1], factor)),
            format!("up: tensor `up.sbora_idx` holds 1 twice, expected distinct {places}")
        );
    }
    let floats = Tensor::new(&[2f32, 0.], &Device::Cpu).unwrap();
    let Start::Saved { mut tensors, seed } = saved(Variant::Fa, &[2, 0], &example.b) else {
        panic!("a file")
    };
    tensors.insert("up.sbora_idx".into(), floats);
    let message = refused(Variant::Fa, Start::Saved { tensors, seed });
    assert!(message.contains("`up.sbora_idx`"), "{message}");
}

/// FA's file read as FB, with and without another name for its factor.
#[test]
fn the_other_variant_is_refused() {
    let example = Worked::new();
    let message = refused(Variant::Fb, saved(Variant::Fa, &[2, 0], &example.b));
    assert!(message.contains("`up.sbora_a` is missing"), "{message}");
    let message = refused(Variant::Fb, saved(Variant::Fb, &[2, 0], &example.b));
    assert!(message.contains("[3, 2], expected [2, 4]"), "{message}");
}

/// A file tells one side of a weight; the indices tell enough of the other for the update's norm.
#[test]
fn a_file_without_its_base_has_sites_and_norms() {
    for variant in BOTH {
        let (_, factor, adapted) = large(variant, DType::F64);
        let exported = adapted.attached.exported().unwrap().tensors;
        let shapes = exported
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        let sites = AnyFamily::sites(&Sbora, &shapes.collect());
        let (n_out, n_in) = sites["up"];
        assert_eq!((n_out, n_in), factor.dims2().unwrap());
        let base = FrozenLinear::absent(n_out, n_in);
        let start = saved(variant, &adapted.indices(), &factor);
        let seen = Adapted::on(base, keys(variant, 3, 4.5), start).unwrap();
        let whole = adapted.low_rank().norm().unwrap();
        // A weight that is not there counts as one in f32.
        assert!((seen.low_rank().norm().unwrap() - whole).abs() < 1e-6 * whole);
    }
}
