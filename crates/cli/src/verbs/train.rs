//! `lowrank train`.

use crate::arguments::TrainArguments;
use crate::output::print;
use crate::progress::Shown;
use anyhow::Result;
use lowrank::Error;
use lowrank::training::{EvalLine, Mode, RunFile, StepLine};
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
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Usage(format!("cannot read {}: {error}", path.display())))?;
    let run = RunFile::parse(&text, path, &arguments.sets).map_err(Error::from)?;
    let mode = match (arguments.resume, arguments.overwrite) {
        (true, _) => Mode::Resume,
        (_, true) => Mode::Overwrite,
        _ => Mode::Fresh,
    };
    let trained = lowrank::train(&run, path, mode, &mut Shown::new(quiet))?;
    let report = Report {
        folder: trained.summary.folder,
        result: trained.result,
        steps: trained.summary.steps,
        trainable_parameters: trained.trainable_parameters,
        last_step: trained.summary.last_step,
        last_evaluation: trained.summary.last_evaluation,
    };
    print(&report, arguments.json, "")?;
    Ok(ExitCode::SUCCESS)
}
