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
    /// The keys that hold a number, or null in the place of one that is not finite.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, Option<f64>)> {
        let keys = self.values.iter().filter(|(key, _)| *key != "step");
        keys.filter_map(|(key, value)| match value {
            Value::Null => Some((key.as_str(), None)),
            value => Some((key.as_str(), Some(value.as_f64()?))),
        })
    }

    /// A key's number; none if it is missing or null.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key)?.as_f64()
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

/// The lines of a run by kind, each in the file's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lines {
    /// Training steps.
    pub steps: Vec<Line>,
    /// Evaluations.
    pub evaluations: Vec<Line>,
    /// What else happened: `{"step", "event", ..}`.
    pub events: Vec<Line>,
}

impl Lines {
    /// Reads them. What is not an object with a step, as the end of a line that a kill cut off, is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut lines = Self::default();
        for line in text.lines() {
            if let Ok(Value::Object(values)) = serde_json::from_str(line) {
                lines.push(values);
            }
        }
        lines
    }

    fn push(&mut self, values: Map<String, Value>) {
        let Some(step) = values.get("step").and_then(Value::as_u64) else {
            return;
        };
        let line = Line { step, values };
        match line.kind() {
            Kind::Step => self.steps.push(line),
            Kind::Evaluation => self.evaluations.push(line),
            Kind::Event => self.events.push(line),
        }
    }

    /// The last step that any line is of.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        let all = self.steps.iter().chain(&self.evaluations);
        let all = all.chain(&self.events).map(|line| line.step);
        all.max().unwrap_or(0)
    }
}

/// The keys of some lines that hold numbers, in order of their first appearance.
pub(crate) fn keys<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = Vec::new();
    for line in lines {
        for (key, _) in line.numbers() {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    keys
}

/// `ranks` of an allocation: modules and how many ranks they have.
pub(crate) fn ranks(line: &Line) -> Option<Vec<(&str, u64)>> {
    let ranks = line.values.get("ranks")?.as_object()?.iter();
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
        let numbers: Vec<_> = lines.evaluations[0].numbers().collect();
        assert_eq!(numbers, [("eval_loss", None), ("eval_f1", Some(0.5))]);
        let numbers: Vec<_> = lines.steps[0].numbers().collect();
        assert_eq!(numbers, [("loss", Some(2.0))]);
        assert_eq!(ranks(&lines.events[0]), Some(vec![("a.q", 3)]));
        assert_eq!(lines.last_step(), 1);
        assert_eq!(Lines::parse(""), Lines::default());
    }
}
