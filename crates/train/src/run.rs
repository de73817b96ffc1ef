//! A whole run: from its folder and its rows to the last checkpoint.

use crate::best::Best;
use crate::checkpoint::{self, Checkpoint};
use crate::choices::choices;
use crate::classify::classify;
use crate::error::{Change, Error, Result};
use crate::evaluate::loss;
use crate::log::Log;
use crate::metrics::{EvalLine, StepLine, peak_rss_mb};
use crate::resolved;
use crate::run_file::{RunFile, TaskKeys};
use crate::run_folder::{Mode, RunFolder};
use crate::schedule::{Curve, Warmup};
use crate::trainer::{Done, Trainable, Trainer, Update};
use lowrank_data::{ChoiceExample, Dataset, Example, Examples, Plan, Reference};
use serde_json::{Map, Value};
use settle::{End, State};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

mod settle;

/// The rows of a run.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// What is trained on.
    pub train: Examples<'a>,
    /// What is held out; may be empty.
    pub eval: Examples<'a>,
    /// One a held-out row, or none at all.
    pub references: &'a [Reference],
}

impl<'a> Rows<'a> {
    /// The rows of two data sets.
    #[must_use]
    pub fn new(train: &'a Dataset, eval: Option<&'a Dataset>) -> Self {
        Self {
            train: train.examples(),
            eval: eval.map_or((&[]).into(), Dataset::examples),
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
    /// Something that happened as it should, in one line.
    fn notice(&mut self, _message: &str) {}
    /// Whether the run is to stop now: it ends the step or the evaluation that it is in, saves, and returns
    /// [`Error::Interrupted`].
    fn stops(&mut self) -> bool {
        false
    }
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
    /// Steps in all; those that were made, if the run ended early.
    pub steps: u64,
    /// Whether it ended early, for lack of better evaluations.
    pub ended_early: bool,
    /// The step that the result is of: with `load_best` that of the best evaluation, else the last one.
    pub result_of: u64,
    /// The best evaluation after a step, by `best_metric`.
    pub best: Option<Best>,
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
/// With `load_best` what is trained holds at the end what the best evaluation was of.
///
/// # Errors
/// [`Error::Interrupted`] if `progress` stopped it. Else see [`Error`]; what was saved until then stays, and can be
/// resumed.
pub fn train(
    folder: &RunFolder,
    run: &RunFile,
    trainable: &mut Trainable<'_>,
    rows: Rows<'_>,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let trainer = Trainer::new(trainable, rows.train, rows.eval, &run.data, &run.train)?;
    let mut settings = resolved::settings(run);
    let content = content_of(rows.train)?;
    settings.insert(checkpoint::CONTENT.into(), content.into());
    let mut session = Session {
        settings,
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
    let log = Log::open(
        folder,
        done,
        lowrank_report::Run {
            run_file: run.resolved(),
            total,
            rows: rows.train.len(),
            held_out: rows.eval.len(),
            trainable_parameters: session.trainer.trainable_parameters(),
            ..lowrank_report::Run::default()
        },
    )?;
    let mut state = State {
        judge: session.judge(done, log.metrics(), progress)?,
        saved: done,
        log,
    };
    progress.started(&Started {
        done: done.unwrap_or(0),
        total,
        rows: rows.train.len(),
        trainable_parameters: session.trainer.trainable_parameters(),
        resumed_from: resumed.map(|checkpoint| checkpoint.path().to_owned()),
    });
    let outcome = session.run(done, &mut state, progress);
    let (end, metrics) = state.log.ended(outcome)?;
    let (step, ended_early) = match end {
        End::Last => (total, false),
        End::Early(step) => (step, true),
        End::Stopped(step) => return Err(Error::Interrupted { step, total }),
    };
    let result_of = session.load_best(step, &state.judge, progress)?;
    Ok(Summary {
        folder: folder.path().to_owned(),
        steps: step,
        ended_early,
        result_of,
        best: state.judge.best(),
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
    /// What a resumed run must share with the one that it continues.
    settings: BTreeMap<String, Value>,
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
        checkpoint.check(&self.settings, self.rows.train.len() as u64)?;
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
        Ok(Some(checkpoint))
    }

    fn run(
        &mut self,
        done: Option<u64>,
        state: &mut State<'_>,
        progress: &mut dyn Progress,
    ) -> Result<End> {
        let first = done.unwrap_or(0);
        // A run that was stopped saved before it evaluated.
        if let Some(end) = self.settle(first, state, progress)? {
            return Ok(end);
        }
        let plan = self.plan.clone();
        for rows in plan.steps_after(first) {
            let step = rows.step;
            let start = Instant::now();
            let made = self.trainer.step(&rows)?;
            let line = line(step, &made, start.elapsed().as_secs_f64());
            state.log.step(&line)?;
            if let Some(allocation) = made.allocation {
                let line = allocated(step, allocation);
                state.log.event(&line)?;
                progress.allocated(&line);
            }
            if let Some(message) = skipped(step, made.update) {
                progress.warning(&message);
            }
            progress.step(&line);
            if let Some(end) = self.settle(step, state, progress)? {
                return Ok(end);
            }
        }
        Ok(End::Last)
    }

    fn evaluate(
        &self,
        step: u64,
        log: &mut Log<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Option<EvalLine>> {
        let Rows {
            eval, references, ..
        } = self.rows;
        if eval.is_empty() {
            return Ok(None);
        }
        let trainable = self.trainer.trainable();
        let (model, selection) = (trainable.model, &trainable.selection);
        let batch_size = self.run.train.batch_size;
        let questions = references.iter().map(|reference| match reference {
            Reference::Choices(question) => Some(question),
            _ => None,
        });
        let questions: Option<Vec<&ChoiceExample>> = questions.collect();
        let questions = questions.filter(|questions| questions.len() == eval.len());
        let evaluation = if self.run.task != TaskKeys::CausalLm {
            classify(model, selection, eval, batch_size)?.0
        } else if let Some(questions) = questions {
            let rows = eval.iter().zip(questions);
            let rows = rows.map(|(example, question)| Ok((example?, question)));
            let total = self.plan.total_steps();
            // Between two questions nothing is lost: an evaluation that was left is made again.
            let mut each = |_| match progress.stops() {
                true => Err(Error::Interrupted { step, total }),
                false => Ok(()),
            };
            choices(model, selection, rows, batch_size, &mut each)?
        } else {
            loss(model, selection, eval, batch_size)?
        };
        let mut judged = evaluation.metrics;
        let accuracy = evaluation.accuracy;
        judged.extend(accuracy.map(|share| ("accuracy".to_owned(), share)));
        let line = EvalLine {
            step,
            eval_loss: evaluation.loss,
            eval_tokens: evaluation.tokens,
            metrics: judged,
        };
        log.evaluation(&line)?;
        if line.eval_loss.is_some_and(|loss| !loss.is_finite()) {
            progress.warning(&format!("step {step}: the evaluation loss is not finite"));
        }
        progress.evaluated(&line);
        Ok(Some(line))
    }
}

/// FNV-1a over the tokens and labels of every row: rows that changed would make another run.
fn content_of(examples: Examples<'_>) -> Result<String> {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |number: u32| {
        for byte in number.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for example in examples.iter() {
        let example: Cow<'_, Example> = example?;
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
    Ok(format!("{hash:016x}"))
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
            "step {step}: nothing in its rows is supervised; nothing was updated"
        )),
        Update::NotFinite => Some(format!(
            "step {step}: the loss or a gradient is not finite; nothing was updated"
        )),
    }
}
