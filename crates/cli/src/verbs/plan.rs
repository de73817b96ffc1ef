//! `lowrank plan`.

use crate::arguments::PlanArguments;
use crate::output::print;
use crate::verbs::run_file;
use anyhow::Result;
use lowrank::{MemoryEstimate, PlannedFile, PlannedSite, Rendered, RunPlan};
use std::fmt::Write as _;
use std::process::ExitCode;

/// Says what a run would do.
pub fn run(arguments: &PlanArguments) -> Result<ExitCode> {
    let run = run_file(&arguments.run, &arguments.sets)?;
    let plan = lowrank::plan(&run, &arguments.run)?;
    print(&plan, arguments.json, &details(&plan)?)?;
    Ok(ExitCode::SUCCESS)
}

/// What does not fit on a line of its own.
fn details(plan: &RunPlan) -> Result<String> {
    let mut text = String::from("memory in MiB\n");
    let MemoryEstimate {
        weights,
        adapter,
        optimizer,
        activations,
        logits,
        overhead,
        total,
    } = plan.memory_mb;
    for (part, megabytes) in [
        ("weights", weights),
        ("adapter", adapter),
        ("optimizer", optimizer),
        ("activations", activations),
        ("logits", logits),
        ("overhead", overhead),
        ("total", total),
    ] {
        writeln!(text, "  {part:11}  {megabytes:10.1}")?;
    }
    writeln!(text, "rows")?;
    for file in &plan.files {
        let PlannedFile {
            path,
            kind,
            rows,
            per_epoch,
        } = file;
        let often = match per_epoch == rows {
            true => String::new(),
            false => format!(", {per_epoch} an epoch"),
        };
        writeln!(text, "  {}  {rows} of {kind}{often}", path.display())?;
    }
    if plan.cached {
        writeln!(text, "  kept tokenised, and read one at a time")?;
    }
    writeln!(text, "sites")?;
    let alike = alike(&plan.sites);
    let width = alike.iter().map(|(path, ..)| path.len()).max().unwrap_or(0);
    for (path, site, count) in alike {
        let rank = site.rank.map_or("-".into(), |rank| rank.to_string());
        writeln!(
            text,
            "  {count:>4} x {path:width$}  rank {rank:>3}  {} parameters each",
            site.parameters
        )?;
    }
    writeln!(
        text,
        "first row, what is supervised in [[ ]]\n{}",
        marked(&plan.example)
    )?;
    Ok(text)
}

/// Sites that differ in the number of their layer alone, with `*` in its place, and how many they are.
fn alike(sites: &[PlannedSite]) -> Vec<(String, &PlannedSite, usize)> {
    let mut groups: Vec<(String, &PlannedSite, usize)> = Vec::new();
    for site in sites {
        let parts = site.site.split('.');
        let parts: Vec<&str> = parts
            .map(|part| {
                if part.parse::<usize>().is_ok() {
                    "*"
                } else {
                    part
                }
            })
            .collect();
        let path = parts.join(".");
        let same = groups.iter_mut().find(|(known, first, _)| {
            *known == path && (first.rank, first.parameters) == (site.rank, site.parameters)
        });
        match same {
            Some((.., count)) => *count += 1,
            None => groups.push((path, site, 1)),
        }
    }
    groups
}

/// The text with supervised stretches in double brackets and white space that can be seen.
fn marked(example: &Rendered) -> String {
    let mut text = String::new();
    let mut before = false;
    let tokens = example.tokens.iter().zip(&example.supervised);
    for (place, (token, &supervised)) in tokens.enumerate() {
        if before && !supervised {
            text.push_str("]]");
        }
        // Numbers of tokens do not join to a text.
        if place > 0 && !example.is_text {
            text.push(' ');
        }
        if supervised && !before {
            text.push_str("[[");
        }
        before = supervised;
        token.chars().for_each(|c| show(c, &mut text));
    }
    if before {
        text.push_str("]]");
    }
    text
}

fn show(c: char, text: &mut String) {
    match c {
        ' ' => text.push('\u{b7}'),
        '\n' => text.push('\u{21b5}'),
        c if c.is_control() || c.is_whitespace() => text.extend(c.escape_default()),
        c => text.push(c),
    }
}
