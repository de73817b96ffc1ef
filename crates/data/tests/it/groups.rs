//! Rows of similar length side by side.

use crate::helpers::count;
use lowrank_data::{
    Example, Length, Lengths, Mixture, Order, Packing, Padded, Plan, StepRows, UNSUPERVISED,
};
use lowrank_ops::rng::{Key, Purpose};
use proptest::prelude::*;

fn of_lengths(lengths: &[usize]) -> Vec<Example> {
    let rows = lengths.iter().map(|&length| Example {
        ids: vec![3; length],
        labels: vec![UNSUPERVISED; length],
        ..Example::default()
    });
    rows.collect()
}

fn plan(
    rows: usize,
    shuffle: bool,
    (batch_size, accumulate): (usize, usize),
    length: Length,
) -> Plan {
    let order = Order {
        seed: 3,
        shuffle,
        len: count(rows),
    };
    Plan::new(order, count(batch_size), count(accumulate), length)
}

/// Of one epoch: all places, and those of tokens.
fn places(examples: &[Example], plan: &Plan) -> (usize, usize) {
    let (mut all, mut tokens) = (0, 0);
    for step in plan.steps_after(0) {
        for batch in step.micro_batches {
            let rows = batch
                .iter()
                .map(|rows| rows.iter().map(|&row| &examples[row]));
            let padded = Padded::pack(rows);
            all += padded.rows * padded.length;
            tokens += padded.tokens();
        }
    }
    (all, tokens)
}

#[test]
fn grouping_saves_most_of_the_padding() {
    let mut random = Key::new(8, Purpose::Test).stream();
    // Few are long, as in most data.
    let lengths: Vec<usize> = (0..1000)
        .map(|_| 4 + (500.0 * random.uniform().powi(3)) as usize)
        .collect();
    let examples = of_lengths(&lengths);
    let plain = plan(1000, true, (8, 1), Length::Epochs(1));
    let grouped = plain.clone().grouped(Lengths::new(&examples)).unwrap();
    let (all, tokens) = places(&examples, &plain);
    let (less, same) = places(&examples, &grouped);
    assert_eq!((tokens, same), (lengths.iter().sum(), tokens));
    let share = |all: usize| (all - tokens) as f64 / all as f64;
    assert!(share(all) > 0.5, "{}", share(all));
    assert!(share(less) < 0.06, "{}", share(less));
}

#[test]
fn the_order_of_the_files_is_sorted_within_stretches() {
    // 16 rows in steps of 2: stretches of 2 steps.
    let lengths = [5, 9, 1, 7, 2, 8, 3, 6, 4, 4, 4, 5, 1, 2, 3, 4];
    let grouped =
        plan(16, false, (2, 1), Length::Epochs(1)).grouped(Lengths::new(&of_lengths(&lengths)));
    let steps: Vec<StepRows> = grouped.unwrap().steps_after(0).collect();
    let batches: Vec<Vec<usize>> = steps
        .iter()
        .map(|step| step.micro_batches[0].concat())
        .collect();
    assert_eq!(
        batches,
        [
            [1, 3],
            [0, 2],
            [5, 7],
            [6, 4],
            [11, 8],
            [9, 10],
            [15, 14],
            [13, 12]
        ]
    );
}

#[test]
fn epochs_differ_and_so_do_the_places_of_long_rows() {
    let lengths: Vec<usize> = (1..=64).collect();
    let grouped =
        plan(64, true, (4, 1), Length::Epochs(6)).grouped(Lengths::new(&of_lengths(&lengths)));
    let steps: Vec<StepRows> = grouped.unwrap().steps_after(0).collect();
    let epochs: Vec<&[StepRows]> = steps.chunks(16).collect();
    let rows = |step: &StepRows| step.micro_batches.concat().concat();
    let longest = |epoch: &[StepRows]| epoch.iter().position(|step| rows(step).contains(&63));
    let places: Vec<_> = epochs.iter().map(|epoch| longest(epoch).unwrap()).collect();
    assert!(
        places.iter().any(|place| place % 4 != places[0] % 4),
        "{places:?}"
    );
    let companions = |epoch: &[StepRows]| epoch.iter().map(rows).find(|rows| rows.contains(&63));
    assert_ne!(companions(epochs[0]), companions(epochs[1]));
}

