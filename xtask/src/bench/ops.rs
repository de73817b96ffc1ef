//! `bench ops`: every operation of a block, forward and backward, beside its composed twin and PyTorch's.

use crate::bench::cell::Request;
use crate::bench::record::{Shown, publish};
use crate::bench::report::{Cell, Ratio, Report, Side};
use crate::bench::shapes;
use crate::bench::table::{number, percent, table};
use crate::bench::{Common, default_model, object, rate, report};
use anyhow::Result;
use clap::Args;
use lowrank::models::LlamaConfig;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rank of low-rank updates.
pub const RANK: usize = 8;
pub const GFLOP: &str = "GFLOP/s";

/// On which shapes.
#[derive(Debug, Default, Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// The model whose shapes are used [default: models/SmolLM2-135M-Instruct].
    #[arg(long)]
    pub model: Option<String>,
    /// Sequences [default: 4, quick: 1].
    #[arg(long)]
    pub batch: Option<usize>,
    /// Tokens of each [default: 256, quick: 64].
    #[arg(long)]
    pub length: Option<usize>,
}

/// Measures, prints, records.
///
/// # Errors
/// If the model is missing or a cell failed.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let model = options.model.clone().unwrap_or_else(|| default_model(root));
    let config = shapes::config(root, &model)?;
    let quick = options.common.quick;
    let batch = options.batch.unwrap_or(if quick { 1 } else { 4 });
    let length = options.length.unwrap_or(if quick { 64 } else { 256 });
    let repeats = if quick { 3 } else { 20 };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for threads in options.common.thread_counts() {
        for side in [Side::Ours, Side::Peer] {
            let to = if side == Side::Ours {
                &mut ours
            } else {
                &mut theirs
            };
            for precision in ["f32", "bf16"] {
                to.push(rate::request(precision, threads, side, repeats));
            }
            to.push(Request {
                name: if side == Side::Ours { "ours" } else { "peer" }.to_owned(),
                side,
                axes: object([
                    ("kind", json!("ops")),
                    ("model", json!(model)),
                    ("batch", json!(batch)),
                    ("length", json!(length)),
                ]),
                settings: object([
                    ("repeats", json!(repeats)),
                    ("rank", json!(RANK)),
                    ("linears", json!(distinct(&config))),
                    (
                        "heads",
                        json!([
                            config.num_attention_heads,
                            config.num_key_value_heads,
                            config.head_dim
                        ]),
                    ),
                ]),
                threads,
                once: false,
            });
        }
    }
    if options.common.peer.is_empty() {
        theirs.clear();
    }
    let cells = options.common.measure(root, ours, theirs)?;
    let mut report = report(root, "ops", cells);
    compare(&mut report);
    compare_products(&mut report, &config);
    let shown = shown(&report);
    publish(root, &report, &shown, options.common.record.as_deref())
}

/// The shapes of linear layers, each once, the head among them.
pub fn distinct(config: &LlamaConfig) -> Vec<(usize, usize)> {
    let head = (config.vocab_size, config.hidden_size);
    let all: BTreeSet<_> = shapes::linears(config).into_iter().chain([head]).collect();
    all.into_iter().collect()
}

const DIRECTIONS: [(&str, &str, &str); 2] = [
    ("forward", "forward_seconds", "forward_work"),
    ("backward", "backward_seconds", "backward_work"),
];

fn of<'a>(report: &'a Report, by: &'a str) -> impl Iterator<Item = &'a Cell> {
    report
        .cells
        .iter()
        .filter(move |cell| cell.axis("kind") == "ops" && cell.axis("by") == by)
}

/// The cell of the same operation by someone else.
fn other<'a>(report: &'a Report, cell: &Cell, by: &'a str) -> Option<&'a Cell> {
    let same = |other: &&Cell| {
        ["op", "shape", "precision", "threads"]
            .iter()
            .all(|axis| other.axes.get(*axis) == cell.axes.get(*axis))
    };
    of(report, by).find(same)
}

