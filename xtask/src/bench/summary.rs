//! What the cells of `bench step` say: the table, the ratios, and whether both sides did the same work.

use crate::bench::record::Shown;
use crate::bench::report::{Cell, FOREIGN, Ratio, Report, Side};
use crate::bench::table::{number, percent, table};
use anyhow::{Result, bail};
use serde_json::Value;

/// How far apart the losses of the first step may be, relative to the loss.
const SAME_LOSS: f64 = 1e-4;

/// The table.
pub fn shown(report: &Report) -> Shown {
    let head = [
        "cell",
        "s/step",
        "least",
        "spread",
        "CPU s",
        "tokens/s",
        "peak MiB",
        "of rate",
        "foreign",
        "first loss",
    ];
    let row = |cell: &Cell| {
        let spread = crate::bench::report::spread(&cell.values("step_seconds"));
        vec![
            cell.name.clone(),
            number(cell.median("step_seconds"), 3),
            number(cell.min("step_seconds"), 3),
            percent(spread),
            number(cell.median("cpu_seconds"), 2),
            number(cell.median("tokens_per_second"), 0),
            number(cell.max("peak_rss"), 0),
            percent(cell.median("share_of_rate")),
            percent(cell.max(FOREIGN)),
            number(cell.fact("first_loss"), 5),
        ]
    };
    let rows: Vec<Vec<String>> = steps(report).map(row).collect();
    let mut text = table(&head, &rows);
    let rates = report
        .cells
        .iter()
        .filter(|cell| cell.axis("kind") == "rate");
    let rates = rates.map(|cell| {
        let name = format!("{} {}", cell.name, cell.axis("product"));
        vec![
            name,
            number(cell.median("product_rate"), 0),
            number(cell.max("product_rate"), 0),
        ]
    });
    text.push('\n');
    text.push_str(&table(
        &["products", "GFLOP/s", "best"],
        &rates.collect::<Vec<_>>(),
    ));
    Shown {
        text,
        plots: Vec::new(),
    }
}

fn steps(report: &Report) -> impl Iterator<Item = &Cell> {
    report
        .cells
        .iter()
        .filter(|cell| cell.axis("kind") == "step")
}

/// Adds the ratios: ours over the best peer, memory over the leanest, families over LoRA, packed bases over f32.
pub fn compare(report: &mut Report) {
    let mut ratios = Vec::new();
    for ours in steps(report).filter(|cell| cell.side == Side::Ours) {
        let family = match ours.axis("family") {
            "rslora" => "lora",
            other => other,
        };
        let comparable = |peer: &&Cell| {
            peer.side == Side::Peer
                && peer.axis("family") == family
                && same(ours, peer, &["model", "batch", "length", "threads"])
        };
        let peers: Vec<&Cell> = steps(report).filter(comparable).collect();
        let precision = ours.axis("precision");
        let same_precision: Vec<&Cell> = peers
            .iter()
            .copied()
            .filter(|peer| peer.axis("precision") == precision)
            .collect();
        let of_same = format!("in {precision}");
        for (peers, which) in [
            (&same_precision, of_same.as_str()),
            (&peers, "of any precision"),
        ] {
            ratios.extend(fastest(peers).and_then(|peer| {
                speed(
                    ours,
                    peer,
                    &format!("tokens/s over the fastest peer {which}"),
                )
            }));
            ratios.extend(leanest(peers).and_then(|peer| {
                memory(
                    ours,
                    peer,
                    &format!("peak memory over the leanest peer {which} (less is better)"),
                )
            }));
        }
        ratios.extend(over_plain(
            report,
            ours,
            "family",
            &["lora"],
            "step time over LoRA's",
        ));
        let plain = ["as-stored", "f32"];
        ratios.extend(over_plain(
            report,
            ours,
            "dtype",
            &plain,
            "step time over the f32 base's",
        ));
    }
    report.ratios.extend(ratios);
}

fn same(one: &Cell, other: &Cell, axes: &[&str]) -> bool {
    axes.iter()
        .all(|axis| one.axes.get(*axis) == other.axes.get(*axis))
}

fn fastest<'a>(peers: &[&'a Cell]) -> Option<&'a Cell> {
    least(peers, |peer| peer.median("step_seconds"))
}

fn leanest<'a>(peers: &[&'a Cell]) -> Option<&'a Cell> {
    least(peers, |peer| peer.max("peak_rss"))
}