#[test]
fn lengths_of_other_rows_are_refused() {
    let lengths = Lengths::new(&of_lengths(&[4, 5, 6]));
    let error = plan(4, true, (2, 1), Length::Epochs(1))
        .grouped(lengths)
        .unwrap_err();
    assert_eq!(error.to_string(), "a packing of 3 rows cannot pack 4");
}

#[test]
fn steps_that_no_run_reaches_do_not_overflow() {
    let lengths = Lengths::new(&of_lengths(&[4, 5, 6]));
    let endless = plan(3, true, (usize::MAX, 3), Length::Epochs(u64::MAX)).grouped(lengths);
    assert_eq!(endless.unwrap().total_steps(), 1);
}

/// Rows with lengths and weights, and a place to resume at.
fn runs() -> impl Strategy<Value = (Vec<usize>, usize, usize, usize, bool)> {
    (
        prop::collection::vec(1usize..30, 1..50),
        1usize..6,
        1usize..4,
        1usize..90,
        any::<bool>(),
    )
}

proptest! {
    #[test]
    fn every_row_comes_once_an_epoch_and_any_step_resumes(
        (lengths, batch_size, accumulate, _, shuffle) in runs(), epochs in 1u64..5, done in 0u64..60,
    ) {
        let examples = of_lengths(&lengths);
        let plain = plan(lengths.len(), shuffle, (batch_size, accumulate), Length::Epochs(epochs));
        let grouped = plain.clone().grouped(Lengths::new(&examples)).unwrap();
        let steps: Vec<_> = grouped.steps_after(0).collect();
        prop_assert_eq!(steps.len() as u64, plain.total_steps());
        let rows: Vec<usize> = steps.iter().flat_map(|step| step.micro_batches.concat().concat()).collect();
        for epoch in rows.chunks(lengths.len()) {
            let mut rows = epoch.to_vec();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
        }
        // The shapes of steps are what they were.
        let shape = |step: &StepRows| step.micro_batches.iter().map(Vec::len).collect::<Vec<_>>();
        let shapes: Vec<_> = steps.iter().map(shape).collect();
        prop_assert_eq!(shapes, plain.steps_after(0).map(|step| shape(&step)).collect::<Vec<_>>());
        let rest = steps.get(done as usize..).unwrap_or_default();
        prop_assert_eq!(grouped.steps_after(done).collect::<Vec<_>>(), rest);
    }

    #[test]
    fn weighted_epochs_are_grouped_and_packed_as_others_are(
        (lengths, batch_size, accumulate, draws, shuffle) in runs(), done in 0u64..60,
    ) {
        let examples = of_lengths(&lengths);
        let mixture = Mixture::new(&[(lengths.len(), draws)], 9, shuffle).unwrap();
        let mixed = plan(draws, shuffle, (batch_size, accumulate), Length::Epochs(3)).mixed(mixture).unwrap();
        let packed = mixed.clone().packed(Packing::new(&examples, count(30))).unwrap();
        let grouped = mixed.clone().grouped(Lengths::new(&examples)).unwrap();
        let rows = |plan: &Plan| {
            let mut rows: Vec<usize> = plan.steps_after(0).flat_map(|step| step.micro_batches.concat().concat()).collect();
            rows.sort_unstable();
            rows
        };
        prop_assert_eq!(rows(&packed), rows(&mixed));
        prop_assert_eq!(rows(&grouped), rows(&mixed));
        for plan in [packed, grouped] {
            let steps: Vec<_> = plan.steps_after(0).collect();
            let rest = steps.get(done as usize..).unwrap_or_default();
            prop_assert_eq!(plan.steps_after(done).collect::<Vec<_>>(), rest);
        }
    }
}
