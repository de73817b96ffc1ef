//! `metrics.jsonl`: one JSON object a line, written as the run goes on.

use crate::append::append;
use crate::error::{Error, Result};
use lowrank_format::atomic_write_file;
use lowrank_report::{Kind, Line};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

/// What is logged of a training step. A number that is not finite is written as null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// The optimiser step, from 1.
    pub step: u64,
    /// The task loss before the update, over the supervised tokens of the step, with the smoothed labels and the noise
    /// that it was computed with; none if nothing is supervised, and not a number if it is not finite.
    pub loss: Option<f64>,
    /// The learning rate.
    pub lr: f64,
    /// The global L2 norm after accumulation and before clipping.
    pub grad_norm: Option<f64>,
    /// Tokens that are not padding.
    pub tokens: u64,
    /// The same by the second, without evaluation and saving.
    pub tokens_per_second: f64,
    /// The largest memory that the process has held, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_mb: Option<f64>,
    /// Auxiliary losses and penalties, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_loss: Option<f64>,
}

/// What is logged of an evaluation during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// After this many steps.
    pub step: u64,
    /// The loss over all supervised tokens, without smoothing or noise.
    pub eval_loss: Option<f64>,
    /// Tokens that are not padding.
    pub eval_tokens: u64,
    /// What the task is judged by, each as `eval_<name>`: `accuracy`, `f1`, `matthews`, `pearson`, `spearman`. One that
    /// is not a number (the correlation with a constant) is null in the file.
    #[serde(flatten, with = "named")]
    pub metrics: BTreeMap<String, f64>,
}

/// Metrics as keys of their own beside the others of a line.
mod named {
    use serde::de::{Deserialize as _, Deserializer};
    use serde::ser::{SerializeMap as _, Serializer};
    use serde_json::Value;
    use std::collections::BTreeMap;

    const PREFIX: &str = "eval_";

    pub fn serialize<S: Serializer>(
        metrics: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(metrics.len()))?;
        for (name, value) in metrics {
            map.serialize_entry(&format!("{PREFIX}{name}"), value)?;
        }
        map.end()
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let keys = BTreeMap::<String, Value>::deserialize(deserializer)?;
        let metric = |(key, value): (String, Value)| {
            let name = key.strip_prefix(PREFIX)?.to_owned();
            match value {
                Value::Null => Some((name, f64::NAN)),
                value => Some((name, value.as_f64()?)),
            }
        };
        Ok(keys.into_iter().filter_map(metric).collect())
    }
}

/// The open file. Every line is in it, whole, when the call that wrote it returns.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// The last training line.
    pub last_step: Option<StepLine>,
    /// The last evaluation line.
    pub last_evaluation: Option<EvalLine>,
    evaluations: Vec<EvalLine>,
}

impl Metrics {
    /// Opens the file and cuts the lines of steps after `done`, of which a crash may have left some, and what is not
    /// a whole line. `None` cuts all.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, done: Option<u64>) -> Result<Self> {
        Self::open_with(path, done, |_| ())
    }

    /// [`Self::open`] that hands every line that is kept to `each`.
    pub(crate) fn open_with(
        path: &Path,
        done: Option<u64>,
        mut each: impl FnMut(&Line),
    ) -> Result<Self> {
        let mut last_step = None;
        let mut evaluations: Vec<EvalLine> = Vec::new();
        // What is kept: so many bytes from the start on, and of the rest these.
        let (mut begin, mut rest, mut is_cut) = (0, Vec::<u8>::new(), false);
        for bytes in whole_lines(path)? {
            let bytes = bytes.map_err(Error::io("read", path))?;
            let line = match serde_json::from_slice(&bytes) {
                Ok(Value::Object(values)) if bytes.ends_with(b"\n") => Line::new(values),
                _ => None,
            };
            let Some(line) = line.filter(|line| done.is_some_and(|done| line.step <= done)) else {
                is_cut = true;
                continue;
            };
            match is_cut {
                true => rest.extend(&bytes),
                false => begin += bytes.len(),
            }
            match line.kind() {
                Kind::Step => last_step = serde_json::from_slice(&bytes).ok().or(last_step),
                Kind::Evaluation => evaluations.extend(serde_json::from_slice::<EvalLine>(&bytes)),
                Kind::Event => {}
            }
            each(&line);
        }
        if is_cut {
            let mut kept = fs::read(path).map_err(Error::io("read", path))?;
            kept.truncate(begin);
            kept.extend(rest);
            atomic_write_file(path, &kept)?;
        }
        let file = File::options().create(true).append(true).open(path);
        Ok(Self {
            path: path.to_path_buf(),
            file: file.map_err(Error::io("open", path))?,
            last_step,
            last_evaluation: evaluations.last().cloned(),
            evaluations,
        })
    }

    /// All lines of evaluations.
    pub(crate) fn evaluations(&self) -> &[EvalLine] {
        &self.evaluations
    }

    /// Adds a training line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn step(&mut self, line: &StepLine) -> Result<()> {
        self.last_step = Some(line.clone());
        self.write(line)
    }

    /// Adds an evaluation line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn evaluation(&mut self, line: &EvalLine) -> Result<()> {
        self.last_evaluation = Some(line.clone());
        self.evaluations.push(line.clone());
        self.write(line)
    }

    /// Adds a line of another kind.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn event(&mut self, line: &Map<String, Value>) -> Result<()> {
        self.write(line)
    }

    /// Waits until the lines are on the disk: a checkpoint must not outlive the lines that lead to it.
    ///
    /// # Errors
    /// If the file cannot be synced.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        // serde_json writes null for what JSON cannot hold.
        let line = serde_json::to_string(line).map_err(std::io::Error::from);
        let line = line.map_err(Error::io("write", &self.path))? + "\n";
        let bytes = Some(line.len() as u64);
        let written = append(&mut self.file, line.as_bytes());
        written.map_err(Error::writing("write", &self.path, bytes))
    }
}

