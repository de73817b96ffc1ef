//! Rows side by side.

use crate::example::{Example, UNSUPERVISED};

/// Examples padded on the right to the longest of them. Lists are row-major, (rows, length).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Padded {
    /// How many rows.
    pub rows: usize,
    /// The length of the longest row, in tokens.
    pub length: usize,
    /// The tokens; 0 in padding.
    pub ids: Vec<u32>,
    /// What must be predicted at each place; [`UNSUPERVISED`] in padding and at the start of a row.
    pub labels: Vec<i32>,
    /// Which places see each other: 1 for the example, 0 for padding.
    pub segments: Vec<u32>,
    /// The place in the example, from 0; 0 in padding.
    pub positions: Vec<u32>,
}

impl Padded {
    /// Lays examples side by side, in the order given.
    #[must_use]
    pub fn collate<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let examples: Vec<_> = examples.into_iter().collect();
        let rows = examples.len();
        let length = examples
            .iter()
            .map(|example| example.ids.len())
            .max()
            .unwrap_or(0);
        let places = rows * length;
        let mut batch = Self {
            rows,
            length,
            ids: vec![0; places],
            labels: vec![UNSUPERVISED; places],
            segments: vec![0; places],
            positions: vec![0; places],
        };
        for (row, example) in examples.into_iter().enumerate() {
            let start = row * length;
            for (i, (&id, &label)) in example.ids.iter().zip(&example.labels).enumerate() {
                batch.ids[start + i] = id;
                batch.segments[start + i] = 1;
                batch.positions[start + i] = i as u32;
                // Nothing comes before the first token: it cannot be predicted.
                if i > 0 {
                    batch.labels[start + i] = label;
                }
            }
        }
        batch
    }

    /// How many places are not padding.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.segments
            .iter()
            .filter(|&&segment| segment != 0)
            .count()
    }

    /// How many predictions count in the loss.
    #[must_use]
    pub fn supervised(&self) -> usize {
        self.labels
            .iter()
            .filter(|&&label| label != UNSUPERVISED)
            .count()
    }
}
