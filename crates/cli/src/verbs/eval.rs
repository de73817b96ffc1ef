//! `lowrank eval`.

use crate::arguments::{EvalArguments, Task};
use crate::output::print;
use crate::verbs::{same, within};
use anyhow::Result;
use candle_core::DType;
use lowrank::adapter::Selection;
use lowrank::data::{ChoiceExample, Dataset, Example, Examples, Kind, Options, Reference};
use lowrank::format::{Planned, atomic_write_file, write_safetensors_streaming};
use lowrank::models::Embedded;
use lowrank::training::{self, Evaluation, Prediction, peak_rss_mb};
use lowrank::{Base, Error, precision};
use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    task: &'static str,
    examples: u64,
    tokens: u64,
    supervised_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy_norm: Option<f64>,
    metrics: Map<String, Value>,
    truncated: usize,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_mb: Option<f64>,
}

/// Measures a model.
pub fn run(arguments: &EvalArguments) -> Result<ExitCode> {
    let precision = precision(&arguments.dtype)?;
    check_outputs(arguments)?;
    let started = Instant::now();
    let (base, selection) = super::open(&arguments.model, precision, arguments.device)?;
    let data = open_data(arguments, &base)?;
    let task = choose_task(arguments, &data)?;
    let evaluation = match task {
        Task::Choices => choices(arguments, &base, &selection, &data)?,
        _ => {
            let model = base.model.as_ref();
            training::loss(model, &selection, data.examples(), arguments.batch_size)
                .map_err(Error::from)?
        }
    };
    if let Some(loss) = evaluation.loss.filter(|loss| !loss.is_finite()) {
        anyhow::bail!(
            "the loss is {loss}: the model or an adapter (or its weight) makes numbers that are not finite"
        );
    }
    if let Some(path) = &arguments.logits {
        write_logits(path, &base, &selection, data.examples())?;
    }
    let report = Report {
        task: if task == Task::Choices {
            "choices"
        } else {
            "loss"
        },
        examples: evaluation.examples,
        tokens: evaluation.tokens,
        supervised_tokens: evaluation.supervised_tokens,
        loss: evaluation.loss,
        perplexity: evaluation.loss.map(f64::exp),
        accuracy: evaluation.accuracy,
        accuracy_norm: evaluation.accuracy_norm,
        metrics: Map::new(),
        truncated: data.summary().truncated,
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
    };
    print(&report, arguments.json, "")?;
    Ok(ExitCode::SUCCESS)
}

fn open_data(arguments: &EvalArguments, base: &Base) -> lowrank::Result<Dataset> {
    let options = Options {
        max_length: arguments.max_length,
        end_token: base.info.eos_token_ids.first().copied(),
        vocab: base.info.vocab_size,
        limit: arguments.limit,
    };
    lowrank::open_data(&arguments.data, base, &options)
}

fn choose_task(arguments: &EvalArguments, data: &Dataset) -> lowrank::Result<Task> {
    let by_kind = match data.kind() {
        Some(Kind::Choices) => Task::Choices,
        _ => Task::Loss,
    };
    let task = match arguments.task {
        None => by_kind,
        Some(Task::Classification) => {
            return Err(Error::Usage(
                "--task classification is not yet supported".into(),
            ));
        }
        Some(Task::Generate) => {
            return Err(Error::Usage("--task generate is not yet supported".into()));
        }
        Some(Task::Choices) if by_kind != Task::Choices => {
            return Err(Error::Usage(
                "--task choices needs rows with `choices`; these have none".into(),
            ));
        }
        Some(task) => task,
    };
    if task == Task::Loss && arguments.predictions.is_some() {
        return Err(Error::Usage(
            "--predictions needs rows with `choices`, and no --task loss".into(),
        ));
    }
    Ok(task)
}

fn choices(
    arguments: &EvalArguments,
    base: &Base,
    selection: &Selection,
    data: &Dataset,
) -> lowrank::Result<Evaluation> {
    let examples = data.examples().iter();
    let examples = examples.collect::<lowrank::data::Result<Vec<_>>>()?;
    let rows = examples.iter().map(Cow::as_ref).zip(data.references());
    let rows = rows.filter_map(|(example, reference)| match reference {
        Reference::Choices(question) => Some((example, question)),
        _ => None,
    });
    let mut lines = String::new();
    let mut each = |prediction: Prediction| {
        if arguments.predictions.is_some() {
            // A prediction is numbers and nothing else: it always has a JSON form.
            lines.push_str(&serde_json::to_string(&prediction).unwrap_or_default());
            lines.push('\n');
        }
        Ok(())
    };
    let rows: Vec<(&Example, &ChoiceExample)> = rows.collect();
    let model = base.model.as_ref();
    let found = training::choices(model, selection, rows, arguments.batch_size, &mut each)?;
    if let Some(path) = &arguments.predictions {
        atomic_write_file(path, lines.as_bytes())?;
    }
    Ok(found)
}

/// One row at a time, in the order of the file: the logits of all rows may not fit into memory.
fn write_logits(
    path: &Path,
    base: &Base,
    selection: &Selection,
    examples: Examples<'_>,
) -> lowrank::Result<()> {
    let planned = |row: usize| Planned {
        name: format!("logits.{row}"),
        dtype: DType::F32,
        shape: vec![examples.tokens(row), base.info.vocab_size],
    };
    let planned: Vec<Planned> = (0..examples.len()).map(planned).collect();
    write_safetensors_streaming(path, &planned, &[], |row| {
        let ids = &examples.get(row)?.ids;
        let logits = training::logits(base.model.as_ref(), selection, ids)?;
        Ok(logits.to_dtype(DType::F32)?)
    })
}

/// What is only found when all is computed would cost a user the time of an evaluation.
fn check_outputs(arguments: &EvalArguments) -> lowrank::Result<()> {
    for (flag, path) in [
        ("--predictions", &arguments.predictions),
        ("--logits", &arguments.logits),
    ] {
        let Some(path) = path else { continue };
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        if path.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
            return Err(Error::Usage(format!(
                "{flag} {}: expected a file in a folder that exists",
                path.display()
            )));
        }
        let model = &arguments.model.model;
        let in_model = Embedded::named(model).is_none() && within(path, Path::new(model));
        let mut adapters = arguments.model.adapters.iter();
        let in_adapter = adapters.any(|adapter| within(path, &adapter.path));
        let mut inputs = arguments.data.iter().map(Path::new);
        if inputs.any(|input| same(input, path)) || in_model || in_adapter {
            return Err(Error::Usage(format!(
                "{flag} {}: this would overwrite what the evaluation reads",
                path.display()
            )));
        }
    }
    match (&arguments.predictions, &arguments.logits) {
        (Some(predictions), Some(logits)) if same(predictions, logits) => Err(Error::Usage(
            format!("--predictions and --logits are both {}", logits.display()),
        )),
        _ => Ok(()),
    }
}
