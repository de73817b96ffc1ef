//! What happens between two steps: evaluations are compared, checkpoints written and removed, and runs end.

use super::{Progress, Session};
use crate::best::{Judge, Judging};
use crate::checkpoint::{self, Place};
use crate::clip::find_non_finite_param;
use crate::error::{Error, Result};
use crate::log::Log;
use crate::metrics::Metrics;
use std::collections::BTreeSet;

/// What a run knows of itself, beside what is trained.
pub(super) struct State<'a> {
    pub log: Log<'a>,
    pub judge: Judge,
    /// The step of the last checkpoint.
    pub saved: Option<u64>,
}

/// How the steps ended.
pub(super) enum End {
    /// With the last one.
    Last,
    /// After this one, for lack of better evaluations.
    Early(u64),
    /// After this one, because somebody asked.
    Stopped(u64),
}

impl Session<'_, '_, '_> {
    /// What the evaluations so far say.
    pub(super) fn judge(
        &self,
        done: Option<u64>,
        metrics: &Metrics,
        progress: &mut dyn Progress,
    ) -> Result<Judge> {
        let mut lost = BTreeSet::new();
        let judge = loop {
            let mut judge = Judge::new(self.run.train.judging);
            let lines = metrics.evaluations().iter();
            for line in lines.filter(|line| !lost.contains(&line.step)) {
                judge.see(line);
            }
            let Some(step) = judge.kept() else {
                break judge;
            };
            // What cannot be loaded is as if it had not been: the next resumption finds the same.
            match checkpoint::at(&self.folder.checkpoints(), step) {
                Ok(_) => break judge,
                Err(error) if lost.is_empty() => progress.warning(&format!(
                    "the checkpoint of the best evaluation is lost ({error}): the best of those that are there, and of \
                     later ones, will be loaded"
                )),
                Err(_) => {}
            }
            lost.insert(step);
        };
        // The run may have been killed between writing a checkpoint and removing older ones.
        if let Some(done) = done {
            self.prune(done, judge.kept())?;
        }
        Ok(judge)
    }

    /// What is due after a step, or before the first one (0): evaluation, checkpoint, end.
    pub(super) fn settle(
        &self,
        step: u64,
        state: &mut State<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Option<End>> {
        let total = self.plan.total_steps();
        let keys = &self.run.train;
        let due = |every: u64| step == total || (every > 0 && step.is_multiple_of(every));
        let evaluated = |metrics: &Metrics| {
            let last = metrics.last_evaluation.as_ref();
            last.is_some_and(|line| line.step == step)
        };
        if (step == 0 || due(keys.eval_every)) && !evaluated(state.log.metrics()) {
            if progress.stops() {
                return self.stop(step, state, progress).map(Some);
            }
            match self.evaluate(step, &mut state.log, progress) {
                Err(Error::Interrupted { .. }) => {
                    return self.stop(step, state, progress).map(Some);
                }
                line => {
                    if let Some(line) = line? {
                        state.judge.see(&line);
                    }
                }
            }
        }
        let gives_up = step > 0 && state.judge.gives_up();
        let is_best = state.judge.kept() == Some(step);
        if step > 0 && (due(keys.save_every) || gives_up || is_best) {
            self.save(step, state, progress)?;
        }
        if step == total {
            return Ok(None);
        }
        if gives_up {
            let best = state.judge.best();
            let best = best.map_or(String::new(), |best| {
                format!(", the best after step {}", best.step)
            });
            progress.notice(&format!(
                "ended early, after step {step} of {total}: {} evaluations in a row were not better{best}",
                keys.judging.patience.unwrap_or(0)
            ));
            return Ok(Some(End::Early(step)));
        }
        if progress.stops() {
            return self.stop(step, state, progress).map(Some);
        }
        Ok(None)
    }

    fn stop(&self, step: u64, state: &mut State<'_>, progress: &mut dyn Progress) -> Result<End> {
        if step > 0 {
            self.save(step, state, progress)?;
        }
        Ok(End::Stopped(step))
    }

    /// Puts what the best evaluation was of in the place of what `step` made; the step that the result is of.
    pub(super) fn load_best(
        &mut self,
        step: u64,
        judge: &Judge,
        progress: &mut dyn Progress,
    ) -> Result<u64> {
        let Judging {
            load_best, metric, ..
        } = self.run.train.judging;
        if load_best && judge.kept().is_none() {
            progress.warning(&format!(
                "no evaluation after a step gave a {} that is a number: `train.load_best` has nothing to load, and the \
                 result is that of the last step, {step}",
                metric.name()
            ));
        }
        let Some(kept) = judge.kept().filter(|&kept| kept != step) else {
            return Ok(step);
        };
        let checkpoint = checkpoint::at(&self.folder.checkpoints(), kept)?;
        let (optimizer, trainable) = self.trainer.restorable();
        checkpoint.restore(optimizer, trainable)?;
        progress.notice(&format!(
            "the result is that of step {kept}, the best evaluation"
        ));
        Ok(kept)
    }

    /// A step whose update overflows is found before it is saved: from such a checkpoint no run could go on.
    fn save(&self, step: u64, state: &mut State<'_>, progress: &mut dyn Progress) -> Result<()> {
        if state.saved == Some(step) {
            // An evaluation that was made after it may have found another best.
            return self.prune(step, state.judge.kept());
        }
        state.log.sync()?;
        if let Some(name) = find_non_finite_param(self.trainer.optimizer().params())? {
            let what = format!("`{name}` is no longer finite");
            return Err(Error::NonFinite { step, what });
        }
        let place = Place {
            step,
            total: self.plan.total_steps(),
            rows_taken: self.plan.sequences_after(step),
            rows: self.rows.train.len() as u64,
            settings: self.settings.clone(),
        };
        let path = checkpoint::save(
            &self.folder.checkpoints(),
            place,
            self.trainer.trainable(),
            self.trainer.optimizer(),
        )?;
        state.saved = Some(step);
        self.prune(step, state.judge.kept())?;
        state.log.show_now_and_then()?;
        progress.saved(step, &path);
        Ok(())
    }

    fn prune(&self, step: u64, best: Option<u64>) -> Result<()> {
        let keep = self.run.train.keep_checkpoints;
        checkpoint::prune(&self.folder.checkpoints(), keep, step, best)
    }
}
