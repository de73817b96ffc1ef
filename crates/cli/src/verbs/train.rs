//! `lowrank train`.

use crate::arguments::TrainArguments;
use crate::output::print;
use crate::progress::{Shown, shown};
use crate::verbs::run_file;
use anyhow::Result;
use lowrank::training::{EvalLine, Mode, StepLine};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Serialize)]
struct Report {
    folder: PathBuf,
    result: PathBuf,
    steps: u64,
    trainable_parameters: usize,
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
    let trained = lowrank::train(&run, path, mode, &mut shown)?;
    let after = trained.summary.last_evaluation.as_ref();
    let held_out = shown.before().zip(after);
    let held_out = held_out.map_or(String::new(), |(before, after)| compared(before, after));
    let report = Report {
        folder: trained.summary.folder,
        result: trained.result,
        steps: trained.summary.steps,
        trainable_parameters: trained.trainable_parameters,
        last_step: trained.summary.last_step,
        last_evaluation: trained.summary.last_evaluation,
    };
    print(&report, arguments.json, &held_out)?;
    Ok(ExitCode::SUCCESS)
}

/// What training changed on the held-out rows, for people.
fn compared(before: &EvalLine, after: &EvalLine) -> String {
    let mut text = String::new();
    let losses = (before.eval_loss, after.eval_loss);
    if let (Some(before), Some(after)) = losses {
        text += &format!("held-out loss         {before:.4} before training, {after:.4} after\n");
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