/// The lines of a file one by one, each with its end; none of a file that is missing.
fn whole_lines(path: &Path) -> Result<impl Iterator<Item = std::io::Result<Vec<u8>>>> {
    let file = match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let mut reader = file.map(BufReader::new);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.as_mut()?.read_until(b'\n', &mut line) {
            Ok(0) => None,
            read => Some(read.map(|_| line)),
        }
    }))
}

/// The largest memory that this process has held (VmHWM), in MiB; none where the system does not tell.
#[must_use]
pub fn peak_rss_mb() -> Option<f64> {
    memory_mb("VmHWM:")
}

/// The memory that this process holds now (VmRSS), in MiB; none where the system does not tell.
#[must_use]
pub fn rss_mb() -> Option<f64> {
    memory_mb("VmRSS:")
}

fn memory_mb(line: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let found = status.lines().find_map(|found| found.strip_prefix(line))?;
    let kilobytes: f64 = found.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_become_null() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, None).unwrap();
        let line = StepLine {
            step: 3,
            loss: Some(f64::NAN),
            lr: 2e-4,
            grad_norm: Some(f64::INFINITY),
            tokens: 12,
            tokens_per_second: 480.5,
            peak_rss_mb: Some(64.25),
            aux_loss: None,
        };
        metrics.step(&line).unwrap();
        let evaluation = EvalLine {
            step: 3,
            eval_loss: Some(1.5),
            eval_tokens: 7,
            metrics: [("accuracy", 0.5), ("pearson", f64::NAN)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        };
        metrics.evaluation(&evaluation).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":3,\"loss\":null,\"lr\":0.0002,\"grad_norm\":null,\"tokens\":12,\
             \"tokens_per_second\":480.5,\"peak_rss_mb\":64.25}\n\
             {\"step\":3,\"eval_loss\":1.5,\"eval_tokens\":7,\"eval_accuracy\":0.5,\"eval_pearson\":null}\n"
        );
        drop(metrics);
        let again = Metrics::open(&path, Some(3)).unwrap();
        let read = again.last_evaluation.unwrap();
        assert_eq!((read.eval_loss, read.eval_tokens), (Some(1.5), 7));
        assert_eq!(read.metrics.len(), 2);
        assert_eq!(read.metrics["accuracy"], 0.5);
        assert!(read.metrics["pearson"].is_nan());
    }

    #[test]
    fn later_and_broken_lines_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = |step| format!("{{\"step\":{step},\"eval_loss\":1.5,\"eval_tokens\":7}}\n");
        let event = "{\"step\":1,\"event\":\"allocate\"}\n";
        let text = [
            &line(0),
            event,
            "no json\n",
            &line(2),
            &line(3),
            "{\"step\":1",
        ]
        .concat();
        fs::write(&path, &text).unwrap();
        let metrics = Metrics::open(&path, Some(2)).unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert_eq!(kept, [&line(0), event, &line(2)].concat());
        assert_eq!(metrics.last_evaluation.map(|line| line.step), Some(2));
        assert_eq!(metrics.last_step, None);
        drop(Metrics::open(&path, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn peak_memory_is_at_least_a_megabyte() {
        if cfg!(target_os = "linux") {
            assert!(peak_rss_mb().unwrap() > 1.0);
        }
    }
}
