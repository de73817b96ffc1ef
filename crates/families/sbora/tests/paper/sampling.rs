//! Which columns and rows are drawn, and how many parameters that makes.

use crate::{Adapted, keys, random};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::Start;
use lowrank_frozen::FrozenLinear;
use lowrank_sbora::{Variant, region};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const FIRST: &str = "layers.0.self_attn.q_proj";

#[test]
fn regions_are_the_known_ones() {
    let tasks = [[3, 5, 6, 15], [0, 1, 9, 11], [4, 8, 10, 14], [2, 7, 12, 13]];
    for (task, expected) in tasks.into_iter().enumerate() {
        assert_eq!(region(42, FIRST, 16, 4, task).unwrap(), expected);
    }
    // The permutation itself, slot by slot.
    let slots = (0..16).map(|task| region(42, FIRST, 16, 1, task).unwrap()[0]);
    let permutation = [6, 5, 15, 3, 1, 9, 11, 0, 14, 8, 4, 10, 12, 7, 2, 13];
    assert_eq!(slots.collect::<Vec<_>>(), permutation);
    let second = region(42, "layers.1.self_attn.q_proj", 16, 4, 0).unwrap();
    assert_eq!(second, [5, 11, 14, 15]);
    assert_eq!(region(43, FIRST, 16, 4, 0).unwrap(), [0, 8, 13, 15]);
}

