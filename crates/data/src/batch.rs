//! Rows side by side, or one behind the other.

use crate::example::{Example, UNSUPERVISED};

/// Sequences padded on the right to the longest of them. Lists are row-major, (rows, length).
#[derive(Debug, Clone, PartialEq)]
pub struct Padded {
    /// How many rows.
    pub rows: usize,
    /// The length of the longest row, in tokens.
    pub length: usize,
    /// The tokens; 0 in padding.
    pub ids: Vec<u32>,
    /// What must be predicted at each place; [`UNSUPERVISED`] in padding and at the start of an example.
    pub labels: Vec<i32>,
    /// Which places see each other: 1 for the first example of a row, 2 for the next and so on, 0 for padding.
    pub segments: Vec<u32>,
    /// The place in the example, from 0; 0 in padding.
    pub positions: Vec<u32>,
    /// The types of tokens, 0 in padding; none if no row has types.
    pub types: Option<Vec<u32>>,
    /// What each row is, if a row says so; rows of several examples never do.
    pub row_labels: Option<Vec<Option<f64>>>,
}

impl Padded {
    /// Lays examples side by side, in the order given.
    #[must_use]
    pub fn collate<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        Self::pack(examples.into_iter().map(std::iter::once))
    }

    /// Joins the examples of each sequence into a row, and lays the rows side by side. Segments keep the examples apart,
    /// and positions begin again with each.
    #[must_use]
    pub fn pack<'a, S>(sequences: impl IntoIterator<Item = S>) -> Self
    where
        S: IntoIterator<Item = &'a Example>,
    {
        let sequences: Vec<Vec<&Example>> = sequences
            .into_iter()
            .map(|sequence| sequence.into_iter().collect())
            .collect();
        let tokens = |sequence: &Vec<&Example>| -> usize {
            sequence.iter().map(|example| example.ids.len()).sum()
        };
        let rows = sequences.len();
        let length = sequences.iter().map(tokens).max().unwrap_or(0);
        let places = rows * length;
        let mut batch = Self {
            rows,
            length,
            ids: vec![0; places],
            labels: vec![UNSUPERVISED; places],
            segments: vec![0; places],
            positions: vec![0; places],
            types: None,
            row_labels: None,
        };
        for (row, sequence) in sequences.iter().enumerate() {
            let mut start = row * length;
            if let [
                Example {
                    label: Some(label), ..
                },
            ] = sequence.as_slice()
            {
                let labels = batch.row_labels.get_or_insert_with(|| vec![None; rows]);
                labels[row] = Some(*label);
            }
            for (segment, example) in (1..).zip(sequence.iter().copied()) {
                for (i, (&id, &label)) in example.ids.iter().zip(&example.labels).enumerate() {
                    batch.ids[start + i] = id;
                    batch.segments[start + i] = segment;
                    batch.positions[start + i] = i as u32;
                    // Nothing comes before the first token: it cannot be predicted.
                    if i > 0 {
                        batch.labels[start + i] = label;
                    }
                }
                if !example.types.is_empty() {
                    let types = batch.types.get_or_insert_with(|| vec![0; places]);
                    types[start..start + example.types.len()].copy_from_slice(&example.types);
                }
                start += example.ids.len();
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

    /// How many predictions count in the loss, of tokens and of rows.
    #[must_use]
    pub fn supervised(&self) -> usize {
        let tokens = self.labels.iter().filter(|&&label| label != UNSUPERVISED);
        tokens.count() + self.row_labels.iter().flatten().flatten().count()
    }
}
