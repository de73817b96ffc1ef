//! Merges: what they leave alone, what takes them out again, and several adapters in one weight.

use crate::{BOTH, INDICES, Worked, assert_near, keys, large, matrix, numbers, random, saved};
use candle_core::{DType, Tensor};
use lowrank_adapter::{AdapterConfig, Pass, Result, Selection, Source, attach};
use lowrank_frozen::FrozenLinear;
use lowrank_sbora::{Overlap, Sbora, Update, Variant, fold_all};
use serde_json::json;

fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    flat.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_merge_leaves_the_rest_byte_for_byte() {
    for variant in BOTH {
        let (w, factor, adapted) = large(variant, DType::F32);
        let merged = adapted.merged();
        let indices = adapted.indices();
        for (at, (before, after)) in bits(&w).iter().zip(bits(&merged)).enumerate() {
            let place = [at / 11, at % 11][variant.axis()] as u32;
            let changes = indices.contains(&place);
            assert_eq!(*before != after, changes, "{variant:?} at {at}");
        }
        let x = random("x", &[5, 11]).to_dtype(DType::F32).unwrap();
        let layer = FrozenLinear::new(merged.clone(), None).unwrap();
        let folded = numbers(&layer.forward(&x).unwrap());
        assert_near(&folded, &numbers(&adapted.output(&x)), 1e-5);

        let update = Update::new(variant, indices, factor, 1.5).unwrap();
        let (again, kept) = update.fold_into(&w).unwrap();
        assert_eq!(bits(&again), bits(&merged));
        assert_eq!(bits(&kept.restore(&again).unwrap()), bits(&w));
    }
}

/// The last bits of a number are lost when a larger one is added: to subtract that would not bring the weight back.
#[test]
fn what_is_taken_out_is_not_subtracted() {
    let w = (random("W", &[7, 11]) * 1e-4)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let factor = random("factor", &[7, 3]).to_dtype(DType::F32).unwrap();
    let update = Update::new(Variant::Fa, vec![8, 1, 6], factor.clone(), 0.7).unwrap();
    let (merged, kept) = update.fold_into(&w).unwrap();
    assert_eq!(bits(&kept.restore(&merged).unwrap()), bits(&w));
    let opposite = Update::new(Variant::Fa, vec![8, 1, 6], factor, -0.7).unwrap();
    let (subtracted, _) = opposite.fold_into(&merged).unwrap();
    assert_ne!(bits(&subtracted), bits(&w));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (w, factor, _) = large(Variant::Fa, DType::F32);
    let message = |result: Result<Update>| match result {
        Ok(update) => update.fold_into(&w).map(drop).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    let update = |variant, indices: &[u32], factor: &Tensor| {
        message(Update::new(variant, indices.to_vec(), factor.clone(), 1.5))
    };
    assert_eq!(
        update(Variant::Fa, &[8, 1, 8], &factor),
        "the index 8 is there twice, expected distinct ones"
    );
    assert_eq!(
        update(Variant::Fa, &[8, 1], &factor),
        "a factor of shape [7, 3] for 2 indices, expected as many columns"
    );
    assert_eq!(
        update(Variant::Fa, &[8, 1, 11], &factor),
        "an update of the columns [8, 1, 11] with a factor of shape [7, 3] does not fit a weight of shape [7, 11]"
    );
    // FA's factor taken for FB's.
    let turned = factor.t().unwrap();
    assert_eq!(
        update(Variant::Fb, &[5, 1, 2], &turned),
        "an update of the rows [5, 1, 2] with a factor of shape [3, 7] does not fit a weight of shape [7, 11]"
    );
}

fn dense(update: &Update, count: usize) -> Tensor {
    let found = update.low_rank(count).unwrap();
    (found.b.matmul(&found.a).unwrap() * found.scale).unwrap()
}

#[test]
fn two_adapters_in_one_weight() {
    let example = Worked::new();
    let first = Update::new(Variant::Fa, INDICES.to_vec(), example.b.clone(), 0.5).unwrap();
    let factor = matrix(&[&[1.], &[1.], &[-1.]]);
    let second = Update::new(Variant::Fa, vec![1], factor.clone(), 2.0).unwrap();
    assert!(first.overlap(&second).is_empty());
    let updates = [first.clone(), second.clone()];
    let (merged, kept) = fold_all(&example.w, &updates, Overlap::Refuse).unwrap();
    let by_hand = [1.25, 2., 2.5, -1., 0.5, 3., -2., 1., 4., -3., 0., 0.5];
    assert_eq!(numbers(&merged), by_hand);
    let y = example.x.matmul(&merged.t().unwrap()).unwrap();
    assert_eq!(numbers(&y), [2.25, 9., -1.75, 3.5, -7., 4.]);

    // Attached together, the layer gives the same without a merge.
    let mut both = example.adapted(Variant::Fa);
    let mut keys = keys(Variant::Fa, 1, 2.0);
    keys["target_modules"] = json!(["up"]);
    let config = AdapterConfig::parse(&Sbora, keys.as_object().unwrap(), Source::RunFile);
    let start = saved(Variant::Fa, &[1], &factor);
    attach(&mut both.model, "other", &config.unwrap(), start).unwrap();
    let selection = [("default".into(), 1.0), ("other".into(), 1.0)];
    let selection = Selection::weighted(selection);
    let mut pass = Pass::evaluation(selection);
    let together = both.layer().forward(&example.x, &mut pass).unwrap();
    assert_eq!(numbers(&together), numbers(&y));

    // No column of the weight belongs to both.
    let product = dense(&first, 4).matmul(&dense(&second, 4).t().unwrap());
    assert_eq!(numbers(&product.unwrap()), [0.0; 9]);

    // Either can be taken out alone.
    let alone = |update: &Update| numbers(&update.fold_into(&example.w).unwrap().0);
    assert_eq!(numbers(&kept[0].restore(&merged).unwrap()), alone(&second));
    assert_eq!(numbers(&kept[1].restore(&merged).unwrap()), alone(&first));
}

#[test]
fn adapters_that_overlap_add_up_or_are_refused() {
    let example = Worked::new();
    let first = Update::new(Variant::Fb, INDICES.to_vec(), example.a.clone(), 0.5).unwrap();
    let second = Update::new(Variant::Fb, vec![1, 2], example.a.clone(), 2.0).unwrap();
    assert_eq!(first.overlap(&second), [2]);
    let updates = [first.clone(), second.clone()];
    let refused = fold_all(&example.w, &updates, Overlap::Refuse).map(drop);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "updates 0 and 1 both change the rows [2]"
    );
    let (merged, kept) = fold_all(&example.w, &updates, Overlap::Warn).unwrap();
    let sum = (dense(&first, 3) + dense(&second, 3)).unwrap();
    let expected = (&example.w + sum).unwrap();
    assert_near(&numbers(&merged), &numbers(&expected), 1e-15);
    // The last one goes first.
    let one = kept[1].restore(&merged).unwrap();
    let none = kept[0].restore(&one).unwrap();
    assert_eq!(numbers(&none), numbers(&example.w));
    // Columns and rows always meet, and belong to nobody alone.
    let columns = Update::new(
        Variant::Fa,
        vec![2],
        example.b.narrow(1, 0, 1).unwrap(),
        1.5,
    );
    assert!(columns.unwrap().overlap(&first).is_empty());
}
