//! Rows in sequences.

use crate::helpers::count;
use lowrank_data::{Example, Length, Order, Packing, Plan, Sequence, UNSUPERVISED};
use lowrank_ops::rng::{Key, Purpose};
use proptest::prelude::*;

fn packing(lengths: &[usize], max_length: usize) -> Packing {
    let examples: Vec<_> = lengths
        .iter()
        .map(|&length| Example {
            ids: vec![3; length],
            labels: vec![UNSUPERVISED; length],
            ..Example::default()
        })
        .collect();
    Packing::new(&examples, count(max_length))
}

fn order(len: usize, shuffle: bool) -> Order {
    Order {
        seed: 11,
        shuffle,
        len: count(len),
    }
}

#[test]
fn a_row_goes_into_the_first_sequence_with_room() {
    let packing = packing(&[5, 3, 4, 2, 6, 1, 9], 8);
    let sequences = packing.pack(0..7);
    // The last is longer than a sequence may be: it stays alone.
    assert_eq!(sequences, [vec![0, 1], vec![2, 3, 5], vec![4], vec![6]]);
    // Another order gives other sequences.
    let sequences = packing.pack([4, 0, 5, 2, 3, 1]);
    assert_eq!(sequences, [vec![4, 5], vec![0, 3], vec![2, 1]]);
    assert_eq!(packing.pack([]), [[0; 0]; 0]);
}

#[test]
fn the_oldest_of_many_sequences_makes_way() {
    let mut lengths = vec![6; 65];
    lengths.extend([4, 4]);
    let sequences = packing(&lengths, 10).pack(0..67);
    // The first was closed when the 65th was begun.
    let mut expected: Vec<Sequence> = (0..65).map(|row| vec![row]).collect();
    expected[1].push(65);
    expected[2].push(66);
    assert_eq!(sequences, expected);
}

#[test]
fn epochs_are_packed_apart_and_steps_span_them() {
    let plan = |length| {
        let plan = Plan::new(order(4, false), count(2), count(2), length);
        plan.packed(packing(&[5, 3, 7, 1], 8)).unwrap()
    };
    let epochs = plan(Length::Epochs(3));
    assert_eq!(
        (
            epochs.total_steps(),
            epochs.steps_per_epoch(),
            epochs.sequences_after(2)
        ),
        (2, 1, 6)
    );
    let (first, second) = (vec![0, 1], vec![2, 3]);
    let steps: Vec<_> = epochs.steps_after(0).collect();
    let whole = vec![vec![first.clone(), second.clone()]; 2];
    assert_eq!(steps[0].micro_batches, whole);
    // The last step is short.
    assert_eq!(steps[1].micro_batches, &whole[..1]);
    assert_eq!((steps[1].step, steps.len()), (2, 2));
    let endless = plan(Length::Steps(u64::MAX)).steps_after(1_000_000_007);
    let step = endless.take(1).next().unwrap();
    assert_eq!((step.step, step.micro_batches), (1_000_000_008, whole));
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let plan = |epochs| {
        let length = Length::Epochs(epochs);
        Plan::new(order(4, true), count(2), count(2), length)
    };
    let error = plan(1).packed(packing(&[5, 3, 7], 8)).unwrap_err();
    assert_eq!(error.to_string(), "a packing of 3 rows cannot pack 4");
    let error = plan(u64::MAX).packed(packing(&[5; 4], 8)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`train.epochs = 18446744073709551615` of 4 rows cannot be packed ahead to count the steps: expected at most 20000000 \
         rows in all; say how long the run is with `train.steps`"
    );
    // In the order of the files every epoch is the same.
    let endless = Plan::new(
        order(4, false),
        count(1),
        count(1),
        Length::Epochs(u64::MAX),
    );
    let endless = endless.packed(packing(&[5; 4], 8)).unwrap();
    assert_eq!(endless.total_steps(), u64::MAX);
}

#[test]
fn packing_is_dense() {
    let mut stream = Key::new(3, Purpose::Test).stream();
    // Short rows, as of questions; long ones, of which few fit together; both.
    for (least, most, expected) in [(20, 120, 0.98), (100, 500, 0.9), (5, 512, 0.93)] {
        let lengths: Vec<usize> = (0..4000)
            .map(|_| (least + stream.below(most - least)) as usize)
            .collect();
        let sequences = packing(&lengths, 512).pack(0..lengths.len());
        let tokens: usize = lengths.iter().sum();
        let share = tokens as f64 / (512 * sequences.len()) as f64;
        assert!(share > expected, "{least} to {most} tokens: {share}");
    }
}

proptest! {
    #[test]
    fn a_run_takes_every_row_once_an_epoch_and_resumes_anywhere(
        lengths in prop::collection::vec(1usize..14, 1..40), max_length in 2usize..20, seed: u64, shuffle: bool,
        epochs in 0u64..5, batch_size in 1usize..4, accumulate in 1usize..3, done in 0u64..40,
    ) {
        let order = Order { seed, ..order(lengths.len(), shuffle) };
        let plan = Plan::new(order, count(batch_size), count(accumulate), Length::Epochs(epochs));
        let plan = plan.packed(packing(&lengths, max_length)).unwrap();
        let steps: Vec<_> = plan.steps_after(0).collect();
        prop_assert_eq!(steps.len() as u64, plan.total_steps());
        let sequences: Vec<_> = steps.iter().flat_map(|step| step.micro_batches.iter().flatten()).collect();
        prop_assert_eq!(sequences.len() as u64, plan.sequences_after(u64::MAX));
        for step in steps.iter().rev().skip(1) {
            let sizes: Vec<_> = step.micro_batches.iter().map(Vec::len).collect();
            prop_assert_eq!(sizes, vec![batch_size; accumulate]);
        }
        for sequence in &sequences {
            let tokens: usize = sequence.iter().map(|&row| lengths[row]).sum();
            prop_assert!(tokens <= max_length || sequence.len() == 1);
        }
        // The rows of an epoch come before those of the next.
        let rows: Vec<usize> = sequences.into_iter().flatten().copied().collect();
        prop_assert_eq!(rows.len(), lengths.len() * epochs as usize);
        for epoch in rows.chunks(lengths.len()) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            prop_assert_eq!(epoch, (0..lengths.len()).collect::<Vec<_>>());
        }
        let rest = steps.get(done as usize..).unwrap_or_default();
        prop_assert_eq!(plan.steps_after(done).collect::<Vec<_>>(), rest);
        // A run by steps is the same stream.
        let by_steps = Plan::new(order, count(batch_size), count(accumulate), Length::Steps(epochs));
        let by_steps = by_steps.packed(packing(&lengths, max_length)).unwrap();
        for (one, other) in by_steps.steps_after(0).zip(steps.iter().rev().skip(1).rev()) {
            prop_assert_eq!(&one, other);
        }
    }
}
