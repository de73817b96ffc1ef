//! Order and steps.

use crate::helpers::count;
use lowrank_data::{Length, Order, Plan, Sequence, StepRows};
use proptest::prelude::*;

fn plan(order: Order, batch_size: usize, accumulate: usize, length: Length) -> Plan {
    Plan::new(order, count(batch_size), count(accumulate), length)
}

/// Sequences of one row each.
fn alone(micro_batches: &[&[usize]]) -> Vec<Vec<Sequence>> {
    let micro_batches = micro_batches.iter();
    micro_batches
        .map(|rows| rows.iter().map(|&row| vec![row]).collect())
        .collect()
}

#[test]
fn steps_span_epochs_and_the_last_is_short() {
    let order = Order {
        seed: 7,
        shuffle: false,
        len: count(5),
    };
    let epochs = plan(order, 2, 2, Length::Epochs(2));
    let steps: Vec<_> = epochs.steps_after(0).collect();
    let expected = [
        StepRows {
            step: 1,
            micro_batches: alone(&[&[0, 1], &[2, 3]]),
        },
        StepRows {
            step: 2,
            micro_batches: alone(&[&[4, 0], &[1, 2]]),
        },
        StepRows {
            step: 3,
            micro_batches: alone(&[&[3, 4]]),
        },
    ];
    assert_eq!(steps, expected);
    assert_eq!(
        (
            epochs.total_steps(),
            epochs.sequences_after(3),
            epochs.sequences_per_step(),
            epochs.steps_per_epoch()
        ),
        (3, 10, 4, 2)
    );

    let plan = plan(order, 2, 2, Length::Steps(3));
    assert_eq!(plan.sequences_after(u64::MAX), 12);
    let last = plan.steps_after(2).collect::<Vec<_>>();
    assert_eq!(
        last,
        [StepRows {
            step: 3,
            micro_batches: alone(&[&[3, 4], &[0, 1]])
        }]
    );
    assert_eq!(plan.steps_after(3).next(), None);
    assert_eq!(plan.steps_after(u64::MAX).next(), None);
}

#[test]
fn epochs_and_seeds_differ() {
    let order = Order {
        seed: 42,
        shuffle: true,
        len: count(40),
    };
    let epoch = |order: Order, first| order.stream_at(first).take(40).collect::<Vec<_>>();
    assert_ne!(epoch(order, 0), epoch(order, 40));
    assert_ne!(epoch(order, 0), epoch(Order { seed: 43, ..order }, 0));
    assert_ne!(epoch(order, 0), (0..40).collect::<Vec<_>>());
}

#[test]
fn the_order_of_a_seed_is_part_of_the_contract() {
    let rows: Vec<_> = Order {
        seed: 42,
        shuffle: true,
        len: count(6),
    }
    .stream_at(0)
    .take(12)
    .collect();
    assert_eq!(rows, [2, 4, 1, 5, 0, 3, 3, 2, 5, 0, 4, 1]);
}

#[test]
fn lengths_that_no_run_reaches_do_not_overflow() {
    let order = Order {
        seed: 1,
        shuffle: true,
        len: count(3),
    };
    let endless = plan(order, usize::MAX, 3, Length::Epochs(u64::MAX));
    assert_eq!(
        (
            endless.sequences_per_step(),
            endless.sequences_after(u64::MAX),
            endless.total_steps()
        ),
        (u64::MAX, u64::MAX, 1)
    );
    assert!(
        order
            .stream_at(u64::MAX - 1)
            .next()
            .is_some_and(|row| row < 3)
    );
}

proptest! {
    #[test]
    fn every_epoch_is_a_permutation(seed: u64, len in 1usize..60, epoch in 0u64..1000, shuffle: bool) {
        let order = Order { seed, shuffle, len: count(len) };
        let mut rows: Vec<_> = order.stream_at(epoch * len as u64).take(len).collect();
        rows.sort_unstable();
        prop_assert_eq!(rows, (0..len).collect::<Vec<_>>());
    }

    #[test]
    fn a_stream_resumes_anywhere(seed: u64, len in 1usize..40, position in 0usize..100) {
        let order = Order { seed, shuffle: true, len: count(len) };
        let whole: Vec<_> = order.stream_at(0).take(position + 50).collect();
        let mut resumed = order.stream_at(position as u64);
        prop_assert_eq!(resumed.by_ref().take(50).collect::<Vec<_>>(), &whole[position..]);
        prop_assert_eq!(resumed.position(), position as u64 + 50);
        // Reading at any place, backwards as well, gives the same.
        for (place, &row) in whole.iter().enumerate().rev() {
            prop_assert_eq!(resumed.row(place as u64), row);
        }
    }

    #[test]
    fn steps_take_every_row_once_an_epoch(
        seed: u64, len in 1usize..30, epochs in 0u64..5, batch_size in 1usize..9, accumulate in 1usize..4, done in 0u64..40,
    ) {
        let order = Order { seed, shuffle: true, len: count(len) };
        let plan = plan(order, batch_size, accumulate, Length::Epochs(epochs));
        let steps: Vec<_> = plan.steps_after(0).collect();
        prop_assert_eq!(steps.len() as u64, plan.total_steps());
        let mut times = vec![0; len];
        for (i, step) in steps.iter().enumerate() {
            prop_assert_eq!(step.step, i as u64 + 1);
            let sizes: Vec<_> = step.micro_batches.iter().map(Vec::len).collect();
            let rows: usize = sizes.iter().sum();
            if i + 1 < steps.len() {
                prop_assert_eq!(&sizes, &vec![batch_size; accumulate]);
            } else {
                prop_assert!((1..=batch_size * accumulate).contains(&rows) && sizes.iter().all(|&size| size > 0));
            }
            for &row in step.micro_batches.iter().flatten().flatten() {
                times[row] += 1;
            }
        }
        prop_assert_eq!(times, vec![epochs; len]);
        let rest = steps.get(done as usize..).unwrap_or_default();
        prop_assert_eq!(plan.steps_after(done).collect::<Vec<_>>(), rest);
    }
}
