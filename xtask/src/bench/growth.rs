//! How time and memory of a step grow with batch and length: a fit and two plots.

use crate::bench::plot::{Plot, Series};
use crate::bench::record::Shown;
use crate::bench::report::{Cell, Report, Side};
use serde_json::json;

/// Batches of 1 to 16 at one length, and lengths at batch 1.
pub fn sizes(quick: bool) -> Vec<(usize, usize)> {
    let (batches, at, lengths): (&[usize], usize, &[usize]) = if quick {
        (&[1, 2, 4], 32, &[64, 128])
    } else {
        (&[1, 2, 4, 8, 16], 256, &[128, 512, 1024, 2048])
    };
    let by_batch = batches.iter().map(|&batch| (batch, at));
    by_batch
        .chain(lengths.iter().map(|&length| (1, length)))
        .collect()
}

/// y = a + b tokens + c (sum of squares of lengths), by least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// What a step takes without tokens.
    pub constant: f64,
    /// What each token adds.
    pub per_token: f64,
    /// What each pair of tokens of a sequence adds.
    pub per_pair: f64,
    /// The largest distance of a point, relative to it.
    pub worst: f64,
    /// The share of the variance that the fit explains.
    pub explained: f64,
}

/// Fits (batch, length, y). None if the points do not determine it.
pub fn fit(points: &[(usize, usize, f64)]) -> Option<Fit> {
    let largest = points
        .iter()
        .map(|&(batch, length, _)| batch * length)
        .max()? as f64;
    let pairs = |(batch, length, _): &(usize, usize, f64)| (batch * length * length) as f64;
    let most = points.iter().map(pairs).reduce(f64::max)?;
    // Columns of about the same size, so that the equations are well conditioned.
    let row = |point: &(usize, usize, f64)| {
        [
            1.0,
            (point.0 * point.1) as f64 / largest,
            pairs(point) / most,
        ]
    };
    let mut equations = [[0.0; 4]; 3];
    for point in points {
        let columns = row(point);
        for i in 0..3 {
            for j in 0..3 {
                equations[i][j] += columns[i] * columns[j];
            }
            equations[i][3] += columns[i] * point.2;
        }
    }
    let [a, b, c] = solve(equations)?;
    let of = |point: &(usize, usize, f64)| {
        let [one, tokens, pairs] = row(point);
        a * one + b * tokens + c * pairs
    };
    let mean = points.iter().map(|point| point.2).sum::<f64>() / points.len() as f64;
    let variance: f64 = points.iter().map(|point| (point.2 - mean).powi(2)).sum();
    let residual: f64 = points
        .iter()
        .map(|point| (point.2 - of(point)).powi(2))
        .sum();
    let worst = points
        .iter()
        .map(|point| ((of(point) - point.2) / point.2).abs());
    Some(Fit {
        constant: a,
        per_token: b / largest,
        per_pair: c / most,
        worst: worst.reduce(f64::max)?,
        explained: 1.0 - residual / variance,
    })
}

