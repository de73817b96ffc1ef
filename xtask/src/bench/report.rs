//! What a benchmark found: cells with named measures. `docs/bench.md` documents the JSON.

use crate::bench::machine::Machine;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The measure of what other processes took of the machine while a cell ran.
pub const FOREIGN: &str = "foreign_load";

/// The most of it that leaves timings alone. PyTorch's threads wait for each other actively: where one of them loses its
/// core, all stand still, and a step takes many times as long, while ours is hardly slower. Taking turns does not help
/// against that, so such a ratio says nothing, and looks good.
pub const QUIET: f64 = 0.03;

/// The version of the JSON.
pub const SCHEMA: u64 = 1;

/// Samples of one quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What was measured, such as `step_seconds`.
    pub name: String,
    /// `s`, `MiB`, `tokens/s`, `GFLOP/s`, `GB/s`, or `1` of a ratio.
    pub unit: String,
    /// The samples, in the order in which they were taken.
    pub values: Vec<f64>,
}

impl Measure {
    /// Samples of `name`.
    pub fn new(name: &str, unit: &str, values: Vec<f64>) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            values,
        }
    }
}

/// What one process printed of one cell: a line of its standard output.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Line {
    /// What is added to the axes of the cell that the process was started for; empty if it is that cell.
    #[serde(default)]
    pub axes: Map<String, Value>,
    /// What was measured.
    #[serde(default)]
    pub measures: Vec<Measure>,
    /// Numbers that are no measurements, such as the first loss.
    #[serde(default)]
    pub facts: Map<String, Value>,
}

/// Whose code ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This workspace's.
    Ours,
    /// PyTorch with transformers and PEFT.
    Peer,
}

/// One configuration, in all rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What the table calls it.
    pub name: String,
    /// Whose code ran.
    pub side: Side,
    /// The configuration.
    pub axes: Map<String, Value>,
    /// What was found, a round each.
    pub rounds: Vec<Line>,
    /// Why there is nothing, or not every round.
    pub error: Option<String>,
}

impl Cell {
    /// All samples of a measure, of all rounds.
    pub fn values(&self, name: &str) -> Vec<f64> {
        let of = |line: &Line| line.measures.iter().find(|m| m.name == name).cloned();
        let found = self.rounds.iter().filter_map(of);
        found.flat_map(|measure| measure.values).collect()
    }

    /// The median of a measure over all rounds.
    pub fn median(&self, name: &str) -> Option<f64> {
        median(&self.values(name))
    }

    /// The least sample of a measure.
    pub fn min(&self, name: &str) -> Option<f64> {
        self.values(name).into_iter().reduce(f64::min)
    }

    /// The greatest sample of a measure.
    pub fn max(&self, name: &str) -> Option<f64> {
        self.values(name).into_iter().reduce(f64::max)
    }

    /// Whether other processes took so much of the machine in any round that its times mean nothing.
    pub fn disturbed(&self) -> bool {
        self.max(FOREIGN).is_some_and(|load| load > QUIET)
    }

    /// A fact of the first round.
    pub fn fact(&self, name: &str) -> Option<f64> {
        self.rounds.first()?.facts.get(name)?.as_f64()
    }

    /// An axis as a word.
    pub fn axis(&self, name: &str) -> &str {
        self.axes.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// A measure that follows from another, sample by sample.
    pub fn derive(&mut self, from: &str, name: &str, unit: &str, of: impl Fn(f64) -> f64) {
        for line in &mut self.rounds {
            let Some(source) = line.measures.iter().find(|m| m.name == from) else {
                continue;
            };
            let values = source.values.iter().map(|&value| of(value)).collect();
            line.measures.push(Measure::new(name, unit, values));
        }
    }

    fn to_json(&self) -> Value {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for measure in self.rounds.iter().flat_map(|line| &line.measures) {
            if !names.iter().any(|(name, _)| *name == measure.name) {
                names.push((&measure.name, &measure.unit));
            }
        }
        let measures: Vec<Value> = names
            .into_iter()
            .map(|(name, unit)| {
                let of = |line: &Line| line.measures.iter().find(|m| m.name == name).cloned();
                let rounds: Vec<Vec<f64>> = self
                    .rounds
                    .iter()
                    .map(|line| of(line).map(|measure| measure.values).unwrap_or_default())
                    .collect();
                let all = self.values(name);
                json!({
                    "name": name, "unit": unit,
                    "median": median(&all), "min": self.min(name), "max": self.max(name),
                    "spread": spread(&all), "rounds": rounds,
                })
            })
            .collect();
        let facts = self.rounds.first().map(|line| line.facts.clone());
        json!({
            "name": self.name,
            "side": match self.side { Side::Ours => "ours", Side::Peer => "peer" },
            "axes": self.axes,
            "measures": measures,
            "facts": facts.unwrap_or_default(),
            "disturbed": self.disturbed(),
            "error": self.error,
        })
    }
}

/// One number held against another.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// What is compared, in words.
    pub what: String,
    /// The cell that is judged, and the cell that it is held against.
    pub cells: (String, String),
    /// By the medians; above 1 is better for ours unless `what` says otherwise.
    pub by_median: f64,
    /// By the best samples.
    pub by_min: f64,
    /// Whether a time of either cell was disturbed: then it is no result.
    pub disturbed: bool,
}

