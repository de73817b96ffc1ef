//! A cell is measured by a process of its own, so that its peak of memory is its own and nothing is warm that was not meant
//! to be: this program runs itself, or the peer's script, with a request as its only argument. The process prints a
//! [`Line`] of JSON for each cell that it measured.

use crate::bench::machine::Watch;
use crate::bench::report::{Cell, FOREIGN, Line, Measure, Side};
use crate::peer;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use std::path::Path;
use std::process::{Command, Stdio};

/// The peer's script.
const SCRIPT: &str = "xtask/src/bench/peer.py";

/// What a process is asked to measure: `kind` says what, the rest are its settings.
#[derive(Debug, Clone)]
pub struct Request {
    /// What the table calls the cell.
    pub name: String,
    /// Whose code runs.
    pub side: Side,
    /// What the report says of the cell.
    pub axes: Map<String, Value>,
    /// What the process is told beside them: files, repetitions.
    pub settings: Map<String, Value>,
    /// Threads that compute.
    pub threads: usize,
    /// Whether the first round is enough.
    pub once: bool,
}

impl Request {
    /// The process's argument.
    fn argument(&self) -> String {
        let mut all = self.axes.clone();
        all.extend(self.settings.clone());
        all.insert("threads".to_owned(), self.threads.into());
        Value::from(all).to_string()
    }

    /// Runs the process and reads what it prints.
    fn run(&self, root: &Path) -> Result<Vec<Line>> {
        let mut command = match self.side {
            Side::Ours => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["bench", "cell"]);
                command
            }
            Side::Peer => {
                let mut command = Command::new(peer::ready(root)?);
                command.arg("-B").arg(SCRIPT);
                command
            }
        };
        command
            .arg(self.argument())
            .current_dir(root)
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let watch = Watch::start();
        let output = command
            .output()
            .context("cannot start the process of a cell")?;
        let (text, complaint) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        if !output.status.success() {
            let last: Vec<&str> = complaint.lines().rev().take(6).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n  ");
            bail!("its process ended with {}:\n  {last}", output.status);
        }
        let mut lines = lines(&text)?;
        if let Some(load) = watch.foreign_load() {
            for line in &mut lines {
                line.measures.push(Measure::new(FOREIGN, "1", vec![load]));
            }
        }
        Ok(lines)
    }
}

/// The lines of a process: other output beside them is none of ours.
fn lines(text: &str) -> Result<Vec<Line>> {
    let lines: Vec<Line> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("not a measurement: {line}"))
        })
        .collect::<Result<_>>()?;
    if lines.is_empty() {
        return Err(anyhow!("its process printed no measurement"));
    }
    Ok(lines)
}

/// Runs all requests as often as there are rounds, taking turns, and says what it does. One that fails is a cell with an
/// error; the others go on.
pub fn run_all(root: &Path, requests: &[Request], rounds: usize) -> Vec<Cell> {
    let mut cells: Vec<Vec<Cell>> = vec![Vec::new(); requests.len()];
    for round in 0..rounds {
        for (request, cells) in requests.iter().zip(&mut cells) {
            let failed = cells.iter().any(|cell| cell.error.is_some());
            if failed || request.once && round > 0 {
                continue;
            }
            eprintln!("round {} of {rounds}: {}", round + 1, request.name);
            match request.run(root) {
                Ok(lines) => lines.into_iter().for_each(|line| add(cells, request, line)),
                Err(error) => {
                    eprintln!("  failed: {error:#}");
                    if cells.is_empty() {
                        cells.push(empty(request, &Map::new()));
                    }
                    cells[0].error = Some(format!("round {}: {error:#}", round + 1));
                }
            }
        }
    }
    cells.into_iter().flatten().collect()
}

fn add(cells: &mut Vec<Cell>, request: &Request, line: Line) {
    let fresh = empty(request, &line.axes);
    match cells.iter_mut().find(|cell| cell.axes == fresh.axes) {
        Some(cell) => cell.rounds.push(line),
        None => {
            let rounds = vec![line];
            cells.push(Cell { rounds, ..fresh });
        }
    }
}

fn empty(request: &Request, more: &Map<String, Value>) -> Cell {
    let mut axes = request.axes.clone();
    axes.insert("threads".to_owned(), request.threads.into());
    axes.extend(more.clone());
    Cell {
        name: request.name.clone(),
        side: request.side,
        axes,
        rounds: Vec::new(),
        error: None,
    }
}

/// Ours, then theirs, then ours again: what disturbs the machine for a while disturbs both.
pub fn alternating(ours: Vec<Request>, theirs: Vec<Request>) -> Vec<Request> {
    let (mut ours, mut theirs) = (ours.into_iter(), theirs.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = (ours.next(), theirs.next());
        if matches!(pair, (None, None)) {
            return all;
        }
        all.extend(pair.0);
        all.extend(pair.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(name: &str, side: Side) -> Request {
        Request {
            name: name.to_owned(),
            side,
            axes: Map::from_iter([("batch".to_owned(), json!(3))]),
            settings: Map::new(),
            threads: 2,
            once: false,
        }
    }

    #[test]
    fn other_output_is_skipped_and_none_is_an_error() -> Result<()> {
        let text = "Loading\n{\"measures\":[{\"name\":\"a\",\"unit\":\"s\",\"values\":[1.5]}]}\n";
        assert_eq!(lines(text)?[0].measures[0].values, [1.5]);
        assert!(lines("Loading\n").is_err());
        let wrong = lines("{\"measures\":3}").expect_err("no list").to_string();
        assert!(wrong.contains("not a measurement"), "{wrong}");
        Ok(())
    }

    #[test]
    fn both_sides_take_turns() {
        let of = |side, names: &[&str]| names.iter().map(|name| request(name, side)).collect();
        let all = alternating(
            of(Side::Ours, &["a", "b"]),
            of(Side::Peer, &["x", "y", "z"]),
        );
        let names: Vec<&str> = all.iter().map(|request| request.name.as_str()).collect();
        assert_eq!(names, ["a", "x", "b", "y", "z"]);
    }

    #[test]
    fn lines_of_the_same_axes_are_rounds_of_one_cell() {
        let request = request("ops", Side::Ours);
        let line = |op: &str| Line {
            axes: Map::from_iter([("op".to_owned(), json!(op))]),
            ..Line::default()
        };
        let mut cells = Vec::new();
        for op in ["norm", "swiglu", "norm"] {
            add(&mut cells, &request, line(op));
        }
        let rounds: Vec<(usize, &str)> = cells
            .iter()
            .map(|cell| (cell.rounds.len(), cell.axis("op")))
            .collect();
        assert_eq!(rounds, [(2, "norm"), (1, "swiglu")]);
        assert_eq!(cells[0].axes["threads"], 2);
    }

    #[test]
    fn a_missing_environment_says_how_to_make_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let cells = run_all(folder.path(), &[request("f32-eager", Side::Peer)], 2);
        let error = cells[0].error.as_deref().unwrap_or_default();
        assert!(error.contains("cargo xtask peer-env"), "{error}");
        assert_eq!(cells.len(), 1);
    }
}
