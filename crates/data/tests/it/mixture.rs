//! Files that are taken more often than others, and rows that are held out.

use crate::helpers::{Folder, count, examples, options};
use lowrank_data::{Dataset, Example, Length, Mixture, Order, Plan};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn plan(files: &[(usize, usize)], shuffle: bool, length: Length) -> Plan {
    let mixture = Mixture::new(files, 5, shuffle).unwrap();
    let order = Order {
        seed: 5,
        shuffle,
        len: mixture.draws(),
    };
    let plan = Plan::new(order, count(3), count(2), length);
    plan.mixed(mixture).unwrap()
}

/// The rows of a run, in its order.
fn rows(plan: &Plan) -> Vec<usize> {
    let steps = plan.steps_after(0);
    let rows = steps.flat_map(|step| step.micro_batches.into_iter().flatten().flatten());
    rows.collect()
}

#[test]
fn in_the_order_of_the_files_rows_come_as_often_as_their_weight_says() {
    // Twice, one and a half times, and 2 of 5.
    let plan = plan(&[(2, 4), (2, 3), (5, 2)], false, Length::Epochs(3));
    let rows = rows(&plan);
    assert_eq!(rows[..9], [0, 1, 0, 1, 2, 3, 2, 4, 5]);
    // What came once more in one epoch is not what does in the next.
    assert_eq!(rows[9..18], [0, 1, 0, 1, 2, 3, 3, 6, 7]);
    assert_eq!(rows[18..], [0, 1, 0, 1, 2, 3, 2, 8, 4]);
}

#[test]
fn files_without_rows_or_without_draws_are_passed_over() {
    let plan = plan(
        &[(0, 3), (2, 2), (4, 0), (1, 1), (0, 0)],
        false,
        Length::Epochs(2),
    );
    assert_eq!(rows(&plan), [0, 1, 6, 0, 1, 6]);
    assert_eq!(Mixture::new(&[(3, 0), (0, 4)], 5, true), None);
    assert_eq!(Mixture::new(&[(3, usize::MAX), (4, 1)], 5, false), None);
}

#[test]
fn a_mixture_of_another_epoch_is_refused() {
    let mixture = Mixture::new(&[(3, 6)], 5, true).unwrap();
    let order = Order {
        seed: 5,
        shuffle: true,
        len: count(3),
    };
    let plan = Plan::new(order, count(2), count(1), Length::Steps(1));
    let error = plan.mixed(mixture).unwrap_err();
    assert_eq!(error.to_string(), "an epoch of 3 rows cannot take 6");
}

/// Rows of one token, numbered from `first`.
fn numbered(first: usize, rows: usize) -> String {
    let line = |id: usize| format!("{{\"input_ids\": [0, {id}], \"labels\": [-100, {id}]}}\n");
    (first..first + rows).map(line).collect()
}

fn data(folder: &Folder, names: &[&str]) -> Dataset {
    let options = lowrank_data::Options {
        vocab: 1000,
        ..options()
    };
    folder.open(names, None, &options).unwrap()
}

fn numbers(data: &Dataset) -> Vec<u32> {
    examples(data)
        .iter()
        .map(|example| example.ids[1])
        .collect()
}

#[test]
fn weights_belong_to_patterns_and_epochs_are_counted() {
    let (a, b, c) = (numbered(0, 3), numbered(3, 5), numbered(8, 8));
    let folder = Folder::new(&[
        ("a1.jsonl", a.as_bytes()),
        ("a2.jsonl", b.as_bytes()),
        ("c.jsonl", c.as_bytes()),
    ]);
    let open = || data(&folder, &["a*.jsonl", "c.jsonl"]);
    assert_eq!(open().examples().mixture(5, true).unwrap(), None);
    let weighted = open().weighted(&[1.5, 0.25]).unwrap();
    let per_epoch = weighted.summary().files.iter().map(|file| file.per_epoch);
    // Half a row is rounded up.
    assert_eq!(per_epoch.collect::<Vec<_>>(), [5, 8, 2]);
    let mixture = weighted.examples().mixture(5, true).unwrap().unwrap();
    assert_eq!((mixture.rows(), mixture.draws()), (16, count(15)));

    let error = open().weighted(&[1.0, 0.05]).unwrap_err();
    assert_eq!(
        folder.message(&error),
        "data file `c.jsonl` has 8 rows, and a weight of 0.05 takes none of them in an epoch: raise the weight, or leave the file out"
    );
    let endless = open().weighted(&[1.0, f64::MAX]).unwrap();
    let error = endless.examples().mixture(5, true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an epoch would take more rows than can be counted: lower the weights of `data.train`"
    );
}

