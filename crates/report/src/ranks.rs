//! Ranks that were allocated, over steps.

use crate::chart::{COLOURS, Chart, Drawn, Floor, Series};
use crate::escape::escaped;
use crate::lines::Lines;
use crate::numbers::grouped;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// As many allocations have a column of the table; of more, some between the first and the last are left out.
const COLUMNS: usize = 16;

/// How many ranks there are in all, and how many a module of each kind has; nothing if none were allocated.
pub(crate) fn figures(lines: &Lines) -> String {
    let allocations = lines.allocations.all();
    let sum = |ranks: &[(u32, u32)]| ranks.iter().map(|(_, rank)| f64::from(*rank)).sum::<f64>();
    let whole = Chart {
        title: "Ranks of all modules".to_owned(),
        floor: Floor::Zero,
        series: vec![Series {
            name: "ranks".to_owned(),
            points: allocations
                .iter()
                .map(|(step, ranks)| (*step, Some(sum(ranks))))
                .collect(),
            drawn: Drawn::Dots,
            colour: 3,
        }],
    };
    let mut kinds: BTreeMap<&str, Vec<(u64, Option<f64>)>> = BTreeMap::new();
    for (step, ranks) in allocations {
        let mut means: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (site, rank) in ranks {
            let kind = kind(lines.allocations.module(*site));
            let (sum, count) = means.entry(kind).or_default();
            *sum += u64::from(*rank);
            *count += 1;
        }
        for (kind, (sum, count)) in means {
            let mean = sum as f64 / count as f64;
            kinds.entry(kind).or_default().push((*step, Some(mean)));
        }
    }
    let series = kinds.into_iter().enumerate();
    let by_kind = Chart {
        title: "Mean rank by kind of module".to_owned(),
        floor: Floor::Zero,
        // The table has those for which there are no colours.
        series: series
            .take(COLOURS)
            .map(|(colour, (kind, points))| Series {
                name: kind.to_owned(),
                points,
                drawn: Drawn::Dots,
                colour,
            })
            .collect(),
    };
    [whole, by_kind]
        .iter()
        .filter_map(|chart| chart.figure(lines.last_step()))
        .collect::<String>()
}

/// A module's name in its layer.
fn kind(site: &str) -> &str {
    site.rsplit_once('.').map_or(site, |(_, kind)| kind)
}

/// The ranks of every module after each allocation; nothing if none were allocated.
pub(crate) fn table(lines: &Lines) -> String {
    let all = lines.allocations.all();
    let Some((_, last)) = all.last() else {
        return String::new();
    };
    let shown: Vec<&(u64, Vec<(u32, u32)>)> = match all.len() {
        count if count <= COLUMNS => all.iter().collect(),
        count => (0..COLUMNS)
            .map(|at| &all[at * (count - 1) / (COLUMNS - 1)])
            .collect(),
    };
    let most = shown.iter().flat_map(|(_, ranks)| ranks);
    let most = most.map(|(_, rank)| *rank).max().unwrap_or(0).max(1);
    let mut out = String::from("<h2>Ranks of modules after each allocation</h2>\n");
    if shown.len() < all.len() {
        let _ = writeln!(
            out,
            "<p class=\"quiet\">{} of {} allocations.</p>",
            shown.len(),
            all.len()
        );
    }
    out += "<div class=\"wide\"><table class=\"ranks\">\n<thead><tr><th>module, after step</th>";
    for (step, _) in &shown {
        let _ = write!(out, "<th>{}</th>", grouped(*step));
    }
    out += "</tr></thead>\n<tbody>\n";
    let columns: Vec<BTreeMap<u32, u32>> = shown
        .iter()
        .map(|(_, ranks)| ranks.iter().copied().collect())
        .collect();
    for (site, _) in last {
        let name = escaped(lines.allocations.module(*site));
        let _ = write!(out, "<tr><th>{name}</th>");
        for ranks in &columns {
            let _ = match ranks.get(site) {
                Some(rank) => {
                    let share = f64::from(*rank) / f64::from(most);
                    write!(out, "<td style=\"--s:{share:.2}\">{rank}</td>")
                }
                None => write!(out, "<td></td>"),
            };
        }
        out += "</tr>\n";
    }
    out += "</tbody></table></div>\n";
    out
}
