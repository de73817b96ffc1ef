//! What a run writes of itself while it goes on: `metrics.jsonl` and TensorBoard's events line by line; from the former,
//! now and then, a table and a page.

use crate::error::{Error, Result};
use crate::events::Events;
use crate::metrics::{EvalLine, Metrics, StepLine};
use crate::run_folder::RunFolder;
use lowrank_format::atomic_write_file;
use lowrank_report::{Lines, Run, csv, page};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs;

/// The open files of a run.
#[derive(Debug)]
pub(crate) struct Log<'a> {
    folder: &'a RunFolder,
    metrics: Metrics,
    events: Events,
    run: Run,
}

impl<'a> Log<'a> {
    /// Cuts what was written of steps after `done`, and shows what is left. `run` is completed by what the folder says.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(folder: &'a RunFolder, done: Option<u64>, run: Run) -> Result<Self> {
        let name = folder.path().file_name();
        let log = Self {
            folder,
            metrics: Metrics::open(&folder.metrics(), done)?,
            events: Events::open(&folder.events(), done)?,
            run: Run {
                name: name.map_or("run".into(), |name| name.display().to_string()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..run
            },
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
        self.event_of(line)
    }

    /// Adds an evaluation line.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn evaluation(&mut self, line: &EvalLine) -> Result<()> {
        self.metrics.evaluation(line)?;
        self.event_of(line)
    }

    /// Adds a line of another kind.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn event(&mut self, line: &Map<String, Value>) -> Result<()> {
        self.metrics.event(line)?;
        self.event_of(line)
    }

    /// Waits until everything is on the disk: a checkpoint must not outlive the lines that lead to it.
    ///
    /// # Errors
    /// If a file cannot be synced.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.events.sync()
    }

    /// Writes the table and the page, as `metrics.jsonl` is now.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn show(&self) -> Result<()> {
        let path = self.folder.metrics();
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let lines = Lines::parse(&text);
        atomic_write_file(&self.folder.table(), csv(&lines).as_bytes())?;
        let page = page(&self.run, &lines);
        Ok(atomic_write_file(&self.folder.report(), page.as_bytes())?)
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

    fn event_of(&mut self, line: &impl Serialize) -> Result<()> {
        // What could not be written as JSON was an error before.
        match serde_json::to_value(line) {
            Ok(Value::Object(values)) => self.events.add(values),
            _ => Ok(()),
        }
    }
}
