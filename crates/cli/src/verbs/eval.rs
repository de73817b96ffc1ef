//! `lowrank eval`.

use crate::arguments::{EvalArguments, Task};
use crate::output::print;
use crate::verbs::generate::stop_strings;
use crate::verbs::{check_output, classify, same};
use anyhow::Result;
use candle_core::DType;
use lowrank::adapter::Selection;
use lowrank::data::{Dataset, Example, Examples, FileSummary, Kind, Options, Reference};
use lowrank::format::{Planned, atomic_write, atomic_write_file, write_safetensors_streaming};
use lowrank::training::{self, Evaluation, Prediction, peak_rss_mb, wilson};
use lowrank::{Base, Error, Generation, Generator, answers, precision};
use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// How many tokens an answer has at most, unless `--max-new-tokens` says so.
const MAX_NEW_TOKENS: NonZeroUsize = NonZeroUsize::new(200).expect("it is not 0");

#[derive(Serialize)]
struct Report {
    task: &'static str,
    examples: u64,
    tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    supervised_tokens: Option<u64>,
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
    let (mut base, selection) = super::open(&arguments.model, precision, arguments.device)?;
    arguments.template.set(&mut base)?;
    let data = open_data(arguments, &base)?;
    check_mixture(arguments.task, &data)?;
    classify::check(&base, &data)?;
    let task = choose_task(arguments, &data)?;
    let evaluation = match task {
        Task::Choices => choices(arguments, &base, &selection, &data)?,
        Task::Classification => classify::measure(arguments, &base, &selection, &data)?,
        Task::Generate => generate(arguments, &base, &selection, &data)?,
        Task::Loss => loss(arguments, &base, &selection, &data)?,
    };
    if let Some(loss) = evaluation.loss.filter(|loss| !loss.is_finite()) {
        anyhow::bail!(
            "the loss is {loss}: the model or an adapter (or its weight) makes numbers that are not finite"
        );
    }
    let is_classification = task == Task::Classification;
    if let Some(path) = arguments.logits.as_ref().filter(|_| !is_classification) {
        write_logits(path, &base, &selection, data.examples())?;
    }
    let report = Report {
        task: task.as_str(),
        examples: evaluation.examples,
        tokens: evaluation.tokens,
        supervised_tokens: (!is_classification).then_some(evaluation.supervised_tokens),
        loss: evaluation.loss,
        perplexity: evaluation.loss.filter(|_| !is_classification).map(f64::exp),
        accuracy: evaluation.accuracy,
        accuracy_norm: evaluation.accuracy_norm,
        metrics: metrics(task, &evaluation),
        truncated: data.summary().truncated,
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
    };
    let mut more = String::new();
    for (name, value) in &report.metrics {
        writeln!(more, "{name:17}  {:.6}", value.as_f64().unwrap_or(f64::NAN))?;
    }
    print(&report, arguments.json, &more)?;
    Ok(ExitCode::SUCCESS)
}

fn metrics(task: Task, evaluation: &Evaluation) -> Map<String, Value> {
    let metrics = evaluation.metrics.iter();
    let mut metrics: Map<String, Value> = metrics
        .map(|(name, value)| (name.clone(), (*value).into()))
        .collect();
    if task == Task::Generate {
        metrics.insert("exact_match".to_owned(), evaluation.accuracy.into());
    }
    for (name, interval) in [
        ("accuracy", evaluation.accuracy_interval),
        ("accuracy_norm", evaluation.accuracy_norm_interval),
    ] {
        if let Some((low, high)) = interval {
            metrics.insert(format!("{name}_low"), low.into());
            metrics.insert(format!("{name}_high"), high.into());
        }
    }
    metrics
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

/// What rows of a kind are measured by, unless something else is asked for.
const fn measured_by(kind: Kind) -> Task {
    match kind {
        Kind::Choices => Task::Choices,
        Kind::Answer => Task::Generate,
        Kind::Labelled => Task::Classification,
        _ => Task::Loss,
    }
}

/// Refuses files of which one task would leave some rows, or what they hold, out.
fn check_mixture(given: Option<Task>, data: &Dataset) -> lowrank::Result<()> {
    let files = &data.summary().files;
    let other = |file: &&FileSummary| measured_by(file.kind) != measured_by(files[0].kind);
    let Some(other) = files.iter().find(other) else {
        return Ok(());
    };
    let labelled = files.iter().any(|file| file.kind == Kind::Labelled);
    let (remedy, fits) = match given {
        _ if labelled => ("", false),
        Some(Task::Loss) => ("", true),
        Some(Task::Generate) => ("", files.iter().all(|file| is_asked(file.kind))),
        _ => (", or all of them by --task loss", false),
    };
    if fits {
        return Ok(());
    }
    let first = &files[0];
    Err(Error::Usage(format!(
        "{} has rows {} and {} rows {}, which are not measured alike; measure them one after the other{remedy}",
        first.path.display(),
        first.kind,
        other.path.display(),
        other.kind
    )))
}

fn choose_task(arguments: &EvalArguments, data: &Dataset) -> lowrank::Result<Task> {
    let by_kind = data.kind().map_or(Task::Loss, measured_by);
    let task = match arguments.task {
        None => by_kind,
        Some(Task::Classification) if by_kind != Task::Classification => {
            let rows = Kind::Labelled;
            let what = format!("--task classification needs rows {rows}; these are others");
            return Err(Error::Usage(what));
        }
        Some(given) if by_kind == Task::Classification && given != by_kind => {
            let what = "rows with labels are measured by --task classification; leave the flag out";
            return Err(Error::Usage(what.into()));
        }
        Some(Task::Generate) if !data.summary().files.iter().all(|file| is_asked(file.kind)) => {
            return Err(Error::Usage(
                "--task generate needs rows with a prompt and what follows it, and with no `choices`"
                    .into(),
            ));
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
            "--predictions needs a --task that predicts: these rows are measured by their loss alone".into(),
        ));
    }
    if task != Task::Generate {
        let given = [
            ("--max-new-tokens", arguments.max_new_tokens.is_some()),
            ("--stop", !arguments.stop.is_empty()),
        ];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
            let task = task.as_str();
            return Err(Error::Usage(format!(
                "{flag} is for --task generate, and this is --task {task}"
            )));
        }
    }
    Ok(task)
}