#[test]
fn a_share_of_all_files_is_held_out() {
    let (a, b) = (numbered(0, 30), numbered(30, 70));
    let folder = Folder::new(&[("a.jsonl", a.as_bytes()), ("b.jsonl", b.as_bytes())]);
    let open = || data(&folder, &["a.jsonl", "b.jsonl"]);
    let (train, held_out) = open().split(0.25, 7).unwrap();
    let (kept, out) = (numbers(&train), numbers(&held_out));
    assert_eq!((kept.len(), out.len()), (75, 25));
    assert!(kept.is_sorted() && out.is_sorted());
    let mut all = [kept.clone(), out.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<u32>>());
    // Of both files, and counted there.
    let of_a = out.iter().filter(|&&number| number < 30).count();
    assert!((1..25).contains(&of_a));
    let rows = |data: &Dataset| -> Vec<usize> {
        data.summary().files.iter().map(|file| file.rows).collect()
    };
    assert_eq!(rows(&held_out), [of_a, 25 - of_a]);
    assert_eq!(rows(&train), [30 - of_a, 45 + of_a]);
    assert_eq!((train.summary().rows, train.summary().tokens), (75, 150));

    // The seed alone decides; weights are of what is left.
    assert_eq!(numbers(&open().split(0.25, 7).unwrap().1), out);
    assert_ne!(numbers(&open().split(0.25, 8).unwrap().1), out);
    let weighted = train.clone().weighted(&[2.0, 1.0]).unwrap();
    let draws = weighted
        .examples()
        .mixture(7, true)
        .unwrap()
        .unwrap()
        .draws();
    assert_eq!(draws.get(), 2 * (30 - of_a) + 45 + of_a);
    assert_eq!(weighted.examples().len(), 75);

    // A part can be split again.
    let (first, second) = train.split(0.2, 7).unwrap();
    let mut again = [numbers(&first), numbers(&second)].concat();
    again.sort_unstable();
    assert_eq!((again, second.rows()), (kept, count(15)));
}

#[test]
fn both_parts_have_a_row() {
    let folder = Folder::new(&[
        ("a.jsonl", numbered(0, 3).as_bytes()),
        ("b.jsonl", numbered(0, 1).as_bytes()),
    ]);
    let rows = |fraction| {
        let (train, held_out) = data(&folder, &["a.jsonl"]).split(fraction, 1).unwrap();
        (train.rows().get(), held_out.rows().get())
    };
    assert_eq!((rows(1e-9), rows(0.999)), ((2, 1), (1, 2)));
    let error = data(&folder, &["b.jsonl"]).split(0.5, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`data.eval_fraction = 0.5` of 1 rows leaves none to train on or none to evaluate on: expected at least 2 rows"
    );
}

#[test]
fn a_part_without_anything_supervised_is_refused() {
    let bare = "{\"input_ids\": [0, 1], \"labels\": [-100, -100]}\n".repeat(9);
    let folder = Folder::new(&[("a.jsonl", (bare + &numbered(0, 1)).as_bytes())]);
    let error = data(&folder, &["a.jsonl"]).split(0.5, 1).unwrap_err();
    assert!(
        folder
            .message(&error)
            .starts_with("nothing is supervised in `a.jsonl`: 5 rows"),
        "{error}"
    );
}

#[test]
fn rows_of_a_slice_have_no_files() {
    let rows = [Example::default(), Example::default()];
    let rows = lowrank_data::Examples::from(&rows);
    assert_eq!((rows.len(), rows.mixture(1, true).unwrap()), (2, None));
}

proptest! {
    #[test]
    fn rows_of_a_file_come_equally_often(
        seed: u64,
        shuffle: bool,
        files in prop::collection::vec((1usize..20, 0usize..50), 1..5),
        epochs in 1u64..9,
    ) {
        let Some(mixture) = Mixture::new(&files, seed, shuffle) else {
            prop_assert!(files.iter().all(|&(_, draws)| draws == 0));
            return Ok(());
        };
        let order = Order { seed, shuffle, len: mixture.draws() };
        let plan = Plan::new(order, count(4), count(1), Length::Epochs(epochs));
        let rows = rows(&plan.mixed(mixture.clone()).unwrap());
        prop_assert_eq!(rows.len() as u64, epochs * mixture.draws().get() as u64);
        let times = |rows: &[usize]| {
            let mut times = BTreeMap::new();
            rows.iter().for_each(|&row| *times.entry(row).or_insert(0usize) += 1);
            times
        };
        // In each epoch, and over all of them.
        let all = rows.chunks(mixture.draws().get()).map(|rows| (1, times(rows)));
        let all = all.chain([(epochs as usize, times(&rows))]);
        for (epochs, times) in all {
            let mut first = 0;
            for &(rows, draws) in &files {
                let of_file: Vec<_> = (first..first + rows).map(|row| times.get(&row).copied().unwrap_or(0)).collect();
                prop_assert_eq!(of_file.iter().sum::<usize>(), epochs * draws);
                let (least, most) = (of_file.iter().min().unwrap(), of_file.iter().max().unwrap());
                prop_assert!(most - least <= 1, "{:?}", of_file);
                first += rows;
            }
        }
    }

    #[test]
    fn a_mixture_resumes_at_any_step(
        seed: u64, shuffle: bool, files in prop::collection::vec((1usize..9, 1usize..20), 1..4), done in 0u64..30,
    ) {
        let mixture = Mixture::new(&files, seed, shuffle).unwrap();
        let order = Order { seed, shuffle, len: mixture.draws() };
        let plan = Plan::new(order, count(2), count(2), Length::Epochs(4)).mixed(mixture).unwrap();
        let steps: Vec<_> = plan.steps_after(0).collect();
        prop_assert_eq!(steps.len() as u64, plan.total_steps());
        let rest = steps.get(done as usize..).unwrap_or_default();
        prop_assert_eq!(plan.steps_after(done).collect::<Vec<_>>(), rest);
    }
}
