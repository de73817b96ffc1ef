//! `bench step`: training steps on random tokens, run as `lowrank train` runs them.

use crate::bench::cell::Request;
use crate::bench::record::publish;
use crate::bench::report::{Report, Side};
use crate::bench::shapes::{self, Work};
use crate::bench::{Common, count, default_model, losses, object, peers, rate, report, summary};
use anyhow::Result;
use clap::Args;
use lowrank::models::LlamaConfig;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// The rank of the adapters.
const RANK: usize = 8;

/// Which steps are measured: every combination of the axes.
#[derive(Debug, Default, Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// A folder, a GGUF file or `tiny`; may repeat [default: models/SmolLM2-135M-Instruct].
    #[arg(long, visible_alias = "base")]
    pub model: Vec<String>,
    /// The run file's `model.dtype`; may repeat [default: as-stored].
    #[arg(long)]
    pub dtype: Vec<String>,
    /// The run file's `train.compute`, f32 or bf16; may repeat [default: f32].
    #[arg(long)]
    pub precision: Vec<String>,
    /// A family, or rslora or dora; may repeat [default: lora].
    #[arg(long)]
    pub family: Vec<String>,
    /// Sequences a step; may repeat [default: 4].
    #[arg(long)]
    pub batch: Vec<usize>,
    /// Tokens a sequence; may repeat [default: 256].
    #[arg(long)]
    pub length: Vec<usize>,
    /// The run file's `train.recompute`, true or false; may repeat [default: false].
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub recompute: Vec<bool>,
    /// The run file's `model.device`, cpu or cuda: of our steps only [default: cpu].
    #[arg(long)]
    pub device: Option<String>,
    /// Steps that count [default: 5, quick: 2].
    #[arg(long)]
    pub steps: Option<usize>,
    /// Instead of --batch and --length: batches of 1 to 16 at one length, and lengths of 128 to 2048 at batch 1, with a fit
    /// and plots.
    #[arg(long)]
    pub grid: Option<Grid>,
}

/// A set of batches and lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Grid {
    /// How time and memory grow.
    Growth,
}

impl Options {
    /// (batch, length) of every cell.
    fn sizes(&self) -> Vec<(usize, usize)> {
        let or = |given: &[usize], quick: usize, full: usize| match given {
            [] if self.common.quick => vec![quick],
            [] => vec![full],
            given => given.to_vec(),
        };
        let (batches, lengths) = (or(&self.batch, 2, 4), or(&self.length, 64, 256));
        if self.grid == Some(Grid::Growth) {
            return super::growth::sizes(self.common.quick);
        }
        let of = |&batch: &usize| lengths.iter().map(move |&length| (batch, length));
        batches.iter().flat_map(of).collect()
    }

    fn steps(&self) -> usize {
        self.steps
            .unwrap_or(if self.common.quick { 2 } else { 5 })
            .max(1)
    }
}

/// Measures, prints, records.
///
/// # Errors
/// If the model is missing, a cell failed, or both sides do not compute the same loss.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let models = match options.model.as_slice() {
        [] => vec![default_model(root)],
        models => models.to_vec(),
    };
    let (ours, theirs) = requests(root, options, &models, folder.path())?;
    let cells = options.common.measure(root, ours, theirs)?;
    let mut report = report(root, "step", cells);
    let config = |model: &str| shapes::config(root, model);
    add_shares(&mut report, &config)?;
    summary::compare(&mut report);
    let mut shown = summary::shown(&report);
    if options.grid == Some(Grid::Growth) {
        super::growth::add(&mut report, &mut shown);
    }
    publish(root, &report, &shown, options.common.record.as_deref())?;
    losses::same_work(&report)
}

