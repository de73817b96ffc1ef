//! `lowrank train`.

use crate::arguments::TrainArguments;
use crate::output::print;
use crate::progress::{Shown, shown};
use crate::say;
use crate::verbs::run_file;
use anyhow::{Result, anyhow};
use lowrank::training::{self, Best, EvalLine, Mode, StepLine};
use lowrank::{Error, format};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Serialize)]
struct Report {
    folder: PathBuf,
    result: PathBuf,
    steps: u64,
    trainable_parameters: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ended_early: bool,
    result_of: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<Best>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_step: Option<StepLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_evaluation: Option<EvalLine>,
}

/// Runs a run file.
pub fn run(arguments: &TrainArguments, quiet: bool) -> Result<ExitCode> {
    let path = &arguments.run;
    let run = run_file(path, &arguments.sets)?;
    let mode = match (arguments.resume, arguments.overwrite) {
        (true, _) => Mode::Resume,
        (_, true) => Mode::Overwrite,
        _ => Mode::Fresh,
    };
    let mut shown = Shown::new(quiet);
    let trained = match lowrank::train(&run, path, mode, &mut shown) {
        Err(Error::Train(error)) if matches!(*error, training::Error::Interrupted { .. }) => {
            let (name, code) = shown.signals().came().unwrap_or(("a signal", 1));
            let set = match arguments.sets.is_empty() {
                true => "",
                false => ", and what was given with `--set`",
            };
            say(&format!("{name}: {error}{set}"));
            return Ok(ExitCode::from(code));
        }
        Err(error) if is_full(&error) => {
            return Err(anyhow!(
                "{error}; with `--resume` the run goes on from its last checkpoint, which is whole, or from the start"
            ));
        }
        trained => trained?,
    };
    let after = trained.summary.result_evaluation.as_ref();
    let held_out = shown.before().zip(after);
    let held_out = held_out.map_or(String::new(), |(before, after)| compared(before, after));
    let best = trained.summary.best.map_or(String::new(), |best| {
        let Best {
            step,
            metric,
            value,
        } = best;
        format!(
            "best held-out {:8}{value:.4} after step {step}\n",
            metric.name()
        )
    });
    let more = held_out + &best;
    let report = Report {
        folder: trained.summary.folder,
        result: trained.result,
        steps: trained.summary.steps,
        ended_early: trained.summary.ended_early,
        result_of: trained.summary.result_of,
        best: trained.summary.best,
        trainable_parameters: trained.trainable_parameters,
        last_step: trained.summary.last_step,
        last_evaluation: trained.summary.last_evaluation,
    };
    print(&report, arguments.json, &more)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether there is no room for what is to be written.
fn is_full(error: &Error) -> bool {
    let full = |error: &format::Error| matches!(error, format::Error::NoRoom { .. });
    match error {
        Error::Format(error) => full(error),
        Error::Train(error) => matches!(&**error, training::Error::Format(error) if full(error)),
        Error::Key { source, .. } => is_full(source),
        _ => false,
    }
}

/// What training changed on the held-out rows, for people.
fn compared(before: &EvalLine, after: &EvalLine) -> String {
    let mut text = String::new();
    let losses = (before.eval_loss, after.eval_loss);
    if let (Some(before), Some(after)) = losses {
        let (before, after) = (shown("loss", before), shown("loss", after));
        text += &format!("held-out loss         {before} before training, {after} after\n");
    }
    for (name, after) in &after.metrics {
        let Some(before) = before.metrics.get(name) else {
            continue;
        };
        let (before, after) = (shown(name, *before), shown(name, *after));
        let what = format!("held-out {name}");
        text += &format!("{what:<21} {before} before training, {after} after\n");
    }
    text
}