/// Whether rows of a kind have a prompt that can be continued.
const fn is_asked(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Answer | Kind::Completion | Kind::Messages | Kind::Conversations | Kind::Instruction
    )
}

fn loss(
    arguments: &EvalArguments,
    base: &Base,
    selection: &Selection,
    data: &Dataset,
) -> lowrank::Result<Evaluation> {
    let (model, rows) = (base.model.as_ref(), data.examples());
    Ok(training::loss(
        model,
        selection,
        rows,
        arguments.batch_size,
        &mut || Ok(()),
    )?)
}

/// The answers first: they refuse more, and a row that cannot be answered must not cost the time of the losses.
fn generate(
    arguments: &EvalArguments,
    base: &Base,
    selection: &Selection,
    data: &Dataset,
) -> lowrank::Result<Evaluation> {
    let generation = Generation {
        max_new_tokens: arguments.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        stop: stop_strings(&arguments.stop)?,
        ..Generation::default()
    };
    let examples = data.examples().iter();
    let examples = examples.collect::<lowrank::data::Result<Vec<_>>>()?;
    check_answers(&examples, data)?;
    let cut = examples.iter().filter(|row| row.supervised() == 0).count();
    if cut > 0 {
        tracing::warn!(
            "{cut} prompts were cut at {} tokens and are answered as they are left; --max-length leaves more",
            arguments.max_length
        );
    }
    // There are no references where no row has one.
    let none = Reference::None;
    let references = (0..examples.len()).map(|row| data.references().get(row).unwrap_or(&none));
    let rows = examples.iter().map(Cow::as_ref).zip(references);
    let generator = Generator::new(base)?;
    let answered = answers(
        &generator,
        selection,
        rows,
        &generation,
        arguments.batch_size,
    )?;
    if let Some(path) = &arguments.predictions {
        let mut lines = String::new();
        for answer in &answered {
            lines.push_str(&serde_json::to_string(answer).unwrap_or_default());
            lines.push('\n');
        }
        atomic_write_file(path, lines.as_bytes())?;
    }
    let (count, right) = (answered.len(), answered.iter().filter(|row| row.correct));
    let right = right.count();
    Ok(Evaluation {
        accuracy: Some(right as f64 / count as f64),
        accuracy_interval: Some(wilson(right as u64, count as u64)),
        ..loss(arguments, base, selection, data)?
    })
}

/// Refuses rows that nothing follows that an answer could be compared with, and that were not cut before it either.
fn check_answers(examples: &[Cow<'_, Example>], data: &Dataset) -> lowrank::Result<()> {
    let has_answer = |row| matches!(data.references().get(row), Some(Reference::Answer(_)));
    let mut rows = examples.iter().enumerate();
    let found = rows.find(|(row, example)| {
        example.supervised() == 0 && !example.truncated && !has_answer(*row)
    });
    let Some((mut row, _)) = found else {
        return Ok(());
    };
    for file in &data.summary().files {
        if row < file.rows {
            return Err(Error::Usage(format!(
                "--task generate: row {} of {} has nothing to compare an answer with: expected a turn of the assistant, or a completion",
                row + 1,
                file.path.display()
            )));
        }
        row -= file.rows;
    }
    Ok(())
}

fn choices(
    arguments: &EvalArguments,
    base: &Base,
    selection: &Selection,
    data: &Dataset,
) -> lowrank::Result<Evaluation> {
    let rows = data.examples().iter().zip(data.references());
    let rows = rows.filter_map(|(example, reference)| match reference {
        Reference::Choices(question) => Some(example.map(|example| (example, question))),
        _ => None,
    });
    let (model, batch_size) = (base.model.as_ref(), arguments.batch_size);
    let mut go_on = || Ok(());
    let Some(path) = &arguments.predictions else {
        let mut each = |_| Ok(());
        let found = training::choices(model, selection, rows, batch_size, &mut each, &mut go_on);
        return Ok(found?);
    };
    let mut found = Evaluation::default();
    atomic_write(path, 0, |writer| {
        let mut each = |prediction: Prediction| {
            // A prediction is numbers and nothing else: it always has a JSON form.
            let line = serde_json::to_string(&prediction).unwrap_or_default();
            writeln!(writer, "{line}").map_err(training::Error::io("write", path))
        };
        found = training::choices(model, selection, rows, batch_size, &mut each, &mut go_on)?;
        Ok::<(), Error>(())
    })?;
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

fn check_outputs(arguments: &EvalArguments) -> lowrank::Result<()> {
    for (flag, path) in [
        ("--predictions", &arguments.predictions),
        ("--logits", &arguments.logits),
    ] {
        let Some(path) = path else { continue };
        check_output(flag, path, &arguments.model, &arguments.data)?;
    }
    match (&arguments.predictions, &arguments.logits) {
        (Some(predictions), Some(logits)) if same(predictions, logits) => Err(Error::Usage(
            format!("--predictions and --logits are both {}", logits.display()),
        )),
        _ => Ok(()),
    }
}
