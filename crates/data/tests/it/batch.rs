//! Batches.

use lowrank_data::{Example, Padded, UNSUPERVISED};
use proptest::prelude::*;

#[test]
fn rows_are_padded_on_the_right() {
    let rows = [
        Example {
            ids: vec![9, 8],
            labels: vec![9, 8],
            ..Example::default()
        },
        Example {
            ids: vec![5, 6, 7],
            labels: vec![UNSUPERVISED, UNSUPERVISED, 7],
            ..Example::default()
        },
    ];
    let batch = Padded::collate(&rows);
    let expected = Padded {
        rows: 2,
        length: 3,
        ids: vec![9, 8, 0, 5, 6, 7],
        labels: vec![-100, 8, -100, -100, -100, 7],
        segments: vec![1, 1, 0, 1, 1, 1],
        positions: vec![0, 1, 0, 0, 1, 2],
        types: None,
        row_labels: None,
    };
    assert_eq!(batch, expected);
    assert_eq!((batch.tokens(), batch.supervised()), (5, 2));
}

fn example(ids: &[u32], labels: &[i32]) -> Example {
    Example {
        ids: ids.to_vec(),
        labels: labels.to_vec(),
        ..Example::default()
    }
}

#[test]
fn packed_rows_keep_segments_and_positions_of_their_own() {
    let rows = [
        example(&[9, 8], &[9, 8]),
        example(&[5, 6, 7], &[5, UNSUPERVISED, 7]),
        example(&[4], &[4]),
        example(&[3, 2, 1], &[3, 2, 1]),
    ];
    let batch = Padded::pack([vec![&rows[0], &rows[2], &rows[1]], vec![&rows[3]]]);
    let expected = Padded {
        rows: 2,
        length: 6,
        ids: vec![9, 8, 4, 5, 6, 7, 3, 2, 1, 0, 0, 0],
        // No first token is predicted: not from the last one of another example either.
        labels: vec![-100, 8, -100, -100, -100, 7, -100, 2, 1, -100, -100, -100],
        segments: vec![1, 1, 2, 3, 3, 3, 1, 1, 1, 0, 0, 0],
        positions: vec![0, 1, 0, 0, 1, 2, 0, 1, 2, 0, 0, 0],
        types: None,
        row_labels: None,
    };
    assert_eq!(batch, expected);
    assert_eq!((batch.tokens(), batch.supervised()), (9, 4));
}

#[test]
fn types_and_labels_of_rows_lie_beside_their_tokens() {
    let mut pair = example(&[5, 6, 7], &[UNSUPERVISED; 3]);
    (pair.types, pair.label) = (vec![0, 1, 1], Some(2.0));
    let single = example(&[9, 8], &[UNSUPERVISED; 2]);
    let batch = Padded::collate([&single, &pair]);
    assert_eq!(batch.types, Some(vec![0, 0, 0, 0, 1, 1]));
    assert_eq!(batch.row_labels, Some(vec![None, Some(2.0)]));
    assert_eq!(batch.supervised(), 1);
}

#[test]
fn no_rows_give_an_empty_batch() {
    let batch = Padded::collate(&[]);
    assert_eq!(
        (batch.rows, batch.length, batch.tokens(), batch.supervised()),
        (0, 0, 0, 0)
    );
}

fn examples() -> impl Strategy<Value = Vec<Example>> {
    let token = (1u32..50, prop::bool::ANY);
    let row = prop::collection::vec(token, 1..12).prop_map(|tokens| Example {
        ids: tokens.iter().map(|&(id, _)| id).collect(),
        labels: tokens
            .iter()
            .map(|&(id, counts)| if counts { id as i32 } else { UNSUPERVISED })
            .collect(),
        ..Example::default()
    });
    prop::collection::vec(row, 1..7)
}

proptest! {
    #[test]
    fn padding_changes_nothing(rows in examples()) {
        let batch = Padded::collate(&rows);
        prop_assert_eq!(batch.tokens(), rows.iter().map(|row| row.ids.len()).sum::<usize>());
        prop_assert_eq!(batch.supervised(), rows.iter().map(Example::supervised).sum::<usize>());
        for (i, row) in rows.iter().enumerate() {
            for place in 0..batch.length {
                let at = i * batch.length + place;
                let here = place < row.ids.len();
                prop_assert_eq!(batch.segments[at], u32::from(here));
                prop_assert_eq!(batch.ids[at], if here { row.ids[place] } else { 0 });
                prop_assert_eq!(batch.positions[at], if here { place as u32 } else { 0 });
                let label = if here && place > 0 { row.labels[place] } else { UNSUPERVISED };
                prop_assert_eq!(batch.labels[at], label);
            }
        }
    }
}
