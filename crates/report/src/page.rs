//! `report.html`: a run on one page that needs nothing else.

use crate::chart::{Chart, Drawn, Floor, Series};
use crate::escape::escaped;
use crate::lines::{Column, EVAL, Lines, Table as Numbers};
use crate::numbers::{duration, grouped, significant};
use crate::ranks;
use crate::style::STYLE;
use std::fmt::Write as _;
use toml::{Table, Value};

/// What the metrics do not say of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// What it is called.
    pub name: String,
    /// The resolved run file.
    pub run_file: String,
    /// Steps in all.
    pub total: u64,
    /// Rows of the training data.
    pub rows: usize,
    /// Rows that are held out.
    pub held_out: usize,
    /// Scalars that are trained.
    pub trainable_parameters: usize,
    /// The program's version.
    pub version: String,
    /// Why it stopped, if it failed.
    pub failure: Option<String>,
    /// Whether it ended before its last step, for lack of better evaluations.
    pub ended_early: bool,
    /// The step that the result is of, once there is one.
    pub result_of: Option<u64>,
}

/// The page. It loads nothing and runs nothing, follows the browser's light or dark colours, and fits a phone.
#[must_use]
pub fn page(run: &Run, lines: &Lines) -> String {
    let settings: Table = run.run_file.parse().unwrap_or_default();
    let name = escaped(&run.name);
    let body = [
        head(run, lines, &settings),
        evaluations(lines),
        plots(lines),
        ranks::table(lines),
        tables(&settings),
    ]
    .concat();
    // The policy forbids the browser to load or run anything, whatever a later version may write here.
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\
         <details><summary>run.toml</summary>\n<pre>{run_file}</pre></details>\n\
         <p class=\"quiet\">lowrank {version}</p>\n</body>\n</html>\n",
        run_file = escaped(&run.run_file),
        version = escaped(&run.version),
    )
}

/// The name, how far it has come, and the facts.
fn head(run: &Run, lines: &Lines, settings: &Table) -> String {
    let setting = |section: &str, key: &str| settings.get(section)?.get(key)?.as_str();
    let done = lines.steps.last_step();
    let result = match run.result_of {
        Some(step) if step != done => {
            format!(" The result is that of step {step}, the best evaluation.")
        }
        _ => String::new(),
    };
    let state = match &run.failure {
        Some(why) => format!(
            "<p class=\"bad\">Stopped after step {done} of {}: {}</p>\n",
            run.total,
            escaped(why)
        ),
        None if run.ended_early => format!(
            "<p>Ended early, after step {done} of {}: evaluations were no longer better.{result}</p>\n",
            run.total
        ),
        None if done < run.total => {
            format!(
                "<p>{done} of {} steps when this was written.</p>\n",
                run.total
            )
        }
        None if !result.is_empty() => format!("<p>{}</p>\n", result.trim_start()),
        None => String::new(),
    };
    let seconds = seconds(&lines.steps);
    let tokens: f64 = finite(lines.steps.column("tokens")).sum();
    let memory = finite(lines.steps.column("peak_rss_mb"));
    let memory = memory.fold(None, |most: Option<f64>, now| {
        Some(most.map_or(now, |most| most.max(now)))
    });
    let mut facts = vec![
        ("base", setting("model", "source").map(str::to_owned)),
        ("family", setting("adapter", "family").map(str::to_owned)),
        (
            "trained parameters",
            Some(grouped(run.trainable_parameters as u64)),
        ),
        (
            "steps",
            Some(format!("{} of {}", grouped(done), grouped(run.total))),
        ),
        ("rows", Some(grouped(run.rows as u64))),
        ("held-out rows", Some(grouped(run.held_out as u64))),
        ("time in steps", Some(duration(seconds))),
        ("tokens trained on", Some(significant(tokens))),
        (
            "most memory",
            memory.map(|memory| format!("{} MiB", grouped(memory.round() as u64))),
        ),
    ];
    facts.retain(|(_, fact)| fact.is_some());
    let mut out = format!(
        "<h1>{}</h1>\n{state}<dl class=\"facts\">\n",
        escaped(&run.name)
    );
    for (what, fact) in facts {
        let fact = escaped(&fact.unwrap_or_default());
        let _ = writeln!(out, "<div><dt>{what}</dt><dd>{fact}</dd></div>");
    }
    out += "</dl>\n";
    out
}

