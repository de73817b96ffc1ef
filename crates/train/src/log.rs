//! What a run writes of itself while it goes on: `metrics.jsonl` and TensorBoard's events line by line; from the former,
//! now and then, a table and a page.

use crate::error::Result;
use crate::events::Events;
use crate::metrics::{EvalLine, Metrics, StepLine};
use crate::run_folder::RunFolder;
use lowrank_format::atomic_write_file;
use lowrank_report::{Line, Lines, Run, csv, page};
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

/// The table and the page are made anew from all lines, which takes its time in a long run: while it goes on they wait so long,
/// or until there are a tenth more lines.
const SHOWN_EVERY: Duration = Duration::from_secs(60);

/// The open files of a run.
#[derive(Debug)]
pub(crate) struct Log<'a> {
    folder: &'a RunFolder,
    metrics: Metrics,
    events: Events,
    run: Run,
    /// What is in the metrics.
    lines: Lines,
    /// When the table and the page were written, and of how many lines.
    shown: (Instant, usize),
}

impl<'a> Log<'a> {
    /// Cuts what was written of steps after `done`, and shows what is left. `run` is completed by what the folder says.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(folder: &'a RunFolder, done: Option<u64>, run: Run) -> Result<Self> {
        let name = folder.path().file_name();
        let mut lines = Lines::default();
        let mut log = Self {
            folder,
            metrics: Metrics::open_with(&folder.metrics(), done, |line| lines.push(line))?,
            events: Events::open(&folder.events(), done)?,
            run: Run {
                name: name.map_or("run".into(), |name| name.display().to_string()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..run
            },
            lines,
            shown: (Instant::now(), 0),
        };
        log.show()?;
        Ok(log)
    }

    /// The lines so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Adds a training line.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn step(&mut self, line: &StepLine) -> Result<()> {
        self.metrics.step(line)?;
        let mut values = values_of(line);
        self.note(&values);
        if line.loss.is_none() {
            // Null would be a loss that is not finite.
            values.remove("loss");
        }
        self.events.add(values)
    }

    /// Adds an evaluation line.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn evaluation(&mut self, line: &EvalLine) -> Result<()> {
        self.metrics.evaluation(line)?;
        let values = values_of(line);
        self.note(&values);
        self.events.add(values)
    }

    /// Adds a line of another kind.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn event(&mut self, line: &Map<String, Value>) -> Result<()> {
        self.metrics.event(line)?;
        self.note(line);
        self.events.add(line.clone())
    }

    /// Waits until everything is on the disk: a checkpoint must not outlive the lines that lead to it.
    ///
    /// # Errors
    /// If a file cannot be synced.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.events.sync()
    }

    /// [`Self::show`], unless it was done a moment ago.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn show_now_and_then(&mut self) -> Result<()> {
        let (at, of) = self.shown;
        let has_grown = self.count() * 10 >= of * 11;
        match has_grown || at.elapsed() >= SHOWN_EVERY {
            true => self.show(),
            false => Ok(()),
        }
    }

    /// How many lines there are.
    fn count(&self) -> usize {
        let lines = &self.lines;
        lines.steps.len() + lines.evaluations.len() + lines.events.len()
    }

    /// Writes the table and the page, as `metrics.jsonl` is now.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn show(&mut self) -> Result<()> {
        atomic_write_file(&self.folder.table(), csv(&self.lines).as_bytes())?;
        let page = page(&self.run, &self.lines);
        atomic_write_file(&self.folder.report(), page.as_bytes())?;
        self.shown = (Instant::now(), self.count());
        Ok(())
    }

    /// The run has made its last step, and its result will be that of this one.
    pub fn finished(&mut self, ended_early: bool, result_of: u64) {
        self.run.ended_early = ended_early;
        self.run.result_of = Some(result_of);
    }

    /// Shows a last time how the run went, and if it failed, why.
    ///
    /// # Errors
    /// The run's own error; else, if a file cannot be written.
    pub fn ended<T>(mut self, outcome: Result<T>) -> Result<(T, Metrics)> {
        let end = match outcome {
            Ok(end) => end,
            Err(error) => {
                self.run.failure = Some(error.to_string());
                // What stopped the run, as a full disk, may stop this as well, and matters more.
                drop(self.show());
                return Err(error);
            }
        };
        self.show()?;
        Ok((end, self.metrics))
    }

    fn note(&mut self, values: &Map<String, Value>) {
        if let Some(line) = Line::new(values.clone()) {
            self.lines.push(&line);
        }
    }
}

/// A line as JSON. What could not be written as such was an error before.
fn values_of(line: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(line) {
        Ok(Value::Object(values)) => values,
        _ => Map::new(),
    }
}
