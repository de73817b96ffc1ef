//! A whole schedule of AdaLoRA equals PEFT's: losses, penalties, norms, budgets, which ranks are chosen at which step, which E
//! are 0 after every one, and the folder at the end. `tests/parity/adalora.py` made the golden files.
#![expect(
    clippy::unwrap_used,
    reason = "a golden file that cannot be read fails the test"
)]

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use lowrank::adapter::{Attached, Param};
use lowrank::data::Example;
use lowrank::format::{Existing, PeftFolder};
use lowrank::models::Precision;
use lowrank::training::{RunFile, Trainable, Trainer};
use lowrank::{Base, StrictBase, load_adapter, save_adapter};
use lowrank_tests::device::device;
use lowrank_tests::golden::{Rows, folder, read_json};
use lowrank_tests::numbers::values;
use lowrank_tests::steps::ensure_final;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct Schedule {
    learning_rate: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    steps: usize,
    f32: Trace,
    f64: Trace,
}

/// By step.
#[derive(Deserialize)]
struct Trace {
    loss: Vec<f64>,
    penalty: Vec<f64>,
    grad_norm: Vec<f64>,
    budget: Vec<usize>,
    pattern: Vec<Option<Pattern>>,
    live: Vec<Pattern>,
}

type Pattern = BTreeMap<String, Vec<bool>>;

fn golden() -> std::path::PathBuf {
    folder().join("adalora")
}

/// Which numbers of E are not 0.
fn live(params: &[Param]) -> Result<Pattern> {
    let e = params
        .iter()
        .filter(|param| param.name().ends_with(".lora_E"));
    e.map(|param| {
        let live = values(&param.value())?.into_iter().map(|e| e != 0.0);
        Ok((param.name().to_owned(), live.collect()))
    })
    .collect()
}

fn attach(dtype: DType) -> Result<(Base, Attached)> {
    let model = folder().join("models/plain");
    let mut base = Base::open(&model.to_string_lossy(), Precision::Cast(dtype))?;
    base.place(&device()?)?;
    let init = golden().join("adapter_init");
    let attached = load_adapter(&mut base, "default", &init, StrictBase::No)?;
    Ok((base, attached))
}

fn run_file(schedule: &Schedule) -> Result<RunFile> {
    let Schedule {
        learning_rate,
        weight_decay,
        max_grad_norm,
        steps,
        ..
    } = schedule;
    let text = format!(
        r#"
        model.source = "given"
        data = {{ train = ["given"], shuffle = false }}
        output.dir = "none"
        [train]
        steps = {steps}
        batch_size = 3
        learning_rate = {learning_rate}
        weight_decay = {weight_decay}
        max_grad_norm = {max_grad_norm:?}
        "#
    );
    Ok(RunFile::parse(&text, Path::new("parity.toml"), &[])?)
}

fn near(what: &str, step: usize, ours: f64, theirs: f64, tolerance: f64) -> Result<()> {
    let error = (ours - theirs).abs() / theirs.abs();
    ensure!(
        error < tolerance,
        "step {step}: {what} {ours} instead of {theirs}, {error:e}"
    );
    Ok(())
}

/// What the log holds of a choice is PEFT's pattern, counted.
fn ensure_event(event: &Value, budget: usize, pattern: &Pattern) -> Result<()> {
    ensure!(event["budget"] == budget, "{event}");
    let ranks = event["ranks"].as_object().context("ranks")?;
    ensure!(ranks.len() == pattern.len());
    for (name, kept) in pattern {
        let path = name.strip_suffix(".lora_E").context("a pattern's name")?;
        let count = kept.iter().filter(|kept| **kept).count();
        ensure!(ranks[path] == count, "{path}: {event}, expected {count}");
    }
    Ok(())
}

