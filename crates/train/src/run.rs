//! A whole run: from its folder and its rows to the last checkpoint.

use crate::checkpoint::{self, Checkpoint, Place};
use crate::choices::choices;
use crate::clip::find_non_finite_param;
use crate::error::{Change, Error, Result};
use crate::evaluate::loss;
use crate::metrics::{EvalLine, Metrics, StepLine, peak_rss_mb};
use crate::resolved;
use crate::run_file::RunFile;
use crate::run_folder::{Mode, RunFolder};
use crate::schedule::{Curve, Warmup};
use crate::trainer::{Done, Trainable, Trainer, Update};
use lowrank_data::{ChoiceExample, Dataset, Example, Plan, Reference};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The rows of a run.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// What is trained on.
    pub train: &'a [Example],
    /// What is held out; may be empty.
    pub eval: &'a [Example],
    /// One a held-out row, or none at all.
    pub references: &'a [Reference],
}

impl<'a> Rows<'a> {
    /// The rows of two data sets.
    #[must_use]
    pub fn new(train: &'a Dataset, eval: Option<&'a Dataset>) -> Self {
        Self {
            train: train.examples(),
            eval: eval.map(Dataset::examples).unwrap_or_default(),
            references: eval.map(Dataset::references).unwrap_or_default(),
        }
    }
}

/// What a run says of itself while it goes on. Every method may be left out.
pub trait Progress {
    /// Before the first step.
    fn started(&mut self, _start: &Started) {}
    /// After a step's line was written.
    fn step(&mut self, _line: &StepLine) {}
    /// After the line of an allocation was written.
    fn allocated(&mut self, _line: &Map<String, Value>) {}
    /// After an evaluation's line was written.
    fn evaluated(&mut self, _line: &EvalLine) {}
    /// After a checkpoint was written.
    fn saved(&mut self, _step: u64, _path: &Path) {}
    /// Something that a user should know, in one line.
    fn warning(&mut self, _message: &str) {}
}

/// Says nothing.
impl Progress for () {}

/// A run that is about to make its first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Steps that a checkpoint has done already.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
    /// Rows of the training data.
    pub rows: usize,
    /// Scalars that are trained.
    pub trainable_parameters: usize,
    /// The checkpoint that is continued.
    pub resumed_from: Option<PathBuf>,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The run's folder.
    pub folder: PathBuf,
    /// Steps in all.
    pub steps: u64,
    /// The step that the run was resumed after; none if it started at step 1.
    pub resumed_after: Option<u64>,
    /// The last training line.
    pub last_step: Option<StepLine>,
    /// The last evaluation line.
    pub last_evaluation: Option<EvalLine>,
}

/// Trains to the end: evaluates, logs and saves as the run file says. The caller then writes the adapter or the model.
///
/// The run file is written to the folder as [`RunFile::resolved`] gives it: a caller that knows more defaults (those of
/// a family) fills them in first.
///
/// # Errors
/// See [`Error`]; what was saved until then stays, and can be resumed.
pub fn train(
    folder: &RunFolder,
    run: &RunFile,
    trainable: &mut Trainable<'_>,
    rows: Rows<'_>,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let trainer = Trainer::new(trainable, rows.train, rows.eval, &run.data, &run.train)?;
    let mut session = Session {
        plan: trainer.plan().clone(),
        trainer,
        folder,
        run,
        rows,
    };
    let total = session.plan.total_steps();
    let resumed = session.resume(progress)?;
    let done = resumed.as_ref().map(|checkpoint| checkpoint.record().step);
    folder.write_run_file(&run.resolved())?;
    let mut metrics = Metrics::open(&folder.metrics(), done)?;
    progress.started(&Started {
        done: done.unwrap_or(0),
        total,
        rows: rows.train.len(),
        trainable_parameters: session.trainer.trainable().trainable_parameters,
        resumed_from: resumed.map(|checkpoint| checkpoint.path().to_owned()),
    });
    session.run(done, &mut metrics, progress)?;
    Ok(Summary {
        folder: folder.path().to_owned(),
        steps: total,
        resumed_after: done,
        last_step: metrics.last_step,
        last_evaluation: metrics.last_evaluation,
    })
}