/// Every cell, with the tokens that it trains on.
fn requests(
    root: &Path,
    options: &Options,
    models: &[String],
    folder: &Path,
) -> Result<(Vec<Request>, Vec<Request>)> {
    let or = |given: &[String], default: &str| match given {
        [] => vec![default.to_owned()],
        given => given.to_vec(),
    };
    let dtypes = or(&options.dtype, "as-stored");
    let precisions = or(&options.precision, "f32");
    let families = or(&options.family, "lora");
    let recomputes = match options.recompute.as_slice() {
        [] => vec![false],
        given => given.to_vec(),
    };
    let sizes = options.sizes();
    let configurations = peers::named(&options.common.peer)?;
    let steps = options.steps();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for threads in options.common.thread_counts() {
        for precision in &precisions {
            let repeats = if options.common.quick { 10 } else { 30 };
            ours.push(rate::request(precision, threads, Side::Ours, repeats));
            if !configurations.is_empty() {
                theirs.push(rate::request(precision, threads, Side::Peer, repeats));
            }
        }
        for model in models {
            let vocabulary = shapes::config(root, model)?.vocab_size;
            for &(batch, length) in &sizes {
                let path = folder.join(format!("{vocabulary}-{batch}-{length}.json"));
                let tokens = json!(random_tokens(vocabulary, batch, length));
                fs::write(&path, tokens.to_string())?;
                let sized = [("batch", json!(batch)), ("length", json!(length))];
                let settings = |warm: usize| {
                    object([
                        ("tokens", json!(path)),
                        ("steps", json!(steps)),
                        ("warm_steps", json!(warm)),
                        ("rank", json!(RANK)),
                    ])
                };
                for dtype in &dtypes {
                    for precision in &precisions {
                        for family in &families {
                            for &recompute in &recomputes {
                                let mut axes = object([
                                    ("kind", json!("step")),
                                    ("model", json!(model)),
                                    ("dtype", json!(dtype)),
                                    ("precision", json!(precision)),
                                    ("family", json!(family)),
                                    ("recompute", json!(recompute)),
                                ]);
                                axes.extend(object(sized.clone()));
                                if let Some(device) = &options.device {
                                    axes.insert("device".to_owned(), json!(device));
                                }
                                ours.push(Request {
                                    name: name(&axes, models.len(), sizes.len(), threads, options),
                                    side: Side::Ours,
                                    axes,
                                    settings: settings(1),
                                    threads,
                                    once: false,
                                });
                            }
                        }
                    }
                }
                // The script reads folders of Hugging Face alone.
                if !root.join(model).is_dir() {
                    continue;
                }
                for peer in &configurations {
                    let mut axes = object([
                        ("kind", json!("step")),
                        ("model", json!(model)),
                        ("dtype", json!(peer.dtype)),
                        ("precision", json!(peer.precision())),
                        ("family", json!(peer.family)),
                        ("recompute", json!(peer.checkpoint)),
                        ("autocast", json!(peer.autocast)),
                        ("compile", json!(peer.compile)),
                    ]);
                    axes.extend(object(sized.clone()));
                    let size = size_suffix(&axes, sizes.len());
                    theirs.push(Request {
                        name: format!("peer {}{size}", peer.name),
                        side: Side::Peer,
                        axes,
                        settings: settings(peer.warm_steps()),
                        threads,
                        once: peer.checkpoint,
                    });
                }
            }
        }
    }
    Ok((ours, theirs))
}

/// What tells a cell from the others, beside its precision.
fn name(
    axes: &Map<String, Value>,
    models: usize,
    sizes: usize,
    threads: usize,
    options: &Options,
) -> String {
    let of = |key: &str| axes.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut name = format!("ours {}", of("precision"));
    for (key, plain) in [("family", "lora"), ("dtype", "as-stored")] {
        if of(key) != plain {
            name.push_str(&format!(" {}", of(key)));
        }
    }
    if let Some(device) = &options.device {
        name.push_str(&format!(" {device}"));
    }
    if models > 1 {
        let file = Path::new(of("model")).file_name().unwrap_or_default();
        name.push_str(&format!(" {}", file.to_string_lossy()));
    }
    if axes.get("recompute") == Some(&Value::Bool(true)) {
        name.push_str(" recompute");
    }
    if options.common.threads.len() > 1 {
        name.push_str(&format!(" {threads} threads"));
    }
    name + &size_suffix(axes, sizes)
}

