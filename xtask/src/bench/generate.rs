//! `bench load` and `bench generate`: opening, the first token, attaching, switching; greedy decoding.

use crate::bench::cell::Request;
use crate::bench::record::{Shown, publish};
use crate::bench::report::{Cell, FOREIGN, Ratio, Report, Side};
use crate::bench::step::random_tokens;
use crate::bench::table::{number, percent, table};
use crate::bench::{Common, default_model, object, report, shapes};
use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;

/// Of which models.
#[derive(Debug, Default, Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// A folder, a GGUF file or `tiny`; may repeat [default: models/SmolLM2-135M-Instruct, in f32 and bf16, and its GGUF file].
    #[arg(long)]
    pub model: Vec<String>,
    /// How the weights are held; may repeat [default: as-stored].
    #[arg(long)]
    pub dtype: Vec<String>,
    /// Sequences at once, for `generate`; may repeat [default: 1 and 8].
    #[arg(long)]
    pub batch: Vec<usize>,
    /// New tokens, for `generate` [default: 64, quick: 8].
    #[arg(long)]
    pub tokens: Option<usize>,
}

const PROMPT: usize = 32;

impl Options {
    /// Models and how they are held.
    fn bases(&self, root: &Path) -> Vec<(String, String)> {
        let or = |given: &[String], default: &[&str]| match given {
            [] => default.iter().map(|&word| word.to_owned()).collect(),
            given => given.to_vec(),
        };
        if self.model.is_empty() && self.dtype.is_empty() {
            let folder = default_model(root);
            let gguf = format!("{folder}.gguf");
            let stored = [
                (folder.clone(), "f32".to_owned()),
                (folder, "bf16".to_owned()),
            ];
            let packed = root
                .join(&gguf)
                .exists()
                .then(|| (gguf, "as-stored".to_owned()));
            return stored.into_iter().chain(packed).collect();
        }
        let default = default_model(root);
        let dtypes = or(&self.dtype, &["as-stored"]);
        let models = or(&self.model, &[&default]);
        let of = |model: &String| {
            dtypes
                .iter()
                .map(|dtype| (model.clone(), dtype.clone()))
                .collect::<Vec<_>>()
        };
        models.iter().flat_map(of).collect()
    }
}

fn base_name((model, dtype): &(String, String)) -> String {
    let file = Path::new(model)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    format!("{file} {dtype}")
}

/// Opening, the first token, attaching and switching.
///
/// # Errors
/// If a cell failed.
pub fn run_load(root: &Path, options: &Options) -> Result<()> {
    ensure!(
        options.common.peer.is_empty(),
        "`load` has no peer: `step`, `ops` and `generate` have one"
    );
    let mut ours = Vec::new();
    for threads in options.common.thread_counts() {
        for base in options.bases(root) {
            ours.push(Request {
                name: base_name(&base),
                side: Side::Ours,
                axes: object([
                    ("kind", json!("load")),
                    ("model", json!(base.0)),
                    ("dtype", json!(base.1)),
                ]),
                settings: object([("repeats", json!(if options.common.quick { 3 } else { 10 }))]),
                threads,
                once: false,
            });
        }
    }
    let cells = options.common.measure(root, ours, Vec::new())?;
    let report = report(root, "load", cells);
    let head = [
        "base",
        "open s",
        "first token s",
        "attach s",
        "pass ms",
        "switched ms",
        "peak MiB",
    ];
    let rows = report.cells.iter().map(|cell| {
        let milli = |name| number(cell.min(name).map(|seconds| 1e3 * seconds), 2);
        vec![
            cell.name.clone(),
            number(cell.min("open_seconds"), 3),
            number(cell.min("first_token_seconds"), 3),
            number(cell.min("attach_seconds"), 4),
            milli("pass_seconds"),
            milli("switched_seconds"),
            number(cell.max("peak_rss"), 0),
        ]
    });
    let text = table(&head, &rows.collect::<Vec<_>>());
    publish(
        root,
        &report,
        &Shown {
            text,
            plots: Vec::new(),
        },
        options.common.record.as_deref(),
    )
}

