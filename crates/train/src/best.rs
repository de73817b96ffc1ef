//! Which evaluation is the best, and when no better one is to be hoped for.

use crate::error::Result;
use crate::keys::{Keys, Origin};
use crate::metrics::EvalLine;
use serde::Serialize;
use toml::Value;

/// What evaluations are compared by (`best_metric`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// The loss, the lower the better.
    #[default]
    Loss,
    /// The share of right answers, the higher the better.
    Accuracy,
    /// The F1 score, the higher the better.
    F1,
    /// Matthews' correlation, the higher the better.
    Matthews,
    /// The mean squared error, the lower the better.
    Mse,
    /// Pearson's correlation, the higher the better.
    Pearson,
    /// Spearman's correlation, the higher the better.
    Spearman,
}

impl Metric {
    const WORDS: [(&'static str, Self); 7] = [
        ("loss", Self::Loss),
        ("accuracy", Self::Accuracy),
        ("f1", Self::F1),
        ("matthews", Self::Matthews),
        ("mse", Self::Mse),
        ("pearson", Self::Pearson),
        ("spearman", Self::Spearman),
    ];

    /// Its name in run files; in lines of evaluations it stands behind `eval_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let of = |(_, metric): &&(&str, Self)| *metric == self;
        Self::WORDS.iter().find(of).map_or("", |(name, _)| name)
    }

    /// By how much `value` is better than `other`; negative if it is worse.
    fn gain(self, value: f64, other: f64) -> f64 {
        match self {
            Self::Loss | Self::Mse => other - value,
            _ => value - other,
        }
    }

    /// Its value in a line; NaN, which is better than nothing, if it could not be computed there.
    fn of(self, line: &EvalLine) -> f64 {
        let value = match self {
            Self::Loss => line.eval_loss,
            _ => line.metrics.get(self.name()).copied(),
        };
        value.unwrap_or(f64::NAN)
    }
}

/// What is done about evaluations (`best_metric`, `load_best`, `early_stopping_patience`, `early_stopping_threshold`).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Judging {
    /// What they are compared by.
    pub metric: Metric,
    /// Whether the result is that of the best one instead of the last step's.
    pub load_best: bool,
    /// After how many of them without a better one the run ends; none: it never ends early.
    pub patience: Option<u64>,
    /// By how much one must be better than the best before it, at least 0, to count as better there.
    pub threshold: f64,
}

/// Reads the keys; `every` is `eval_every`.
pub(crate) fn read(keys: &mut Keys<'_>, origin: &Origin, every: u64) -> Result<Judging> {
    let metric = keys.word("best_metric", &Metric::WORDS, &[])?;
    let load_best = keys.boolean("load_best")?.unwrap_or(false);
    let patience = keys.integer("early_stopping_patience", 1..=crate::run_file::MAX)?;
    let expected = "a finite number of at least 0";
    let threshold = keys.number("early_stopping_threshold", expected, |number| number >= 0.0)?;
    if threshold.is_some() && patience.is_none() {
        let what = "`train.early_stopping_threshold` is for `train.early_stopping_patience`, which is missing";
        return Err(origin.error("train.early_stopping_threshold", what));
    }
    let needs = [
        ("load_best", load_best),
        ("early_stopping_patience", patience.is_some()),
    ];
    if let Some((key, _)) = needs.iter().find(|(_, given)| *given && every == 0) {
        let what = format!(
            "`train.{key}` compares evaluations during training, expected `train.eval_every` above 0"
        );
        return Err(origin.error(&format!("train.{key}"), what));
    }
    Ok(Judging {
        metric: metric.unwrap_or_default(),
        load_best,
        patience,
        threshold: threshold.unwrap_or(0.0),
    })
}

impl Judging {
    /// True if nothing could come of it without held-out rows.
    pub(crate) fn needs_evaluations(&self) -> bool {
        self.load_best || self.patience.is_some()
    }

    /// The keys that give it again.
    pub(crate) fn keys(&self) -> Vec<(&'static str, Value)> {
        let mut keys: Vec<(&str, Value)> = vec![
            ("best_metric", self.metric.name().into()),
            ("load_best", self.load_best.into()),
        ];
        if let Some(patience) = self.patience {
            let patience = i64::try_from(patience).unwrap_or(i64::MAX);
            keys.push(("early_stopping_patience", Value::Integer(patience)));
            keys.push(("early_stopping_threshold", self.threshold.into()));
        }
        keys
    }
}

/// The best evaluation of a run so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Best {
    /// After how many steps.
    pub step: u64,
    /// What it is the best by.
    pub metric: Metric,
    /// The metric's value there.
    pub value: f64,
}

