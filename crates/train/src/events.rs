//! `tb/`: a file of events for each time that the run was started or resumed.

use crate::append::append;
use crate::error::{Error, Result};
use crate::run_folder::{EVENTS, list, remove};
use lowrank_format::atomic_write_file;
use lowrank_report::{Line, cut, scalars, start, version};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The end of our files' names: others in the folder are not ours to cut.
const OURS: &str = ".lowrank";

/// The events of a run.
#[derive(Debug)]
pub(crate) struct Events {
    folder: PathBuf,
    /// The file's name begins with the time in seconds. TensorBoard reads files in the order of their names.
    after: u64,
    /// The step that a resumed run begins with.
    resumed_at: Option<u64>,
    /// Made when there is something to write.
    file: Option<(PathBuf, File)>,
}

impl Events {
    /// Cuts the events of steps after `done` out of the files that are there; `None` removes all.
    ///
    /// TensorBoard itself would be content with the word that a session starts anew, which is written for one that is
    /// running. Other readers are not, and show such steps twice.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(folder: &Path, done: Option<u64>) -> Result<Self> {
        let mut after = 0;
        for path in list(folder)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(middle) = name
                .and_then(|name| name.strip_prefix(EVENTS))
                .and_then(|name| name.strip_suffix(OURS))
            else {
                continue;
            };
            if done.is_none() {
                remove(&path)?;
                continue;
            }
            let seconds = middle.split('.').next();
            after = seconds
                .and_then(|seconds| seconds.parse().ok())
                .map_or(after, |seconds: u64| after.max(seconds));
            let file = fs::read(&path).map_err(Error::io("read", &path))?;
            let kept = cut(&file, done);
            if kept != file {
                atomic_write_file(&path, &kept)?;
            }
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            after,
            resumed_at: done.map(|done| done.saturating_add(1)),
            file: None,
        })
    }

    /// Adds the numbers of a line of `metrics.jsonl`; whole when the call returns.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, values: Map<String, Value>) -> Result<()> {
        let Some(step) = values.get("step").and_then(Value::as_u64) else {
            return Ok(());
        };
        let record = scalars(now(), &Line { step, values });
        if record.is_empty() {
            return Ok(());
        }
        let (path, mut file) = match self.file.take() {
            Some(file) => file,
            None => self.create()?,
        };
        let bytes = Some(record.len() as u64);
        let written = append(&mut file, &record).map_err(Error::writing("write", &path, bytes));
        self.file = Some((path, file));
        written
    }

    /// Waits until the events are on the disk.
    ///
    /// # Errors
    /// If the file cannot be synced.
    pub fn sync(&self) -> Result<()> {
        match &self.file {
            Some((path, file)) => file.sync_data().map_err(Error::io("sync", path)),
            None => Ok(()),
        }
    }

    fn create(&self) -> Result<(PathBuf, File)> {
        fs::create_dir_all(&self.folder).map_err(Error::io("create folder", &self.folder))?;
        let time = now();
        // A clock that was set back must not put this file before those that it continues.
        let seconds = (time as u64).max(self.after);
        let names = (0..).map(|count| format!("{EVENTS}{seconds:010}.{count:04}{OURS}"));
        let mut paths = names.map(|name| self.folder.join(name));
        let path = paths
            .find(|path| !path.exists())
            .unwrap_or_else(|| self.folder.join(EVENTS));
        let mut head = version(time);
        if let Some(step) = self.resumed_at {
            head.extend(start(time, step));
        }
        let file = File::options().create_new(true).append(true).open(&path);
        let mut file = file.map_err(Error::io("create", &path))?;
        let written = append(&mut file, &head);
        written.map_err(Error::writing("write", &path, Some(head.len() as u64)))?;
        Ok((path, file))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
