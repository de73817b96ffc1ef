//! The lines of `metrics.jsonl`, whatever they hold.

use serde_json::{Map, Value};

/// A line: its step, and its keys in the file's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// After, or in, this step.
    pub step: u64,
    /// Everything in it, the step as well.
    pub values: Map<String, Value>,
}

impl Line {
    /// A line that has a step; none without one.
    #[must_use]
    pub fn new(values: Map<String, Value>) -> Option<Self> {
        let step = values.get("step").and_then(Value::as_u64)?;
        Some(Self { step, values })
    }

    /// The keys that hold a number, or null in the place of one that is not finite.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, Option<f64>)> {
        let keys = self.values.iter().filter(|(key, _)| *key != "step");
        keys.filter_map(|(key, value)| match value {
            Value::Null => Some((key.as_str(), None)),
            value => Some((key.as_str(), Some(value.as_f64()?))),
        })
    }

    /// What kind of line it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.values.contains_key("event") {
            return Kind::Event;
        }
        match self.values.keys().any(|key| key.starts_with(EVAL)) {
            true => Kind::Evaluation,
            false => Kind::Step,
        }
    }
}

/// What the keys of an evaluation begin with.
pub(crate) const EVAL: &str = "eval_";

/// The key of an allocation's ranks, and of their sum.
pub(crate) const RANKS: &str = "ranks";

/// The kinds of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A training step.
    Step,
    /// An evaluation.
    Evaluation,
    /// Something else that happened.
    Event,
}

/// What the lines of a run hold of numbers, by kind. It takes 16 bytes a number, whatever its key is called, since runs are
/// long.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lines {
    /// Training steps.
    pub steps: Table,
    /// Evaluations.
    pub evaluations: Table,
    /// Events; `ranks` is the sum over all modules.
    pub events: Table,
    pub(crate) allocations: Allocations,
}

/// The numbers of lines of one kind, by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    lines: usize,
    last_step: u64,
    columns: Vec<Column>,
}

/// The numbers of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    key: String,
    /// In order of steps; what is not finite is NaN.
    points: Vec<(u64, f64)>,
    integers: bool,
}

/// The ranks of modules, a list for each allocation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Allocations {
    modules: Vec<String>,
    all: Vec<(u64, Vec<(u32, u32)>)>,
}

impl Lines {
    /// Reads them. What is not an object with a step, as the end of a line that a kill cut off, is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut lines = Self::default();
        for line in text.lines() {
            if let Ok(Value::Object(values)) = serde_json::from_str(line)
                && let Some(line) = Line::new(values)
            {
                lines.push(&line);
            }
        }
        lines
    }

    /// Adds a line.
    pub fn push(&mut self, line: &Line) {
        let table = match line.kind() {
            Kind::Step => &mut self.steps,
            Kind::Evaluation => &mut self.evaluations,
            Kind::Event => &mut self.events,
        };
        table.lines += 1;
        table.last_step = table.last_step.max(line.step);
        for (key, number) in line.numbers() {
            let whole = number.is_none() || line.values.get(key).is_some_and(Value::is_u64);
            table.put(key, line.step, number, whole);
        }
        if let Some(ranks) = ranks(line) {
            let sum = ranks.iter().map(|(_, rank)| *rank).sum::<u64>();
            table.put(RANKS, line.step, Some(sum as f64), true);
            if line.kind() == Kind::Event && !ranks.is_empty() {
                self.allocations.put(line.step, &ranks);
            }
        }
    }

    /// The last step that any line is of.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        let all = [&self.steps, &self.evaluations, &self.events];
        all.map(|table| table.last_step)
            .into_iter()
            .max()
            .unwrap_or(0)
    }
}

impl Table {
    /// How many lines there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// The last step that one of them is of; 0 if there are none.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        self.last_step
    }

    /// The keys that hold numbers, or null, in order of their first appearance.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The numbers of a key.
    #[must_use]
    pub fn column(&self, key: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.key == key)
    }

    fn put(&mut self, key: &str, step: u64, number: Option<f64>, is_integer: bool) {
        let known = self.columns.iter().position(|column| column.key == key);
        let at = known.unwrap_or_else(|| {
            self.columns.push(Column {
                key: key.to_owned(),
                points: Vec::new(),
                integers: true,
            });
            self.columns.len() - 1
        });
        let column = &mut self.columns[at];
        column.integers &= is_integer;
        // Lines come in order of steps, but a file may hold anything.
        let at = column.points.partition_point(|(other, _)| *other <= step);
        let point = (step, number.unwrap_or(f64::NAN));
        column.points.insert(at, point);
    }
}