/// The numbers of a column that are finite.
fn finite(column: Option<&Column>) -> impl Iterator<Item = f64> {
    let points = column.map(Column::points).unwrap_or_default().iter();
    points
        .map(|(_, number)| *number)
        .filter(|number| number.is_finite())
}

/// What all steps took, without evaluation and saving.
fn seconds(steps: &Numbers) -> f64 {
    let (Some(tokens), Some(rates)) = (steps.column("tokens"), steps.column("tokens_per_second"))
    else {
        return 0.0;
    };
    let mut tokens = tokens.points().iter().peekable();
    let mut sum = 0.0;
    for (step, rate) in rates.points() {
        while tokens.next_if(|(of, _)| of < step).is_some() {}
        if let Some((_, tokens)) = tokens.next_if(|(of, _)| of == step)
            && *rate > 0.0
        {
            sum += tokens / rate;
        }
    }
    sum
}

/// What evaluations measured, in words: `loss` of `eval_loss`. The number of tokens is no measure.
fn measures(lines: &Lines) -> Vec<(&Column, String)> {
    let columns = lines.evaluations.columns().iter();
    let measures = columns.filter(|column| column.key() != "eval_tokens");
    measures
        .filter_map(|column| Some((column, column.key().strip_prefix(EVAL)?.replace('_', " "))))
        .collect()
}

/// Whether less is better.
fn falls(key: &str) -> bool {
    let parts = ["loss", "perplexity", "error", "mse", "mae", "rmse"];
    key.split('_').any(|word| parts.contains(&word))
}

/// The first, the best and the last value of every measure. What was not trained yet is no candidate for the best.
fn evaluations(lines: &Lines) -> String {
    let measures = measures(lines);
    if measures.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>Held-out rows</h2>\n<div class=\"wide\"><table class=\"measures\">\n<thead><tr><th></th><th class=\"number\">first</th>\
         <th class=\"number\">best</th><th class=\"number\">last</th></tr></thead>\n<tbody>\n",
    );
    for (column, name) in measures {
        let points = column.points();
        let candidates = || {
            let points = points.iter();
            points.filter(|(step, value)| *step > 0 && value.is_finite())
        };
        // The first of several that are equally good.
        let best = match falls(column.key()) {
            true => candidates().min_by(|one, other| one.1.total_cmp(&other.1)),
            false => candidates().min_by(|one, other| other.1.total_cmp(&one.1)),
        };
        let _ = write!(out, "<tr><th>{}</th>", escaped(&name));
        for cell in [points.first(), best, points.last()] {
            let cell = cell.map_or(String::new(), |(step, value)| {
                let value = match value.is_finite() {
                    true => significant(*value),
                    false => "not finite".to_owned(),
                };
                format!(
                    "{value} <span class=\"quiet\">step {}</span>",
                    grouped(*step)
                )
            });
            let _ = write!(out, "<td class=\"number\">{cell}</td>");
        }
        out += "</tr>\n";
    }
    out += "</tbody></table></div>\n";
    out
}