struct Session<'a, 'b, 'c> {
    plan: Plan,
    trainer: Trainer<'a, 'b>,
    folder: &'c RunFolder,
    run: &'c RunFile,
    rows: Rows<'b>,
}

impl Session<'_, '_, '_> {
    fn resume(&mut self, progress: &mut dyn Progress) -> Result<Option<Checkpoint>> {
        if self.folder.mode() != Mode::Resume {
            return Ok(None);
        }
        let warn = |message: String| progress.warning(&message);
        let Some(checkpoint) = checkpoint::newest(&self.folder.checkpoints(), warn)? else {
            return Ok(None);
        };
        let settings = self.settings();
        checkpoint.check(&settings, self.rows.train.len() as u64)?;
        let record = checkpoint.record();
        let refuse = |what: &str, was: u64, now: u64| {
            let change = Change {
                key: what.to_owned(),
                was: Some(was.to_string()),
                now: Some(now.to_string()),
            };
            Err(Error::Changed {
                checkpoint: checkpoint.path().to_owned(),
                changes: vec![change],
            })
        };
        let total = self.plan.total_steps();
        if record.step > total {
            return refuse("the number of steps", record.step, total);
        }
        // The last step of a run by epochs may be short; a longer run would have made it whole.
        let taken = self.plan.sequences_after(record.step);
        if record.rows_taken != taken {
            let unit = match self.run.data.packing {
                true => "sequences",
                false => "rows",
            };
            let what = format!("the number of {unit} that {} steps take", record.step);
            return refuse(&what, record.rows_taken, taken);
        }
        let keys = &self.run.train;
        let fixed_rates =
            keys.schedule == Curve::Constant && matches!(keys.warmup, Warmup::Steps(_));
        if record.total != total && !fixed_rates {
            progress.warning(&format!(
                "{} steps were done at the learning rates of a run of {} steps, the others follow those of {total}: \
                 a run of {total} steps from the start would differ",
                record.step, record.total
            ));
        }
        let (optimizer, trainable) = self.trainer.restorable();
        checkpoint.restore(optimizer, trainable)?;
        // The run may have been killed between writing this one and removing older ones.
        self.prune(record.step)?;
        Ok(Some(checkpoint))
    }

    fn run(
        &mut self,
        done: Option<u64>,
        metrics: &mut Metrics,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let total = self.plan.total_steps();
        let keys = &self.run.train;
        let due =
            |every: u64, step: u64| step == total || (every > 0 && step.is_multiple_of(every));
        if done.is_none() {
            self.evaluate(0, metrics, progress)?;
        }
        for rows in self.plan.steps_after(done.unwrap_or(0)) {
            let step = rows.step;
            let start = Instant::now();
            let made = self.trainer.step(&rows)?;
            let line = line(step, &made, start.elapsed().as_secs_f64());
            metrics.step(&line)?;
            if let Some(allocation) = made.allocation {
                let line = allocated(step, allocation);
                metrics.event(&line)?;
                progress.allocated(&line);
            }
            if let Some(message) = skipped(step, made.update) {
                progress.warning(&message);
            }
            progress.step(&line);
            if due(keys.eval_every, step) {
                self.evaluate(step, metrics, progress)?;
            }
            if due(keys.save_every, step) {
                metrics.sync()?;
                let path = self.save(step)?;
                progress.saved(step, &path);
            }
        }
        Ok(())
    }

    /// What a resumed run must share with the one that it continues.
    fn settings(&self) -> BTreeMap<String, Value> {
        let mut settings = resolved::settings(self.run);
        let content = content_of(self.rows.train);
        settings.insert(checkpoint::CONTENT.into(), content.into());
        settings
    }

    fn evaluate(
        &self,
        step: u64,
        metrics: &mut Metrics,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Rows {
            eval, references, ..
        } = self.rows;
        if eval.is_empty() {
            return Ok(());
        }
        let trainable = self.trainer.trainable();
        let (model, selection) = (trainable.model, &trainable.selection);
        let batch_size = self.run.train.batch_size;
        let questions: Vec<(&Example, &ChoiceExample)> = eval
            .iter()
            .zip(references)
            .filter_map(|(example, reference)| match reference {
                Reference::Choices(question) => Some((example, question)),
                _ => None,
            })
            .collect();
        let evaluation = if questions.len() == eval.len() {
            choices(model, selection, questions, batch_size, &mut |_| Ok(()))?
        } else {
            loss(model, selection, eval, batch_size)?
        };
        let line = EvalLine {
            step,
            eval_loss: evaluation.loss,
            eval_tokens: evaluation.tokens,
            eval_accuracy: evaluation.accuracy,
        };
        metrics.evaluation(&line)?;
        if line.eval_loss.is_some_and(|loss| !loss.is_finite()) {
            progress.warning(&format!("step {step}: the evaluation loss is not finite"));
        }
        progress.evaluated(&line);
        Ok(())
    }

    /// A step whose update overflows is found before it is saved: from such a checkpoint no run could go on.
    fn save(&self, step: u64) -> Result<PathBuf> {
        if let Some(name) = find_non_finite_param(self.trainer.optimizer().params())? {
            let what = format!("`{name}` is no longer finite");
            return Err(Error::NonFinite { step, what });
        }
        let place = Place {
            step,
            total: self.plan.total_steps(),
            rows_taken: self.plan.sequences_after(step),
            rows: self.rows.train.len() as u64,
            settings: self.settings(),
        };
        let path = checkpoint::save(
            &self.folder.checkpoints(),
            place,
            self.trainer.trainable(),
            self.trainer.optimizer(),
        )?;
        self.prune(step)?;
        Ok(path)
    }

    fn prune(&self, step: u64) -> Result<()> {
        let keep = self.run.train.keep_checkpoints;
        checkpoint::prune(&self.folder.checkpoints(), keep, step)
    }
}