impl Column {
    /// What lines call it.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The steps of the lines that have it, in order, each with its number; NaN if that is not finite.
    #[must_use]
    pub fn points(&self) -> &[(u64, f64)] {
        &self.points
    }

    /// The number of a line of this step, the last of several that are finite.
    #[must_use]
    pub fn at(&self, step: u64) -> Option<f64> {
        let end = self.points.partition_point(|(other, _)| *other <= step);
        let points = self.points[..end].iter().rev();
        let mut points = points.take_while(|(other, _)| *other == step);
        let found = points.find(|(_, number)| number.is_finite());
        found.map(|(_, number)| *number)
    }

    /// Whether all its numbers are counts.
    pub(crate) fn is_of_integers(&self) -> bool {
        self.integers
    }
}

impl Allocations {
    fn put(&mut self, step: u64, ranks: &[(&str, u64)]) {
        let mut numbered = Vec::with_capacity(ranks.len());
        for (place, (module, rank)) in ranks.iter().enumerate() {
            // Every allocation names the same modules in the same order.
            let known = match self.modules.get(place) {
                Some(known) if known == module => Some(place),
                _ => self.modules.iter().position(|known| known == module),
            };
            let number = known.unwrap_or_else(|| {
                self.modules.push((*module).to_owned());
                self.modules.len() - 1
            });
            let of_32_bits = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
            numbered.push((of_32_bits(number as u64), of_32_bits(*rank)));
        }
        let at = self.all.partition_point(|(other, _)| *other <= step);
        self.all.insert(at, (step, numbered));
    }

    /// Steps with their ranks by number of the module.
    pub(crate) fn all(&self) -> &[(u64, Vec<(u32, u32)>)] {
        &self.all
    }

    /// What a module is called.
    pub(crate) fn module(&self, number: u32) -> &str {
        self.modules.get(number as usize).map_or("", String::as_str)
    }
}

/// `ranks` of an allocation: modules and how many ranks they have.
pub(crate) fn ranks(line: &Line) -> Option<Vec<(&str, u64)>> {
    let ranks = line.values.get(RANKS)?.as_object()?.iter();
    Some(
        ranks
            .filter_map(|(site, rank)| Some((site.as_str(), rank.as_u64()?)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_and_damage_is_passed_over() {
        let text = "{\"step\":0,\"eval_loss\":null,\"eval_f1\":0.5}\n{\"step\":1,\"loss\":2,\"what\":\"x\"}\n[3]\n\
                    {\"loss\":3}\n{\"step\":-1}\n{\"step\":1,\"event\":\"allocate\",\"ranks\":{\"a.q\":3,\"b\":\"x\"}}\n{\"step\":2,\"lo";
        let lines = Lines::parse(text);
        assert_eq!(
            (
                lines.steps.len(),
                lines.evaluations.len(),
                lines.events.len()
            ),
            (1, 1, 1)
        );
        let keys = |table: &Table| -> Vec<String> {
            let columns = table.columns().iter();
            columns.map(|column| column.key().to_owned()).collect()
        };
        assert_eq!(keys(&lines.evaluations), ["eval_loss", "eval_f1"]);
        let column = |table: &Table, key: &str| table.column(key).unwrap().points().to_vec();
        assert!(column(&lines.evaluations, "eval_loss")[0].1.is_nan());
        assert_eq!(column(&lines.evaluations, "eval_f1"), [(0, 0.5)]);
        assert_eq!(keys(&lines.steps), ["loss"]);
        assert_eq!(column(&lines.steps, "loss"), [(1, 2.0)]);
        assert_eq!(column(&lines.events, "ranks"), [(1, 3.0)]);
        assert_eq!(lines.allocations.all(), [(1, vec![(0, 3)])]);
        assert_eq!(lines.allocations.module(0), "a.q");
        assert_eq!(lines.last_step(), 1);
        assert_eq!(Lines::parse(""), Lines::default());
    }

    #[test]
    fn numbers_are_found_by_step_whatever_the_order() {
        let text = "{\"step\":3,\"loss\":3}\n{\"step\":1,\"loss\":1.5}\n{\"step\":3,\"loss\":null}\n{\"step\":2,\"lr\":0}\n";
        let lines = Lines::parse(text);
        let loss = lines.steps.column("loss").unwrap();
        let steps: Vec<u64> = loss.points().iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [1, 3, 3]);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|step| loss.at(step)),
            [None, Some(1.5), None, Some(3.0), None]
        );
        assert_eq!((lines.steps.len(), lines.last_step()), (4, 3));
        assert!(!loss.is_of_integers() && lines.steps.column("lr").unwrap().is_of_integers());
    }
}