/// Everything that has a number for each step. One plot is made after the other: the points of a long run take room.
fn plots(lines: &Lines) -> String {
    let figure = |title: &str, floor: Floor, series: Vec<Series>| {
        let chart = Chart {
            title: title.to_owned(),
            floor,
            series,
        };
        chart.figure(lines.last_step()).unwrap_or_default()
    };
    let mut figures = figure("Loss", Floor::Factors, losses(lines));
    for (column, name) in measures(lines) {
        if column.key() != "eval_loss" {
            let drawn = series(&name, column, Drawn::Dots, 1);
            figures += &figure(&format!("Held-out {name}"), Floor::Least, vec![drawn]);
        }
    }
    let plain = [
        ("lr", "Learning rate", Floor::Zero),
        ("grad_norm", "Norm of the gradient", Floor::Zero),
        ("aux_loss", "Auxiliary loss", Floor::Least),
        ("tokens_per_second", "Tokens a second", Floor::Zero),
        ("peak_rss_mb", "Most memory so far, MiB", Floor::Zero),
    ];
    // A key that is not known here is shown under its own name.
    let others = lines.steps.columns().iter().map(Column::key).filter(|key| {
        !["loss", "tokens"].contains(key) && plain.iter().all(|(known, _, _)| known != key)
    });
    let others = others.map(|key| (key, key, Floor::Least));
    for (key, title, floor) in plain.into_iter().chain(others) {
        let Some(column) = lines.steps.column(key) else {
            continue;
        };
        let drawn = series("of each step", column, Drawn::Line, 0);
        // Noise would hide the course.
        let drawn = match ["grad_norm", "tokens_per_second"].contains(&key) {
            true => with_smoothed(drawn),
            false => vec![drawn],
        };
        figures += &figure(title, floor, drawn);
    }
    figures += &ranks::figures(lines);
    match figures.is_empty() {
        true => "<p class=\"quiet\">There is nothing to draw yet.</p>\n".to_owned(),
        false => format!("<h2>Over steps</h2>\n<div class=\"plots\">\n{figures}</div>\n"),
    }
}

fn losses(lines: &Lines) -> Vec<Series> {
    let mut all = Vec::new();
    if let Some(column) = lines.steps.column("loss") {
        all = with_smoothed(series("training", column, Drawn::Line, 0));
    }
    let held_out = lines.evaluations.column("eval_loss");
    if let Some(column) = held_out.filter(|column| finite(Some(column)).next().is_some()) {
        all.push(series("held-out", column, Drawn::Dots, 1));
    }
    all
}

/// The series, pale beneath its mean if it is long enough for one.
fn with_smoothed(raw: Series) -> Vec<Series> {
    match smoothed(&raw) {
        Some(smooth) => {
            let drawn = Drawn::Pale;
            vec![Series { drawn, ..raw }, smooth]
        }
        None => vec![raw],
    }
}

/// An exponential mean over about a thirtieth of the run, each step weighed by its age alone from the start on; none of a run
/// that is too short for one.
fn smoothed(raw: &Series) -> Option<Series> {
    let window = raw.points.len() as f64 / 30.0;
    if window < 1.2 {
        return None;
    }
    let keep = 1.0 - 2.0 / (window + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut points = Vec::with_capacity(raw.points.len());
    for (step, value) in &raw.points {
        let value = value.filter(|value| value.is_finite());
        if let Some(value) = value {
            sum = keep * sum + value;
            weight = keep * weight + 1.0;
        }
        points.push((*step, value.map(|_| sum / weight)));
    }
    Some(Series {
        name: "smoothed".to_owned(),
        points,
        drawn: Drawn::Line,
        colour: raw.colour,
    })
}

fn series(name: &str, column: &Column, drawn: Drawn, colour: usize) -> Series {
    let points = column.points().iter();
    let finite = |number: f64| Some(number).filter(|number| number.is_finite());
    Series {
        name: name.to_owned(),
        points: points
            .map(|(step, number)| (*step, finite(*number)))
            .collect(),
        drawn,
        colour,
    }
}

/// The run file's keys, a table a section.
fn tables(settings: &Table) -> String {
    if settings.is_empty() {
        return String::new();
    }
    let mut out = String::from("<h2>Settings</h2>\n<div class=\"settings\">\n");
    for (section, keys) in settings {
        let Value::Table(keys) = keys else { continue };
        let section = escaped(section);
        let _ = writeln!(
            out,
            "<table>\n<thead><tr><th colspan=\"2\">{section}</th></tr></thead>\n<tbody>"
        );
        for (key, value) in keys {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join(", "),
                value => value.to_string(),
            };
            let (key, value) = (escaped(key), escaped(&value));
            let _ = writeln!(out, "<tr><th>{key}</th><td>{value}</td></tr>");
        }
        out += "</tbody>\n</table>\n";
    }
    out += "</div>\n";
    out
}

/// Strings without their quotes.
fn shown(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