/// A whole benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// `step`, `ops`, `load`, `generate`.
    pub benchmark: &'static str,
    /// The day, `2026-01-31`.
    pub date: String,
    /// What it ran on.
    pub machine: Machine,
    /// Programs and packages with their versions.
    pub versions: Map<String, Value>,
    /// The commit, with `-dirty` if files had changed since.
    pub commit: String,
    /// The command line.
    pub command: String,
    /// What was measured.
    pub cells: Vec<Cell>,
    /// What follows from it.
    pub ratios: Vec<Ratio>,
    /// Checks and fits, a sentence each.
    pub notes: Vec<String>,
    /// The same for programs: fits with their numbers.
    pub fits: Vec<Value>,
}

impl Report {
    /// The document that `docs/bench.md` describes.
    pub fn to_json(&self) -> Value {
        let ratios: Vec<Value> = self
            .ratios
            .iter()
            .map(|ratio| {
                json!({
                    "what": ratio.what, "cell": ratio.cells.0, "against": ratio.cells.1,
                    "by_median": ratio.by_median, "by_min": ratio.by_min,
                    "disturbed": ratio.disturbed,
                })
            })
            .collect();
        json!({
            "schema": SCHEMA,
            "benchmark": self.benchmark,
            "date": self.date,
            "machine": self.machine.to_json(),
            "versions": self.versions,
            "commit": self.commit,
            "command": self.command,
            "cells": self.cells.iter().map(Cell::to_json).collect::<Vec<_>>(),
            "ratios": ratios,
            "fits": self.fits,
            "notes": self.notes,
        })
    }
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// From the first to the third quartile, over the median.
pub fn spread(values: &[f64]) -> Option<f64> {
    let (low, high) = (quantile(values, 0.25)?, quantile(values, 0.75)?);
    Some((high - low) / median(values)?)
}

/// Linear between the two nearest values.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(values: &[f64]) -> Line {
        Line {
            measures: vec![Measure::new("step_seconds", "s", values.to_vec())],
            facts: Map::from_iter([("first_loss".to_owned(), json!(2.5))]),
            ..Line::default()
        }
    }

    pub(crate) fn cell(name: &str, side: Side, rounds: &[&[f64]]) -> Cell {
        Cell {
            name: name.to_owned(),
            side,
            axes: Map::new(),
            rounds: rounds.iter().map(|values| line(values)).collect(),
            error: None,
        }
    }

    #[test]
    fn medians_and_spreads_are_those_of_the_sorted_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        // Quartiles of 1, 2, 3, 4, 10: 2 and 4.
        assert_eq!(spread(&[10.0, 1.0, 3.0, 2.0, 4.0]), Some(2.0 / 3.0));
    }

    #[test]
    fn rounds_are_pooled() {
        let mut cell = cell("f32", Side::Ours, &[&[3.0, 1.0], &[2.0]]);
        assert_eq!(cell.median("step_seconds"), Some(2.0));
        assert_eq!(
            (cell.min("step_seconds"), cell.max("step_seconds")),
            (Some(1.0), Some(3.0))
        );
        assert_eq!(cell.fact("first_loss"), Some(2.5));
        cell.derive("step_seconds", "tokens_per_second", "tokens/s", |s| 6.0 / s);
        assert_eq!(cell.values("tokens_per_second"), [2.0, 6.0, 3.0]);
    }

    #[test]
    fn a_busy_machine_is_noticed_in_any_round() {
        let mut cell = cell("f32", Side::Ours, &[&[3.0], &[2.0]]);
        assert!(!cell.disturbed());
        let mut load = |round: usize, share: f64| {
            let measure = Measure::new(FOREIGN, "1", vec![share]);
            cell.rounds[round].measures.push(measure);
            cell.disturbed()
        };
        assert!(!load(0, 0.01));
        assert!(load(1, 0.4));
    }

    #[test]
    fn the_json_has_every_field_that_its_documentation_names() {
        let report = Report {
            benchmark: "step",
            date: "2026-01-31".to_owned(),
            machine: Machine::default(),
            versions: Map::new(),
            commit: "abc".to_owned(),
            command: "cargo xtask bench step".to_owned(),
            cells: vec![cell("f32", Side::Ours, &[&[3.0, 1.0], &[2.0]])],
            ratios: vec![Ratio {
                what: "speed".to_owned(),
                cells: ("f32".to_owned(), "f32-eager".to_owned()),
                by_median: 1.5,
                by_min: 1.25,
                disturbed: false,
            }],
            notes: vec![],
            fits: vec![],
        };
        let written = report.to_json();
        let document = include_str!("../../../docs/bench.md");
        let documented = |object: &Value| {
            for key in object.as_object().into_iter().flat_map(Map::keys) {
                assert!(document.contains(&format!("`{key}`")), "`{key}`");
            }
        };
        documented(&written);
        documented(&written["machine"]);
        documented(&written["cells"][0]);
        documented(&written["cells"][0]["measures"][0]);
        documented(&written["ratios"][0]);
        assert_eq!(written["schema"], 1);
        let measure = &written["cells"][0]["measures"][0];
        assert_eq!(measure["median"], 2.0);
        assert_eq!(measure["rounds"], json!([[3.0, 1.0], [2.0]]));
        assert_eq!(written["ratios"][0]["against"], "f32-eager");
    }
}