fn size_suffix(axes: &Map<String, Value>, sizes: usize) -> String {
    if sizes == 1 {
        return String::new();
    }
    format!(" {}x{}", axes["batch"], axes["length"])
}

/// The same on every machine and in every run.
pub fn random_tokens(vocabulary: usize, batch: usize, length: usize) -> Vec<Vec<u64>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % vocabulary as u64
    };
    (0..batch)
        .map(|_| (0..length).map(|_| draw()).collect())
        .collect()
}

/// Tokens a second, and the share of the best product rate of the same precision.
fn add_shares(report: &mut Report, config: &dyn Fn(&str) -> Result<LlamaConfig>) -> Result<()> {
    let rates = report.cells.clone();
    for cell in report
        .cells
        .iter_mut()
        .filter(|cell| cell.axes["kind"] == "step")
    {
        let work = Work {
            batch: count(&cell.axes, "batch")?,
            length: count(&cell.axes, "length")?,
            rank: (cell.axis("family") != "full").then_some(RANK),
        };
        let flops = shapes::step_flops(&config(cell.axis("model"))?, work);
        let threads = count(&cell.axes, "threads")?;
        cell.axes.insert("gflop".to_owned(), json!(flops / 1e9));
        let tokens = work.tokens() as f64;
        cell.derive("step_seconds", "tokens_per_second", "tokens/s", |s| {
            tokens / s
        });
        if let Some(rate) = rate::best(&rates, cell.axis("precision"), threads) {
            cell.derive("step_seconds", "share_of_rate", "1", |s| flops / s / rate);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::training::measure;
    use anyhow::Context;

    /// Two steps of the embedded model, as a cell's process runs them.
    #[test]
    fn a_step_of_the_embedded_model_is_measured() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let options = Options {
            model: vec!["tiny".to_owned()],
            batch: vec![2],
            length: vec![24],
            family: vec!["lora".to_owned(), "dora".to_owned()],
            steps: Some(2),
            ..Options::default()
        };
        let root = crate::root();
        let (ours, theirs) = requests(&root, &options, &options.model, folder.path())?;
        assert!(theirs.is_empty());
        let names: Vec<&str> = ours.iter().map(|request| request.name.as_str()).collect();
        assert_eq!(
            names,
            ["product rate f32 (ours)", "ours f32", "ours f32 dora"]
        );
        let mut losses = Vec::new();
        for request in &ours[1..] {
            let mut all = request.axes.clone();
            all.extend(request.settings.clone());
            let line = measure(&root, &all)?;
            let seconds = &line.measures[0];
            assert_eq!(
                (seconds.name.as_str(), seconds.values.len()),
                ("step_seconds", 2)
            );
            assert!(seconds.values.iter().all(|&seconds| seconds > 0.0));
            losses.push(line.facts["first_loss"].as_f64());
        }
        // Both begin as the base model, to which random tokens are news: worse than guessing among 1536.
        let (lora, dora) = (losses[0].context("finite")?, losses[1].context("finite")?);
        assert!((lora - dora).abs() < 1e-4 && lora > 7.3, "{lora} {dora}");
        Ok(())
    }

    #[test]
    fn tokens_are_the_same_every_time_and_in_the_vocabulary() {
        let tokens = random_tokens(1536, 3, 40);
        assert_eq!(tokens, random_tokens(1536, 3, 40));
        assert_eq!((tokens.len(), tokens[2].len()), (3, 40));
        assert!(tokens.iter().flatten().all(|&token| token < 1536));
        assert_ne!(tokens[0], tokens[1]);
    }
}
