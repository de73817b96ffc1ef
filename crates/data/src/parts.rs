//! Parts of a data set, and how often its files are taken.

use crate::dataset::{Dataset, FileSummary, Held, Summary};
use crate::error::{Error, Result};
use lowrank_ops::rng::{Key, Purpose};

impl Dataset {
    /// Holds a share of the rows out, drawn from all files alike: what is left to train on, and the rows that are held out,
    /// both in the order of the files. Their number is rounded, and there is at least one of each. Rows that say the same may
    /// come apart.
    ///
    /// # Errors
    /// If there is only one row, or nothing is supervised in one of the parts.
    pub fn split(self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        let rows = self.rows().get();
        if rows < 2 {
            return Err(Error::TooFewToSplit { fraction, rows });
        }
        let held_out = ((rows as f64 * fraction).round() as usize).clamp(1, rows - 1);
        let key = Key::new(seed, Purpose::Shuffle).site("eval_fraction");
        let mut held_out_rows = key.stream().permutation(rows);
        let rest = held_out_rows.split_off(held_out);
        Ok((
            self.part(rest)?,
            self.part(held_out_rows)?.with_references()?,
        ))
    }

    fn part(&self, mut rows: Vec<usize>) -> Result<Self> {
        rows.sort_unstable();
        let mut summary = Summary::default();
        rows.iter().for_each(|&row| summary.add(&self.facts(row)));
        let mut end = 0;
        for file in &self.summary.files {
            let first = rows.partition_point(|&row| row < end);
            end += file.rows;
            let rows = rows.partition_point(|&row| row < end) - first;
            summary.files.push(FileSummary {
                rows,
                per_epoch: rows,
                ..file.clone()
            });
        }
        let references = match self.references.as_slice() {
            [] => Vec::new(),
            all => rows.iter().map(|&row| all[row].clone()).collect(),
        };
        let chosen = rows.into_iter().map(|row| self.place(row)).collect();
        let part = Self {
            held: self.held.clone(),
            chosen: Some(chosen),
            references,
            classes: self.classes.clone(),
            summary,
            ..*self
        };
        part.checked()
    }

    /// The same with every reference in memory, as [`Dataset::open`] has them; [`Dataset::open_cached`] leaves them in its files.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn with_references(mut self) -> Result<Self> {
        let Held::Stored(files) = &self.held else {
            return Ok(self);
        };
        let count = self.examples().len();
        if !(0..count).any(|row| files.entry(self.place(row)).referred) {
            return Ok(self);
        }
        let references = (0..count).map(|row| {
            let (file, row) = files.find(self.place(row));
            Ok(file.get(row)?.1)
        });
        self.references = references.collect::<Result<_>>()?;
        Ok(self)
    }

    /// The same with epochs that take a file's rows so many times on average: a weight for each pattern, above 0. How many rows
    /// an epoch takes is rounded.
    ///
    /// # Errors
    /// If a weight takes none of a file's rows, or more than can be counted.
    ///
    /// # Panics
    /// If there are fewer weights than patterns.
    pub fn weighted(mut self, weights: &[f64]) -> Result<Self> {
        for file in &mut self.summary.files {
            let weight = weights[file.pattern];
            let taken = (file.rows as f64 * weight).round();
            if taken < 1.0 && file.rows > 0 {
                return Err(Error::WeightTooSmall {
                    path: file.path.clone(),
                    rows: file.rows,
                    weight,
                });
            }
            // Far from what a float rounds; what is larger is refused where epochs are made.
            file.per_epoch = taken as usize;
        }
        Ok(self)
    }
}
