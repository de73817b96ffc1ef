//! A whole run: from its folder and its rows to the last checkpoint.

use crate::best::Best;
use crate::checkpoint::{self, Checkpoint};
use crate::choices::choices;
use crate::classify::classify;
use crate::content::content;
use crate::error::{Change, Error, Result};
use crate::evaluate::loss;
use crate::log::Log;
use crate::metrics::{EvalLine, StepLine, peak_rss_mb};
use crate::resolved;
use crate::rows::{Asked, Rows};
use crate::run_file::RunFile;
use crate::run_folder::{Mode, RunFolder};
use crate::schedule::{Curve, Warmup};
use crate::trainer::{Done, Trainable, Trainer, Update};
use lowrank_data::Plan;
use serde_json::{Map, Value};
use settle::{End, State};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

mod settle;

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
    /// That of the step that the result is of.
    pub result_evaluation: Option<EvalLine>,
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
    let trainer = rows.trainer(trainable, run)?;
    let mut settings = resolved::settings(run);
    settings.insert(checkpoint::CONTENT.into(), content(rows.train, &[])?.into());
    if !rows.eval.is_empty() {
        let held_out = content(rows.eval, rows.references)?;
        settings.insert(checkpoint::HELD_OUT.into(), held_out.into());
    }
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
    if rows.eval.is_empty() && run.train.eval_every > 0 {
        progress.warning(&format!(
            "`train.eval_every` is {}, and there are no held-out rows: name some in `data.eval`, or nothing is evaluated",
            run.train.eval_every
        ));
    }
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
    let last = match outcome {
        Ok(End::Last) => Some(total),
        Ok(End::Early(step)) => Some(step),
        _ => None,
    };
    if let Some(last) = last {
        let result_of = state.judge.kept().unwrap_or(last);
        state.log.finished(last < total, result_of);
    }
    let (end, metrics) = state.log.ended(outcome)?;
    let (step, ended_early) = match end {
        End::Last => (total, false),
        End::Early(step) => (step, true),
        End::Stopped(step) => return Err(Error::Interrupted { step, total }),
    };
    let result_of = session.load_best(step, &state.judge, progress)?;
    let mut evaluations = metrics.evaluations().iter();
    Ok(Summary {
        result_evaluation: evaluations.rfind(|line| line.step == result_of).cloned(),
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
        let (step, was) = (record.step, record.total);
        if was != total && !fixed_rates {
            progress.warning(&format!(
                "{step} steps were done at the learning rates of a run of {was} steps, the others follow those of {total}: \
                 a run of {total} steps from the start would differ"
            ));
        } else if was != total && self.trainer.trainable().controller.is_some() {
            progress.warning(&format!(
                "{step} steps were done as the method allocates in a run of {was} steps, the others as in one of {total}: \
                 a run of {total} steps from the start may differ"
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
        let eval = self.rows.eval;
        if eval.is_empty() {
            return Ok(None);
        }
        let trainable = self.trainer.trainable();
        let (model, selection) = (trainable.model, &trainable.selection);
        let batch_size = self.run.train.batch_size;
        let total = self.plan.total_steps();
        // Between two batches nothing is lost: an evaluation that was left is made again.
        let mut stop = || match progress.stops() {
            true => Err(Error::Interrupted { step, total }),
            false => Ok(()),
        };
        let evaluation = match self.rows.asked() {
            Asked::Classes | Asked::Values => {
                classify(model, selection, eval, batch_size, &mut stop)?.0
            }
            Asked::Choices(questions) => {
                let rows = eval.iter().zip(questions);
                let rows = rows.map(|(example, question)| Ok((example?, question)));
                let mut each = |_| Ok(());
                choices(model, selection, rows, batch_size, &mut each, &mut stop)?
            }
            Asked::Losses => loss(model, selection, eval, batch_size, &mut stop)?,
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

fn line(step: u64, done: &Done, seconds: f64) -> StepLine {
    let finite = |number: f64| number.is_finite().then_some(number);
    StepLine {
        step,
        // What is not finite is told from what there is none of.
        loss: (done.update != Update::NothingSupervised).then_some(done.loss),
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