/// Tokens a second of greedy decoding, with an adapter in place and without one (as after merging).
///
/// # Errors
/// If a cell failed.
pub fn run_generate(root: &Path, options: &Options) -> Result<()> {
    let new = options
        .tokens
        .unwrap_or(if options.common.quick { 8 } else { 64 });
    let repeats = if options.common.quick { 1 } else { 3 };
    let batches = match options.batch.as_slice() {
        [] => vec![1, 8],
        given => given.to_vec(),
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let settings = |vocabulary: usize, batch: usize| {
        object([
            ("prompt", json!(random_tokens(vocabulary, batch, PROMPT))),
            ("new_tokens", json!(new)),
            ("repeats", json!(repeats)),
            ("rank", json!(8)),
        ])
    };
    for threads in options.common.thread_counts() {
        for &batch in &batches {
            for base in options.bases(root) {
                let vocabulary = shapes::config(root, &base.0)?.vocab_size;
                for adapter in [false, true] {
                    let with = if adapter { ", adapter" } else { "" };
                    ours.push(Request {
                        name: format!("ours {} x{batch}{with}", base_name(&base)),
                        side: Side::Ours,
                        axes: object([
                            ("kind", json!("generate")),
                            ("model", json!(base.0)),
                            ("dtype", json!(base.1)),
                            ("batch", json!(batch)),
                            ("adapter", json!(adapter)),
                        ]),
                        settings: settings(vocabulary, batch),
                        threads,
                        once: false,
                    });
                }
            }
            if options.common.peer.is_empty() {
                continue;
            }
            let model = options
                .model
                .first()
                .cloned()
                .unwrap_or_else(|| default_model(root));
            ensure!(
                root.join(&model).is_dir(),
                "the peer reads folders in Hugging Face layout, and {model} is none"
            );
            let vocabulary = shapes::config(root, &model)?.vocab_size;
            for (dtype, compile, adapter) in [
                ("float32", false, false),
                ("float32", false, true),
                ("float32", true, false),
                ("bfloat16", false, false),
                ("bfloat16", false, true),
                ("bfloat16", true, false),
            ] {
                let how = if compile { "static, compiled" } else { "eager" };
                let with = if adapter { ", adapter" } else { "" };
                theirs.push(Request {
                    name: format!("peer {dtype} {how} x{batch}{with}"),
                    side: Side::Peer,
                    axes: object([
                        ("kind", json!("generate")),
                        ("model", json!(model)),
                        ("dtype", json!(dtype)),
                        ("batch", json!(batch)),
                        ("adapter", json!(adapter)),
                        ("compile", json!(compile)),
                        ("family", json!("lora")),
                    ]),
                    settings: settings(vocabulary, batch),
                    threads,
                    once: false,
                });
            }
        }
    }
    let cells = options.common.measure(root, ours, theirs)?;
    let mut report = report(root, "generate", cells);
    compare(&mut report);
    let head = [
        "cell",
        "tokens/s",
        "best",
        "first token s",
        "peak MiB",
        "foreign",
    ];
    let rows = report.cells.iter().map(|cell| {
        vec![
            cell.name.clone(),
            number(cell.median("tokens_per_second"), 1),
            number(cell.max("tokens_per_second"), 1),
            number(cell.min("first_token_seconds"), 4),
            number(cell.max("peak_rss"), 0),
            percent(cell.max(FOREIGN)),
        ]
    });
    let text = table(&head, &rows.collect::<Vec<_>>());
    publish(
        root,
        &report,
        &Shown {
            text,
            plots: Vec::new(),
        },
        options.common.record.as_deref(),
    )
}

/// Ours over the fastest peer with the same batch: in f32 for an f32 base, and of any precision. Also how many greedy tokens
/// of the first sequence agree, which says that both did the same work.
fn compare(report: &mut Report) {
    let (mut ratios, mut notes) = (Vec::new(), Vec::new());
    let side = |side: Side| report.cells.iter().filter(move |cell| cell.side == side);
    for ours in side(Side::Ours) {
        let same = |peer: &&Cell| {
            ["batch", "adapter", "threads"]
                .iter()
                .all(|axis| peer.axes.get(*axis) == ours.axes.get(*axis))
        };
        for (which, dtypes) in [
            ("f32", &["float32"][..]),
            ("of any precision", &["float32", "bfloat16"]),
        ] {
            if which == "f32" && ours.axis("dtype") != "f32" {
                continue;
            }
            let peers = side(Side::Peer)
                .filter(same)
                .filter(|peer| dtypes.contains(&peer.axis("dtype")));
            let peers: Vec<&Cell> = peers.collect();
            // The best may be one that was held up.
            let disturbed = ours.disturbed() || peers.iter().any(|peer| peer.disturbed());
            let speed = |cell: &Cell| cell.median("tokens_per_second").unwrap_or(0.0);
            let Some(peer) = peers
                .into_iter()
                .max_by(|one, other| speed(one).total_cmp(&speed(other)))
            else {
                continue;
            };
            let best = |cell: &Cell| cell.max("tokens_per_second").unwrap_or(f64::NAN);
            ratios.push(Ratio {
                what: format!("tokens/s over the fastest peer {which}"),
                cells: (ours.name.clone(), peer.name.clone()),
                by_median: speed(ours) / speed(peer),
                by_min: best(ours) / best(peer),
                disturbed,
            });
            if which == "f32" {
                let (one, other) = (written(ours), written(peer));
                let agree = one
                    .iter()
                    .zip(&other)
                    .take_while(|(one, other)| one == other)
                    .count();
                notes.push(format!(
                    "{}: the first {agree} of {} greedy tokens are those of {}",
                    ours.name,
                    one.len(),
                    peer.name
                ));
            }
        }
    }
    report.ratios.extend(ratios);
    report.notes.extend(notes);
}

fn written(cell: &Cell) -> Vec<Value> {
    let ids = cell
        .rounds
        .first()
        .and_then(|line| line.facts.get("ids")?.as_array());
    ids.cloned().unwrap_or_default()
}