#[test]
fn regions_are_distinct_in_range_and_disjoint() {
    for (count, rank) in [(16, 5), (97, 8), (256, 64), (7, 7)] {
        let tasks = count / rank;
        let mut all = BTreeSet::new();
        for task in 0..tasks {
            let own = region(11, "some.module", count, rank, task).unwrap();
            assert!(own.is_sorted() && own.len() == rank);
            assert!(own.iter().all(|index| (*index as usize) < count));
            all.extend(own);
        }
        assert_eq!(all.len(), tasks * rank, "{count}, {rank}");
    }
    assert_eq!(region(5, FIRST, 7, 7, 0).unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    let error = region(5, "up", 16, 6, 2).unwrap_err().to_string();
    assert_eq!(
        error,
        "task 2 with r = 6 needs 18 of the 16 columns or rows of `up`; 2 tasks of that rank fit"
    );
}

/// Regions of two modules are independent draws: how often they share no index is what chance says.
#[test]
fn regions_of_different_modules_are_independent() {
    for (count, rank, chance) in [
        (4096, 64, 0.362),
        (4096, 32, 0.777),
        (768, 8, 0.919),
        (768, 64, 0.003),
    ] {
        let disjoint = |pair: usize| {
            let [one, other] = ["q_proj", "k_proj"].map(|role| {
                let path = format!("layers.{pair}.self_attn.{role}");
                region(42, &path, count, rank, 0).unwrap()
            });
            let one: BTreeSet<u32> = one.into_iter().collect();
            other.iter().all(|index| !one.contains(index))
        };
        let share = (0..400).filter(|pair| disjoint(*pair)).count() as f64 / 400.0;
        assert!((share - chance).abs() < 0.07, "{count}, {rank}: {share}");
        let exact: f64 = (0..rank)
            .map(|at| 1.0 - rank as f64 / (count - at) as f64)
            .product();
        assert!((exact - chance).abs() < 6e-4, "{exact}");
    }
}

#[test]
fn layers_take_their_regions() {
    let w = random("W", &[14, 10]);
    for (variant, count) in [(Variant::Fa, 10), (Variant::Fb, 14)] {
        let mut keys = keys(variant, 3, 4.5);
        keys["index_seed"] = json!(9);
        keys["tasks"] = json!(3);
        for task in 0..3 {
            keys["task"] = json!(task);
            // The run's seed has no say.
            for seed in [1, 2] {
                let adapted = Adapted::new(&w, keys.clone(), Start::Seed(seed));
                let expected = region(9, "up", count, 3, task).unwrap();
                assert_eq!(adapted.indices(), expected);
            }
        }
    }
}

#[test]
fn tasks_that_do_not_fit_are_refused() {
    let refused = |more: Value| {
        let mut keys = keys(Variant::Fa, 3, 4.5);
        for (key, value) in more.as_object().unwrap() {
            keys[key] = value.clone();
        }
        let base = FrozenLinear::new(random("W", &[14, 10]), None).unwrap();
        let error = Adapted::on(base, keys, Start::Seed(1)).map(drop);
        error.unwrap_err().to_string()
    };
    assert_eq!(
        refused(json!({ "task": 2, "tasks": 2 })),
        "`task = 2` is not one of the 2 that `tasks` says there are; they count from 0"
    );
    assert_eq!(
        refused(json!({ "tasks": 4 })),
        "up: task 3 with r = 3 needs 12 of the 10 columns or rows of `up`; 3 tasks of that rank fit"
    );
    assert_eq!(
        refused(json!({ "r": 11 })),
        "up: task 0 with r = 11 needs 11 of the 10 columns or rows of `up`; 0 tasks of that rank fit"
    );
}

/// All columns and scale 1: the whole matrix trains.
#[test]
fn a_rank_of_the_whole_side_is_everything() {
    let w = Tensor::zeros((14, 10), DType::F64, &Device::Cpu).unwrap();
    let adapted = Adapted::new(&w, keys(Variant::Fa, 10, 10.0), Start::Seed(1));
    assert_eq!(adapted.attached.trainable_parameters(), 140);
    let whole = random("W", &[14, 10]);
    adapted.factor().set(&whole).unwrap();
    let merged = adapted.merged().flatten_all().unwrap();
    let expected = whole.flatten_all().unwrap();
    assert_eq!(
        merged.to_vec1::<f64>().unwrap(),
        expected.to_vec1::<f64>().unwrap()
    );
}

/// (n_out, n_in) of the targeted modules of a layer.
type Shapes<'a> = &'a [(usize, usize)];

fn parameters(variant: Variant, r: usize, shapes: Shapes<'_>) -> usize {
    let count = |&(n_out, n_in): &(usize, usize)| {
        let base = FrozenLinear::absent(n_out, n_in);
        let adapted = Adapted::on(base, keys(variant, r, 16.0), Start::Seed(1)).unwrap();
        adapted.attached.trainable_parameters()
    };
    shapes.iter().map(count).sum()
}

/// Counted at shapes: no weight of that size is made.
#[test]
fn parameters_of_real_models() {
    let (square, up, down) = ((4096, 4096), (11_008, 4096), (4096, 11_008));
    let five = [square, square, square, up, down];
    let seven = [square, square, square, square, up, up, down];
    let (kv, up3, down3) = ((1024, 4096), (14_336, 4096), (4096, 14_336));
    let grouped = [square, kv, kv, up3, down3];
    let grouped_seven = [square, kv, kv, square, up3, up3, down3];
    let (square13, up13, down13) = ((5120, 5120), (13_824, 5120), (5120, 13_824));
    let large = [square13, square13, square13, square13, up13, up13, down13];
    let rows: [(usize, usize, Shapes<'_>, usize, usize, usize); 7] = [
        (32, 32, &five, 56_098_816, 28_049_408, 28_049_408),
        (32, 64, &five, 112_197_632, 56_098_816, 56_098_816),
        (32, 32, &grouped, 56_623_104, 25_165_824, 31_457_280),
        (32, 64, &grouped, 113_246_208, 50_331_648, 62_914_560),
        (32, 64, &seven, 159_907_840, 87_031_808, 72_876_032),
        (40, 64, &large, 250_347_520, 136_314_880, 114_032_640),
        (32, 64, &grouped_seven, 167_772_160, 88_080_384, 79_691_776),
    ];
    for (layers, r, shapes, lora, fa, fb) in rows {
        assert_eq!(layers * parameters(Variant::Fa, r, shapes), fa);
        assert_eq!(layers * parameters(Variant::Fb, r, shapes), fb);
        let sides: usize = shapes.iter().map(|(n_out, n_in)| n_out + n_in).sum();
        assert_eq!(layers * r * sides, lora);
    }
}
