//! `cargo xtask bench`: seconds, memory and rates, ours and PyTorch's in the same run. See docs/bench.md.

mod cell;
mod decode;
mod generate;
mod growth;
mod losses;
mod machine;
mod operations;
mod ops;
mod peers;
mod plot;
mod rate;
mod record;
mod report;
mod shapes;
mod step;
mod summary;
mod table;
mod training;

use anyhow::{Context as _, Result, bail};
use candle_core::{Device, Tensor};
use cell::Request;
use clap::{Args, Subcommand};
use lowrank_ops::rng::{Key, Purpose};
use machine::Machine;
use report::{Cell, Line, Report};
use serde_json::{Map, Value};
use std::path::Path;
use std::process::Command;

/// What is measured.
#[derive(Debug, Args)]
pub struct Arguments {
    /// All of them, quick and without the peer, if none is named.
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Training steps: seconds, memory, and the share of the machine's own product rate.
    Step(step::Options),
    /// Every operation, forward and backward, beside its composed twin and the machine's rates.
    Ops(ops::Options),
    /// Opening a base, the first token, attaching and switching adapters.
    Load(generate::Options),
    /// Greedy decoding, with an adapter in place and without.
    Generate(generate::Options),
    /// One cell, in this process: what the others start.
    #[command(hide = true)]
    Cell {
        /// A JSON object: `kind`, and its settings.
        request: String,
    },
}

/// What every benchmark may be told.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Smaller defaults: a minute or two, to see that it runs.
    #[arg(long)]
    pub quick: bool,
    /// Run PyTorch with PEFT in the same run, in turns with ours: every configuration, or some (`--peer=f32-eager,bf16-compiled`).
    #[arg(long, num_args = 0.., require_equals = true, value_delimiter = ',', default_missing_value = "all")]
    pub peer: Vec<String>,
    /// How often everything runs [default: 2, quick: 1].
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Write a folder under docs/record, with a word at the end of its name if there are several of a day (`--record=families`).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = plain_word)]
    pub record: Option<String>,
    /// Threads that compute; may repeat [default: every core].
    #[arg(long)]
    pub threads: Vec<usize>,
}

/// A word that may end the name of a folder.
fn plain_word(word: &str) -> Result<String, String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if word.chars().all(plain) {
        Ok(word.to_owned())
    } else {
        Err("expected letters, digits and dashes".to_owned())
    }
}

impl Common {
    /// Numbers of threads.
    fn thread_counts(&self) -> Vec<usize> {
        match self.threads.as_slice() {
            [] => vec![Machine::here().cores],
            threads => threads.to_vec(),
        }
    }

    fn rounds(&self) -> usize {
        let default = if self.quick { 1 } else { 2 };
        self.rounds.unwrap_or(default).max(1)
    }

    /// Runs the requests of both sides in turns.
    fn measure(&self, root: &Path, ours: Vec<Request>, theirs: Vec<Request>) -> Result<Vec<Cell>> {
        if !theirs.is_empty() {
            crate::peer::ready(root)?;
        }
        Ok(cell::run_all(
            root,
            &cell::alternating(ours, theirs),
            self.rounds(),
        ))
    }
}

/// Runs a benchmark. Without optimisations it builds itself with them first and hands over.
///
/// # Errors
/// If the model or the peer's environment is missing, a record cannot be written, or a cell could not be measured.
pub fn run(root: &Path, arguments: Arguments) -> Result<()> {
    if cfg!(debug_assertions) {
        return in_release(root);
    }
    match arguments.what {
        Some(What::Cell { request }) => print_cell(root, &request),
        Some(What::Step(options)) => step::run(root, &options),
        Some(What::Ops(options)) => ops::run(root, &options),
        Some(What::Load(options)) => generate::run_load(root, &options),
        Some(What::Generate(options)) => generate::run_generate(root, &options),
        None => {
            let common = || Common {
                quick: true,
                ..Common::default()
            };
            step::run(
                root,
                &step::Options {
                    common: common(),
                    ..step::Options::default()
                },
            )?;
            ops::run(
                root,
                &ops::Options {
                    common: common(),
                    ..ops::Options::default()
                },
            )?;
            let options = generate::Options {
                common: common(),
                ..generate::Options::default()
            };
            generate::run_load(root, &options)?;
            generate::run_generate(root, &options)
        }
    }
}

/// The same command, optimised.
fn in_release(root: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
        .args(std::env::args_os().skip(1))
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    if status.success() {
        return Ok(());
    }
    bail!("the benchmark ended with {status}: see its message above")
}

/// Measures what a request says, in this process, and prints it.
#[expect(clippy::print_stdout, reason = "the starting process reads it")]
fn print_cell(root: &Path, request: &str) -> Result<()> {
    let request: Map<String, Value> =
        serde_json::from_str(request).with_context(|| format!("not a request: {request}"))?;
    for line in measure_here(root, &request)? {
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}

/// Measures what a request says, in this process.
fn measure_here(root: &Path, request: &Map<String, Value>) -> Result<Vec<Line>> {
    match word(request, "kind")? {
        "step" => Ok(vec![training::measure(root, request)?]),
        "rate" => rate::measure(request),
        "ops" => operations::measure(root, request),
        "load" => Ok(vec![decode::load(root, request)?]),
        "generate" => Ok(vec![decode::generate(root, request)?]),
        kind => bail!("unknown kind of cell `{kind}`"),
    }
}

/// A report of cells on this machine, now.
fn report(root: &Path, benchmark: &'static str, mut cells: Vec<Cell>) -> Report {
    let mut versions = machine::versions(root);
    for line in cells.iter_mut().flat_map(|cell| &mut cell.rounds) {
        if let Some(Value::Object(theirs)) = line.facts.remove("versions") {
            versions.extend(theirs);
        }
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    Report {
        benchmark,
        date: machine::today(),
        machine: Machine::here(),
        versions,
        commit: machine::commit(root),
        command: format!("cargo xtask {}", arguments.join(" ")),
        cells,
        ratios: Vec::new(),
        notes: Vec::new(),
        fits: Vec::new(),
    }
}

/// The model that is measured unless another is named: SmolLM2 if it is there.
fn default_model(root: &Path) -> String {
    let smollm2 = "models/SmolLM2-135M-Instruct";
    if root.join(smollm2).is_dir() {
        return smollm2.to_owned();
    }
    eprintln!(
        "{smollm2} is not there (`cargo xtask fetch --only smollm2` makes it): measuring `tiny`"
    );
    "tiny".to_owned()
}

fn word<'a>(request: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    let value = request.get(key).and_then(Value::as_str);
    value.with_context(|| format!("the request has no `{key}`"))
}

fn count(request: &Map<String, Value>, key: &str) -> Result<usize> {
    let value = request.get(key).and_then(Value::as_u64);
    let value = value.with_context(|| format!("the request has no `{key}`"))?;
    Ok(usize::try_from(value)?)
}

/// Normal numbers, the same every time.
fn random(dims: &[usize]) -> Result<Tensor> {
    let mut stream = Key::new(0, Purpose::Test).stream();
    let count = dims.iter().product();
    let numbers: Vec<f32> = (0..count).map(|_| stream.normal() as f32).collect();
    Ok(Tensor::from_vec(numbers, dims, &Device::Cpu)?)
}

/// An object of these fields.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
