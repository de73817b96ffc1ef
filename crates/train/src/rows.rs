//! The rows of a run, and what its evaluations ask of those that are held out.

use crate::best::{Judging, Metric};
use crate::error::{Error, Result};
use crate::run_file::RunFile;
use crate::task_metrics::{OF_CLASSES, OF_VALUES};
use crate::trainer::{Trainable, Trainer};
use lowrank_data::{ChoiceExample, Classes, Dataset, Examples, Reference};

/// The rows of a run.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// What is trained on.
    pub train: Examples<'a>,
    /// What is held out; may be empty.
    pub eval: Examples<'a>,
    /// One a held-out row, or none at all.
    pub references: &'a [Reference],
    /// The classes that labels name, or that they are values; none if rows have no labels.
    pub classes: Option<&'a Classes>,
}

/// What an evaluation asks of the held-out rows.
#[derive(Debug)]
pub(crate) enum Asked<'a> {
    /// How likely their tokens are.
    Losses,
    /// Which of several texts follows, for each row.
    Choices(Vec<&'a ChoiceExample>),
    /// Their classes.
    Classes,
    /// Their values.
    Values,
}

impl<'a> Rows<'a> {
    /// The rows of two data sets.
    #[must_use]
    pub fn new(train: &'a Dataset, eval: Option<&'a Dataset>) -> Self {
        Self {
            train: train.examples(),
            eval: eval.map_or((&[]).into(), Dataset::examples),
            references: eval.map(Dataset::references).unwrap_or_default(),
            classes: train.classes(),
        }
    }

    /// A trainer of these rows, before its first step.
    ///
    /// # Errors
    /// As [`Trainer::new`]; and if evaluations are to be compared, and there are none, or not by such a metric.
    pub fn trainer<'t>(
        self,
        trainable: &'a mut Trainable<'t>,
        run: &'a RunFile,
    ) -> Result<Trainer<'t, 'a>> {
        self.check(&run.train.judging)?;
        Trainer::new(trainable, self.train, self.eval, &run.data, &run.train)
    }

    /// Refuses to compare what will not be measured.
    fn check(&self, judging: &Judging) -> Result<()> {
        let metric = judging.metric;
        if self.eval.is_empty() {
            return match judging.needs_evaluations() || metric != Metric::default() {
                true => Err(Error::NothingToJudge),
                false => Ok(()),
            };
        }
        let known = self.asked().metrics();
        match known.contains(&metric.name()) {
            true => Ok(()),
            false => Err(Error::NoMetric {
                name: metric.name(),
                known: known.into_iter().map(str::to_owned).collect(),
            }),
        }
    }

    pub(crate) fn asked(&self) -> Asked<'a> {
        if let Some(classes) = self.classes {
            return match classes.is_regression() {
                true => Asked::Values,
                false => Asked::Classes,
            };
        }
        let questions = self.references.iter().map(|reference| match reference {
            Reference::Choices(question) => Some(question),
            _ => None,
        });
        let questions: Option<Vec<&ChoiceExample>> = questions.collect();
        match questions.filter(|questions| questions.len() == self.eval.len()) {
            Some(questions) if !questions.is_empty() => Asked::Choices(questions),
            _ => Asked::Losses,
        }
    }
}

impl Asked<'_> {
    /// What it measures, by names that [`Metric`]s have.
    fn metrics(&self) -> Vec<&'static str> {
        let more: &[&str] = match self {
            Self::Losses => &[],
            Self::Choices(questions) => {
                match questions.iter().any(|question| question.gold.is_some()) {
                    true => &["accuracy"],
                    false => &[],
                }
            }
            Self::Classes => &OF_CLASSES,
            Self::Values => &OF_VALUES,
        };
        [&["loss"], more].concat()
    }
}