/// Gaussian elimination with pivots.
fn solve(mut rows: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let pivot =
            (column..3).max_by(|&i, &j| rows[i][column].abs().total_cmp(&rows[j][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-9 {
            return None;
        }
        let above = rows[column];
        for (at, row) in rows.iter_mut().enumerate().filter(|(at, _)| *at != column) {
            let factor = row[column] / above[column];
            debug_assert_ne!(at, column);
            for (value, above) in row.iter_mut().zip(above) {
                *value -= factor * above;
            }
        }
    }
    Some([0, 1, 2].map(|i| rows[i][3] / rows[i][i]))
}

/// Adds fits and plots of every configuration that ran at all sizes.
pub fn add(report: &mut Report, shown: &mut Shown) {
    let measures: [(&str, &str, &str); 2] = [
        ("step_seconds", "seconds a step", "time.svg"),
        ("peak_rss", "peak memory, MiB", "memory.svg"),
    ];
    for (measure, label, file) in measures {
        let mut series = Vec::new();
        for (name, cells) in configurations(&report.cells) {
            let value = |cell: &&Cell| {
                // The least time is the one least disturbed; a peak is the same every time.
                let value = cell.min(measure)?;
                let of = |axis: &str| cell.axes.get(axis)?.as_u64();
                Some((of("batch")? as usize, of("length")? as usize, value))
            };
            let points: Vec<_> = cells.iter().filter_map(value).collect();
            if let Some(fit) = fit(&points) {
                report.notes.push(format!(
                    "{name}: {label} = {:.4} + {:.4e} tokens + {:.4e} sum of squared lengths; largest distance {:.1} %, {:.2} % of the variance explained",
                    fit.constant, fit.per_token, fit.per_pair, 100.0 * fit.worst, 100.0 * fit.explained
                ));
                report.fits.push(json!({
                    "cells": name, "measure": measure, "constant": fit.constant, "per_token": fit.per_token,
                    "per_pair": fit.per_pair, "largest_distance": fit.worst, "explained": fit.explained,
                }));
            }
            let of = |grows: &str, keep: &dyn Fn(usize, usize) -> bool| Series {
                name: format!("{name}, {grows}"),
                points: points
                    .iter()
                    .filter(|point| keep(point.0, point.1))
                    .map(|point| ((point.0 * point.1) as f64, point.2))
                    .collect(),
            };
            // The size that both series share is the first one.
            let Some(&(_, at, _)) = points.first() else {
                continue;
            };
            series.push(of(
                &format!("growing batches of {at} tokens"),
                &|_, length| length == at,
            ));
            series.push(of("one sequence that grows", &|batch, _| batch == 1));
        }
        let plot = Plot {
            title: "A training step".to_owned(),
            x: "tokens a step".to_owned(),
            y: label.to_owned(),
            series,
        };
        shown.plots.push((file.to_owned(), plot.svg()));
    }
}

/// Cells that differ in size alone, under the name that they share.
fn configurations(cells: &[Cell]) -> Vec<(String, Vec<&Cell>)> {
    let mut found: Vec<(String, Vec<&Cell>)> = Vec::new();
    for cell in cells.iter().filter(|cell| cell.axis("kind") == "step") {
        let size = format!(" {}x{}", cell.axes["batch"], cell.axes["length"]);
        let name = cell.name.trim_end_matches(&size).to_owned();
        match found.iter_mut().find(|(known, _)| *known == name) {
            Some((_, cells)) => cells.push(cell),
            None => found.push((name, vec![cell])),
        }
    }
    found.sort_by_key(|(_, cells)| cells[0].side == Side::Peer);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_finds_what_made_the_points() {
        let of = |batch: usize, length: usize| {
            let (tokens, pairs) = ((batch * length) as f64, (batch * length * length) as f64);
            (batch, length, 0.05 + 2e-3 * tokens + 3e-7 * pairs)
        };
        let points: Vec<_> = sizes(false)
            .into_iter()
            .map(|(batch, length)| of(batch, length))
            .collect();
        let fit = fit(&points).expect("nine points");
        assert!((fit.constant - 0.05).abs() < 1e-9, "{fit:?}");
        assert!((fit.per_token / 2e-3 - 1.0).abs() < 1e-9, "{fit:?}");
        assert!((fit.per_pair / 3e-7 - 1.0).abs() < 1e-9, "{fit:?}");
        assert!(fit.worst < 1e-9 && fit.explained > 1.0 - 1e-9, "{fit:?}");
    }

    #[test]
    fn points_that_lie_off_are_told() {
        let mut points = vec![
            (1, 100, 1.0),
            (2, 100, 2.0),
            (3, 100, 3.0),
            (1, 300, 3.0),
            (1, 200, 2.0),
        ];
        points[1].2 = 2.4;
        let fit = fit(&points).expect("five points");
        assert!(fit.worst > 0.05 && fit.explained < 0.99, "{fit:?}");
    }

    #[test]
    fn too_few_points_have_no_fit() {
        assert_eq!(fit(&[(1, 100, 1.0), (2, 100, 2.0)]), None);
        assert_eq!(fit(&[(1, 100, 1.0), (2, 100, 2.0), (3, 100, 3.0)]), None);
        assert_eq!(fit(&[]), None);
    }
}