fn least<'a>(cells: &[&'a Cell], of: impl Fn(&Cell) -> Option<f64>) -> Option<&'a Cell> {
    let known = cells.iter().filter_map(|&cell| Some((of(cell)?, cell)));
    known
        .min_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, cell)| cell)
}

fn speed(ours: &Cell, peer: &Cell, what: &str) -> Option<Ratio> {
    ratio(peer, ours, "step_seconds", what, (ours, peer))
}

/// The quotient of a time of two cells.
fn ratio(
    over: &Cell,
    under: &Cell,
    measure: &str,
    what: &str,
    named: (&Cell, &Cell),
) -> Option<Ratio> {
    Some(Ratio {
        what: what.to_owned(),
        cells: (named.0.name.clone(), named.1.name.clone()),
        by_median: over.median(measure)? / under.median(measure)?,
        by_min: over.min(measure)? / under.min(measure)?,
        disturbed: over.disturbed() || under.disturbed(),
    })
}

fn memory(ours: &Cell, peer: &Cell, what: &str) -> Option<Ratio> {
    let ratio = ours.max("peak_rss")? / peer.max("peak_rss")?;
    Some(Ratio {
        what: what.to_owned(),
        cells: (ours.name.clone(), peer.name.clone()),
        by_median: ratio,
        by_min: ratio,
        // A peak does not depend on what else runs.
        disturbed: false,
    })
}

/// The time of a cell over that of the cell that differs in one axis alone and has a plain value there.
fn over_plain(
    report: &Report,
    ours: &Cell,
    axis: &str,
    plain: &[&str],
    what: &str,
) -> Option<Ratio> {
    if plain.contains(&ours.axis(axis)) {
        return None;
    }
    let all = [
        "model",
        "dtype",
        "precision",
        "family",
        "recompute",
        "batch",
        "length",
        "threads",
    ];
    let others: Vec<&str> = all.into_iter().filter(|other| *other != axis).collect();
    let base = steps(report).find(|cell| {
        cell.side == Side::Ours && plain.contains(&cell.axis(axis)) && same(ours, cell, &others)
    })?;
    ratio(
        ours,
        base,
        "step_seconds",
        &format!("{what} (less is better)"),
        (ours, base),
    )
}

/// Holds the first losses of all f32 cells of the same model and tokens together: B is 0, so each is the base model's own.
/// Cells with rounded weights or products are not compared.
///
/// # Errors
/// If two are further apart than rounding explains: then the timings are not of the same work.
pub fn same_work(report: &Report) -> Result<()> {
    let (worst, text) = losses(report);
    eprint!("{text}");
    if worst > SAME_LOSS {
        bail!(
            "the first losses of ours and the peer's are {worst:.1e} apart, at most {SAME_LOSS:.0e} is rounding"
        );
    }
    Ok(())
}

