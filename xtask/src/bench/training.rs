//! Training steps, measured in this process.

use crate::bench::report::{Line, Measure};
use crate::bench::{count, machine, object, word};
use anyhow::{Context, Result};
use lowrank::training::{Mode, Progress, RunFile, Started, StepLine};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// The file with a held-out row.
const HELD_OUT: &str = "held-out.jsonl";

/// Runs the steps of a request in this process.
///
/// # Errors
/// If the run file is refused, or the run fails.
pub fn measure(root: &Path, request: &Map<String, Value>) -> Result<Line> {
    let folder = tempfile::tempdir()?;
    let tokens = fs::read_to_string(word(request, "tokens")?)?;
    let tokens: Vec<Vec<u32>> = serde_json::from_str(&tokens)?;
    let row = |ids: &Vec<u32>| format!("{}\n", json!({"input_ids": ids, "labels": ids}));
    let rows = folder.path().join("rows.jsonl");
    fs::write(&rows, tokens.iter().map(row).collect::<String>())?;
    let one = tokens.iter().take(1).map(row);
    fs::write(folder.path().join(HELD_OUT), one.collect::<String>())?;
    let warm = count(request, "warm_steps")?;
    let text = run_file(root, request, folder.path())?;
    let path = folder.path().join("run.toml");
    let run = RunFile::parse(&text, &path, &[])?;
    let mut clock = Clock::default();
    lowrank::train(&run, &path, Mode::Overwrite, &mut clock)?;
    let counted = |values: &[f64]| values.iter().copied().skip(warm).collect::<Vec<f64>>();
    let mut measures = vec![Measure::new("step_seconds", "s", counted(&clock.seconds))];
    if !clock.cpu.is_empty() {
        measures.push(Measure::new("cpu_seconds", "s", counted(&clock.cpu)));
    }
    measures.extend(
        clock
            .peak
            .map(|peak| Measure::new("peak_rss", "MiB", vec![peak])),
    );
    let loss = clock.first_loss.context("the first loss is not finite")?;
    Ok(Line {
        axes: Map::new(),
        measures,
        facts: object([
            ("first_loss", json!(loss)),
            ("trained_parameters", json!(clock.parameters)),
        ]),
    })
}

fn run_file(root: &Path, request: &Map<String, Value>, folder: &Path) -> Result<String> {
    let quoted = |path: &Path| toml::Value::from(path.display().to_string());
    let source = word(request, "model")?;
    let here = root.join(source);
    let source = if here.exists() {
        quoted(&here)
    } else {
        source.into()
    };
    let (family, keys) = match word(request, "family")? {
        "dora" => ("lora", "use_dora = true\n"),
        "rslora" => ("lora", "use_rslora = true\n"),
        "reslora-is" => ("reslora", "res_type = \"is\"\n"),
        "reslora-ms" => ("reslora", "res_type = \"ms\"\n"),
        // Rounds are measured apart.
        "alora" => ("alora", "k1_steps = 1_000_000\n"),
        // All along in the phase that costs most.
        "salora" => ("salora", "t_start = 0\nt_end = 1\n"),
        "sbora-fb" => ("sbora", "variant = \"fb\"\n"),
        other => (other, ""),
    };
    let adapter = match family {
        "full" => String::new(),
        _ => {
            let rank = count(request, "rank")?;
            let known = lowrank::registry::by_name(family)?.defaults();
            // Families that PEFT has are called by PEFT's words; methods are compared without dropout.
            let shared = [
                ("r", json!(rank)),
                ("init_r", json!(rank)),
                ("target_r", json!(rank / 2)),
                ("lora_alpha", json!(2 * rank)),
                ("alpha", json!(2 * rank)),
                ("lora_dropout", json!(0.0)),
            ];
            let shared = shared.iter().filter(|(key, _)| known.contains_key(*key));
            let shared: String = shared
                .map(|(key, value)| format!("{key} = {value}\n"))
                .collect();
            format!("{shared}target_modules = \"all-linear\"\n{keys}")
        }
    };
    // What is not asked for is left to the default.
    let compute = match word(request, "precision")? {
        "f32" => String::new(),
        other => format!("compute = \"{other}\"\n"),
    };
    let dtype = word(request, "dtype")?;
    let device = match request.get("device").and_then(Value::as_str) {
        Some(device) => format!("device = \"{device}\"\n"),
        None => String::new(),
    };
    // What scores ranks on held-out rows does not begin without any.
    let eval = match family {
        "alora" => format!("eval = [{}]\n", quoted(&folder.join(HELD_OUT))),
        _ => String::new(),
    };
    let (batch, length) = (count(request, "batch")?, count(request, "length")?);
    let recompute = request.get("recompute") == Some(&Value::Bool(true));
    let steps = count(request, "warm_steps")? + count(request, "steps")?;
    let (rows, out) = (
        quoted(&folder.join("rows.jsonl")),
        quoted(&folder.join("run")),
    );
    Ok(format!(
        "[model]\nsource = {source}\ndtype = \"{dtype}\"\n{device}\
         [adapter]\nfamily = \"{family}\"\n{adapter}\
         [data]\ntrain = [{rows}]\n{eval}max_length = {length}\nshuffle = false\n\
         [train]\nsteps = {steps}\nbatch_size = {batch}\nrecompute = {recompute}\nmax_grad_norm = 1.0\n{compute}\
         [output]\ndir = {out}\n"
    ))
}

/// Reads the clocks after every step.
#[derive(Default)]
struct Clock {
    last: Option<(Instant, Option<f64>)>,
    seconds: Vec<f64>,
    cpu: Vec<f64>,
    peak: Option<f64>,
    first_loss: Option<f64>,
    parameters: usize,
}

impl Progress for Clock {
    fn started(&mut self, start: &Started) {
        self.parameters = start.trainable_parameters;
        self.last = Some((Instant::now(), machine::cpu_seconds()));
    }

    fn step(&mut self, line: &StepLine) {
        let now = (Instant::now(), machine::cpu_seconds());
        if let Some((before, cpu)) = self.last.replace(now) {
            self.seconds.push((now.0 - before).as_secs_f64());
            self.cpu
                .extend(now.1.zip(cpu).map(|(now, before)| now - before));
        }
        if line.step == 1 {
            self.first_loss = line.loss;
        }
        self.peak = line.peak_rss_mb;
    }
}
