//! What the cells of `bench step` say: the table, the ratios, and whether both sides did the same work.

use crate::bench::record::Shown;
use crate::bench::report::{Cell, FOREIGN, Ratio, Report, Side};
use crate::bench::table::{number, percent, table};

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

/// The cells of training steps.
pub fn steps(report: &Report) -> impl Iterator<Item = &Cell> {
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
            // The best may be one that was held up.
            let held_up = peers.iter().any(|peer| peer.disturbed());
            let mark = |ratio: Ratio| Ratio {
                disturbed: ratio.disturbed || held_up,
                ..ratio
            };
            ratios.extend(
                fastest(peers)
                    .and_then(|peer| {
                        ratio(
                            peer,
                            ours,
                            "step_seconds",
                            &format!("tokens/s over the fastest peer {which}"),
                            (ours, peer),
                        )
                    })
                    .map(mark),
            );
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

/// Whether two cells agree in these axes.
pub fn same(one: &Cell, other: &Cell, axes: &[&str]) -> bool {
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

#[cfg(test)]
mod tests;