/// The largest relative distance, and a line a pair.
fn losses(report: &Report) -> (f64, String) {
    let exact = |cell: &&Cell| {
        let dtype = matches!(cell.axis("dtype"), "as-stored" | "f32" | "float32");
        cell.axis("precision") == "f32"
            && dtype
            && cell.axes.get("autocast") != Some(&Value::Bool(true))
    };
    let (mut worst, mut text) = (0.0_f64, String::new());
    for ours in steps(report)
        .filter(exact)
        .filter(|cell| cell.side == Side::Ours)
    {
        let peers = steps(report)
            .filter(exact)
            .filter(|cell| cell.side == Side::Peer);
        for peer in peers.filter(|peer| same(ours, peer, &["model", "batch", "length"])) {
            let (Some(one), Some(other)) = (ours.fact("first_loss"), peer.fact("first_loss"))
            else {
                continue;
            };
            let apart = ((one - other) / other).abs();
            // A distance that is no number is the worst.
            worst = if apart.is_nan() {
                f64::INFINITY
            } else {
                worst.max(apart)
            };
            text.push_str(&format!(
                "first loss: {} {one:.6}, {} {other:.6}, {apart:.1e} apart\n",
                ours.name, peer.name
            ));
        }
    }
    (worst, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::object;
    use crate::bench::report::{Line, Measure};
    use serde_json::{Map, json};

    fn cell(
        name: &str,
        side: Side,
        axes: [&str; 3],
        seconds: &[f64],
        peak: f64,
        loss: f64,
    ) -> Cell {
        let [family, dtype, precision] = axes;
        Cell {
            name: name.to_owned(),
            side,
            axes: object([
                ("kind", json!("step")),
                ("family", json!(family)),
                ("dtype", json!(dtype)),
                ("precision", json!(precision)),
                ("batch", json!(4)),
            ]),
            rounds: vec![Line {
                axes: Map::new(),
                measures: vec![
                    Measure::new("step_seconds", "s", seconds.to_vec()),
                    Measure::new("peak_rss", "MiB", vec![peak]),
                ],
                facts: object([("first_loss", json!(loss))]),
            }],
            error: None,
        }
    }

    fn report(cells: Vec<Cell>) -> Report {
        Report {
            benchmark: "step",
            date: String::new(),
            machine: Machine::default(),
            versions: Map::new(),
            commit: String::new(),
            command: String::new(),
            cells,
            ratios: Vec::new(),
            notes: Vec::new(),
            fits: Vec::new(),
        }
    }

    fn ratio_of<'a>(report: &'a Report, what: &str, cell: &str) -> &'a Ratio {
        let found = report
            .ratios
            .iter()
            .find(|ratio| ratio.what.starts_with(what) && ratio.cells.0 == cell);
        found.expect("there is such a ratio")
    }

    #[test]
    fn ours_is_held_against_the_best_peer() {
        let mut report = report(vec![
            cell(
                "ours",
                Side::Ours,
                ["lora", "as-stored", "f32"],
                &[2.0, 2.5, 3.0],
                900.0,
                11.0,
            ),
            cell(
                "ours dora",
                Side::Ours,
                ["dora", "as-stored", "f32"],
                &[3.0],
                1000.0,
                11.0,
            ),
            cell(
                "eager",
                Side::Peer,
                ["lora", "float32", "f32"],
                &[4.0, 5.0],
                5800.0,
                11.0,
            ),
            cell(
                "compiled",
                Side::Peer,
                ["lora", "float32", "f32"],
                &[3.75, 3.0, 4.0],
                3600.0,
                11.0,
            ),
            cell(
                "bf16",
                Side::Peer,
                ["lora", "bfloat16", "bf16"],
                &[1.25],
                1800.0,
                11.2,
            ),
        ]);
        compare(&mut report);
        let speed = ratio_of(&report, "tokens/s over the fastest peer in f32", "ours");
        assert_eq!((speed.by_median, speed.by_min), (1.5, 1.5));
        assert_eq!(speed.cells.1, "compiled");
        assert_eq!(
            ratio_of(&report, "tokens/s over the fastest peer of any", "ours").by_median,
            0.5
        );
        assert_eq!(
            ratio_of(&report, "peak memory over the leanest peer in f32", "ours").by_median,
            0.25
        );
        assert_eq!(
            ratio_of(&report, "peak memory over the leanest peer of any", "ours").by_median,
            0.5
        );
        assert_eq!(
            ratio_of(&report, "step time over LoRA's", "ours dora").by_median,
            1.2
        );
        // No peer of that family ran.
        assert_eq!(
            report
                .ratios
                .iter()
                .filter(|ratio| ratio.cells.0 == "ours dora")
                .count(),
            1
        );
    }

    #[test]
    fn other_work_is_noticed() {
        let of = |loss| {
            report(vec![
                cell(
                    "ours",
                    Side::Ours,
                    ["lora", "as-stored", "f32"],
                    &[2.0],
                    900.0,
                    11.0,
                ),
                cell(
                    "eager",
                    Side::Peer,
                    ["lora", "float32", "f32"],
                    &[4.0],
                    5800.0,
                    loss,
                ),
                cell(
                    "bf16",
                    Side::Peer,
                    ["lora", "bfloat16", "bf16"],
                    &[1.5],
                    1800.0,
                    12.0,
                ),
            ])
        };
        assert!(same_work(&of(11.0005)).is_ok());
        assert!(same_work(&of(11.01)).is_err());
        assert!(same_work(&of(f64::NAN)).is_ok(), "JSON has no such number");
        let text = shown(&of(11.0)).text;
        assert!(
            text.lines()
                .any(|line| line.starts_with("ours") && line.contains("2.000")),
            "{text}"
        );
    }
}