/// Adds the time of PyTorch and of the twins over ours.
fn compare(report: &mut Report) {
    let mut ratios = Vec::new();
    for (by, cell) in ["peer", "composed"]
        .into_iter()
        .flat_map(|by| of(report, "ours").map(move |cell| (by, cell)))
    {
        let Some(theirs) = other(report, cell, by) else {
            continue;
        };
        for (direction, measure, _) in DIRECTIONS {
            let quotient = |of: fn(&Cell, &str) -> Option<f64>| {
                Some(of(theirs, measure)? / of(cell, measure)?)
            };
            let (Some(by_median), Some(by_min)) = (quotient(Cell::median), quotient(Cell::min))
            else {
                continue;
            };
            ratios.push(Ratio {
                what: format!("speed, {direction}"),
                cells: (described(cell), format!("{by} {}", described(theirs))),
                by_median,
                by_min,
                disturbed: cell.disturbed() || theirs.disturbed(),
            });
        }
    }
    report.ratios.extend(ratios);
}

/// Adds the time of all of PyTorch's products of a step over that of ours, each as often as a step has it.
fn compare_products(report: &mut Report, config: &LlamaConfig) {
    let layers = (0..config.num_hidden_layers).flat_map(|_| shapes::linears(config));
    let mut counts = BTreeMap::new();
    for (n_out, n_in) in layers.chain([(config.vocab_size, config.hidden_size)]) {
        *counts.entry(format!("{n_out}x{n_in}")).or_insert(0.0) += 1.0;
    }
    let groups: BTreeSet<_> = of(report, "ours")
        .filter(|cell| cell.axis("op") == "product")
        .map(|cell| (cell.axis("precision"), cell.axes.get("threads").cloned()))
        .map(|(precision, threads)| {
            (
                precision.to_owned(),
                threads.and_then(|count| count.as_u64()),
            )
        })
        .collect();
    let mut ratios = Vec::new();
    for (precision, threads) in groups {
        let cells = |by| {
            of(report, by).filter(|cell| {
                cell.axis("op") == "product"
                    && cell.axis("precision") == precision
                    && cell.axes.get("threads").and_then(Value::as_u64) == threads
            })
        };
        let sum = |by, best: fn(&Cell, &str) -> Option<f64>| -> Option<f64> {
            let of_cell = |cell: &Cell| {
                let count = counts.get(cell.axis("shape"))?;
                Some(count * (best(cell, "forward_seconds")? + best(cell, "backward_seconds")?))
            };
            let all: Option<Vec<f64>> = cells(by).map(of_cell).collect();
            all.filter(|all| all.len() == counts.len())
                .map(|all| all.iter().sum())
        };
        let quotient = |best| Some(sum("peer", best)? / sum("ours", best)?);
        if let (Some(by_median), Some(by_min)) = (quotient(Cell::median), quotient(Cell::min)) {
            ratios.push(Ratio {
                what: "speed, all products of a step".to_owned(),
                cells: (format!("ours {precision}"), format!("peer {precision}")),
                by_median,
                by_min,
                disturbed: cells("ours").chain(cells("peer")).any(Cell::disturbed),
            });
        }
    }
    report.ratios.extend(ratios);
}

fn described(cell: &Cell) -> String {
    format!(
        "{} {} {}",
        cell.axis("op"),
        cell.axis("shape"),
        cell.axis("precision")
    )
}

/// Best times in milliseconds, rates, and shares of the machine's best product rate.
fn shown(report: &Report) -> Shown {
    let mut rows = Vec::new();
    for cell in ["ours", "composed", "peer"]
        .into_iter()
        .flat_map(|by| of(report, by))
    {
        for (direction, measure, work) in DIRECTIONS {
            let Some(seconds) = cell.min(measure) else {
                continue;
            };
            let unit = cell
                .rounds
                .first()
                .and_then(|line| line.facts.get("rate_unit"))
                .and_then(Value::as_str);
            let done = cell.fact(work).map(|work| work / seconds);
            let threads = cell
                .axes
                .get("threads")
                .and_then(Value::as_u64)
                .unwrap_or(0) as usize;
            let best = rate::best(&report.cells, cell.axis("precision"), threads);
            let share = done
                .zip(best)
                .filter(|_| unit == Some(GFLOP))
                .map(|(done, best)| done * 1e9 / best);
            rows.push(vec![
                format!("{} {direction}", described(cell)),
                cell.axis("by").to_owned(),
                number(Some(1e3 * seconds), 3),
                number(done, 1),
                unit.unwrap_or("-").to_owned(),
                percent(share),
            ]);
        }
    }
    rows.sort_by(|one, other| one[0].cmp(&other[0]));
    let text = table(
        &["operation", "by", "best ms", "rate", "unit", "of rate"],
        &rows,
    );
    Shown {
        text,
        plots: Vec::new(),
    }
}