/// Compares evaluations as they come. Everything it knows follows from their lines, so that a resumed run need only
/// show them to it again.
#[derive(Debug)]
pub(crate) struct Judge {
    keys: Judging,
    best: Option<Best>,
    /// How many evaluations in a row were not better.
    stale: u64,
}

impl Judge {
    pub fn new(keys: Judging) -> Self {
        Self {
            keys,
            best: None,
            stale: 0,
        }
    }

    /// Looks at the next evaluation. The one before the first step is of what was not trained, and no candidate; of equal
    /// ones the earlier is the best.
    pub fn see(&mut self, line: &EvalLine) {
        let Judging {
            metric, threshold, ..
        } = self.keys;
        let value = metric.of(line);
        if line.step == 0 {
            return;
        }
        let gain = match self.best {
            Some(best) => metric.gain(value, best.value),
            None if value.is_finite() => f64::INFINITY,
            None => f64::NAN,
        };
        // A comparison with what is not a number is false.
        self.stale = if gain > threshold { 0 } else { self.stale + 1 };
        if gain > 0.0 && value.is_finite() {
            let step = line.step;
            self.best = Some(Best {
                step,
                metric,
                value,
            });
        }
    }

    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// The step whose checkpoint must be kept.
    pub fn kept(&self) -> Option<u64> {
        let best = self.best.filter(|_| self.keys.load_best);
        best.map(|best| best.step)
    }

    /// True if the run is to end early.
    pub fn gives_up(&self) -> bool {
        self.keys
            .patience
            .is_some_and(|patience| self.stale >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, loss: Option<f64>, accuracy: Option<f64>) -> EvalLine {
        let metrics = accuracy.map(|share| ("accuracy".to_owned(), share));
        EvalLine {
            step,
            eval_loss: loss,
            eval_tokens: 7,
            metrics: metrics.into_iter().collect(),
        }
    }

    /// After each value, from step 0 on: the best step, and how many evaluations in a row were no better.
    fn check(metric: Metric, threshold: f64, values: &[f64], expected: &[(Option<u64>, u64)]) {
        let mut judge = Judge::new(Judging {
            metric,
            threshold,
            patience: Some(3),
            load_best: true,
        });
        let mut seen = Vec::new();
        for (step, value) in (0..).zip(values) {
            let line = match metric {
                Metric::Loss => line(step, Some(*value), None),
                _ => line(step, Some(1.0), Some(*value)),
            };
            judge.see(&line);
            seen.push((judge.kept(), judge.stale));
            assert_eq!(judge.gives_up(), judge.stale >= 3);
        }
        assert_eq!(seen, expected, "{values:?}");
    }

    #[test]
    fn ties_keep_the_earlier_and_the_untrained_is_no_candidate() {
        check(
            Metric::Loss,
            0.0,
            &[0.1, 3.0, 2.5, 2.5, 2.75, f64::NAN, 2.25],
            &[
                (None, 0),
                (Some(1), 0),
                (Some(2), 0),
                (Some(2), 1),
                (Some(2), 2),
                (Some(2), 3),
                (Some(6), 0),
            ],
        );
        check(
            Metric::Accuracy,
            0.0,
            &[0.9, f64::NAN, 0.5, 0.25, 0.5, 0.75],
            &[
                (None, 0),
                (None, 1),
                (Some(2), 0),
                (Some(2), 1),
                (Some(2), 2),
                (Some(5), 0),
            ],
        );
    }

    /// As transformers has it: the best moves by any gain, and is what the next one is compared with.
    #[test]
    fn a_gain_within_the_threshold_is_the_best_and_still_no_hope() {
        check(
            Metric::Loss,
            0.5,
            &[9.0, 4.0, 3.75, 3.5, 3.25, 2.5],
            &[
                (None, 0),
                (Some(1), 0),
                (Some(2), 1),
                (Some(3), 2),
                (Some(4), 3),
                (Some(5), 0),
            ],
        );
        check(
            Metric::Accuracy,
            0.25,
            &[0.0, 0.25, 0.5, 1.0],
            &[(None, 0), (Some(1), 0), (Some(2), 1), (Some(3), 0)],
        );
    }

    #[test]
    fn nothing_is_kept_unless_it_is_loaded() {
        let mut judge = Judge::new(Judging::default());
        judge.see(&line(4, Some(1.5), None));
        assert_eq!(judge.kept(), None);
        let best = judge.best().unwrap();
        assert_eq!((best.step, best.value), (4, 1.5));
        assert!(!judge.gives_up());
    }
}