/// FNV-1a over the tokens and labels of every row: rows that changed would make another run.
fn content_of(examples: &[Example]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |number: u32| {
        for byte in number.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for example in examples {
        mix(example.ids.len() as u32);
        example.ids.iter().for_each(|&id| mix(id));
        example
            .labels
            .iter()
            .for_each(|&label| mix(label.cast_unsigned()));
        example.types.iter().for_each(|&kind| mix(kind));
        if let Some(label) = example.label {
            let bits = label.to_bits();
            mix(bits as u32);
            mix((bits >> 32) as u32);
        }
    }
    format!("{hash:016x}")
}

fn line(step: u64, done: &Done, seconds: f64) -> StepLine {
    let finite = |number: f64| number.is_finite().then_some(number);
    StepLine {
        step,
        loss: finite(done.loss),
        lr: done.learning_rate,
        grad_norm: finite(done.grad_norm),
        tokens: done.tokens,
        tokens_per_second: done.tokens as f64 / seconds.max(1e-9),
        peak_rss_mb: peak_rss_mb(),
        aux_loss: done.auxiliary.and_then(finite),
    }
}

/// `{"step", "event": "allocate", ..}`.
fn allocated(step: u64, allocation: Map<String, Value>) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("step".into(), step.into());
    line.insert("event".into(), "allocate".into());
    line.extend(allocation);
    line
}

fn skipped(step: u64, update: Update) -> Option<String> {
    match update {
        Update::Made => None,
        Update::NothingSupervised => Some(format!(
            "step {step}: none of its rows has a supervised token; nothing was updated"
        )),
        Update::NotFinite => Some(format!(
            "step {step}: the loss or a gradient is not finite; nothing was updated"
        )),
    }
}