fn check(dtype: DType, tolerance: f64, strictness: f64) -> Result<()> {
    let schedule: Schedule = read_json(&golden().join("schedule.json"))?;
    let rows: Vec<Rows> = read_json(&golden().join("batch.json"))?;
    let examples: Vec<Example> = rows.iter().flat_map(Rows::examples).collect();
    let trace = if dtype == DType::F64 {
        &schedule.f64
    } else {
        &schedule.f32
    };
    let (base, mut attached) = attach(dtype)?;
    let params = attached.params.clone();
    let run = run_file(&schedule)?;
    let mut trainable = Trainable::adapter(base.model.as_ref(), &mut attached);
    let mut trainer = Trainer::new(&mut trainable, &examples, &[], &run.data, &run.train)?;
    let steps: Vec<_> = trainer.plan().steps_after(0).collect();
    ensure!(steps.len() == schedule.steps && trace.live.len() == steps.len());
    let (mut choices, mut events, mut last) = (0, 0, None);
    for (i, rows) in steps.iter().enumerate() {
        let done = trainer.step(rows)?;
        let auxiliary = done.auxiliary.context("a penalty")?;
        // The penalty is the difference of two numbers of the size of the loss there.
        let tail = tolerance * trace.loss[i] / trace.penalty[i];
        near("loss", i + 1, done.loss, trace.loss[i], tolerance)?;
        near("penalty", i + 1, auxiliary, trace.penalty[i], tail)?;
        near(
            "norm",
            i + 1,
            done.grad_norm,
            trace.grad_norm[i],
            10.0 * tolerance,
        )?;
        ensure!(
            live(&params)? == trace.live[i],
            "step {}: other masks",
            i + 1
        );
        let controller = trainer.trainable().controller.as_ref();
        let budget = controller.and_then(|controller| controller.budget());
        ensure!(budget.is_some_and(|budget| budget <= trace.budget[0]));
        let pattern = trace.pattern[i].as_ref();
        choices += usize::from(pattern.is_some());
        if let Some(event) = done.allocation {
            let pattern = pattern.with_context(|| format!("step {}: no choice", i + 1))?;
            ensure_event(&Value::Object(event), trace.budget[i], pattern)?;
            ensure!(budget == Some(trace.budget[i]));
            events += 1;
        } else if let (Some(pattern), Some(last)) = (pattern, last) {
            // Only what changes no counts is left out of the log.
            let counts = |pattern: &Pattern| -> Vec<usize> {
                let of = |kept: &Vec<bool>| kept.iter().filter(|kept| **kept).count();
                pattern.values().map(of).collect()
            };
            ensure!(counts(pattern) == counts(last), "step {}: no event", i + 1);
        }
        last = pattern.or(last);
    }
    ensure!(choices == 10 && events >= 7, "{choices}, {events}");

    let dir = tempfile::tempdir()?;
    let saved = dir.path().join("adapter");
    save_adapter(&attached, &base.fingerprint()?, &saved, Existing::Refuse)?;
    let theirs = golden().join("adapter_final");
    let (ours, read) = (PeftFolder::read(&saved)?, PeftFolder::read(&theirs)?);
    ensure_final(&ours.tensors, &read.tensors, strictness)?;
    ensure!(ours.tensors.values().any(|tensor| tensor.elem_count() == 0));
    let configs = [&saved, &theirs].map(|folder| {
        let mut config: Value = read_json(&folder.join("adapter_config.json")).unwrap();
        let targets = config["target_modules"].as_array_mut().unwrap();
        targets.sort_by_key(ToString::to_string);
        config
    });
    ensure!(configs[0] == configs[1], "{configs:#?}");
    // And PEFT's folder loads here, module by module with the ranks that are left.
    let (mut base, _) = attach(dtype)?;
    let attached = load_adapter(&mut base, "last", &theirs, StrictBase::No)?;
    ensure!(attached.exported()?.tensors.len() == read.tensors.len());
    Ok(())
}

#[test]
fn a_schedule_in_f32() {
    check(DType::F32, 1e-4, 1.0).unwrap();
}

#[test]
fn a_schedule_in_f64_is_that_of_the_f64_reference() {
    // The saved adapter is the reference's f32 run.
    check(DType::F64, 1e-9, 1.0).unwrap();
}
