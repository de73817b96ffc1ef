//! Everything that a run needs to go on, in folders that are complete or not there.

use crate::error::{Change, Error, Result};
use crate::optimizer::{Ages, Optimizer};
use crate::run_folder::remove;
use crate::trainer::Trainable;
use candle_core::Tensor;
use lowrank_adapter::{Param, State};
use lowrank_format::{
    AtomicFolder, Existing, PYTORCH, Safetensors, read_json_object, write_safetensors,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const PARAMS: &str = "params.safetensors";
const MOMENTS: &str = "moments.safetensors";
const CONTROLLER: &str = "controller.safetensors";

/// The form that is written and read.
const VERSION: u64 = 1;

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u64,
    /// How many steps are done.
    pub step: u64,
    /// How many steps the run was to have.
    pub total: u64,
    /// How many rows (sequences, if they are packed) the done ones took, which is where the data goes on.
    pub rows_taken: u64,
    /// How many rows the training data has.
    pub rows: u64,
    /// The run file, flat, without the keys that a resumed run may change.
    pub settings: BTreeMap<String, Value>,
    ages: Ages,
    /// The controller's values; none if there is no controller.
    controller: Option<Value>,
}

/// Where a run stands.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub step: u64,
    pub total: u64,
    pub rows_taken: u64,
    pub rows: u64,
    pub settings: BTreeMap<String, Value>,
}

/// The setting that holds a hash of the training rows.
pub(crate) const CONTENT: &str = "the content of data.train";

/// The setting that holds one of the held-out rows: the best step, the end, and what a method allocates may depend on them.
pub(crate) const HELD_OUT: &str = "the content of data.eval";

/// A complete checkpoint.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    record: Record,
}

/// Writes `step-<number>` into `folder`.
pub(crate) fn save(
    folder: &Path,
    place: Place,
    trainable: &Trainable<'_>,
    optimizer: &dyn Optimizer,
) -> Result<PathBuf> {
    let Place {
        step,
        total,
        rows_taken,
        rows,
        settings,
    } = place;
    let staged = AtomicFolder::create(&folder.join(name(step)), Existing::Replace)?;
    let write = |file: &str, tensors: &BTreeMap<String, Tensor>| {
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        write_safetensors(&staged.path().join(file), tensors, PYTORCH)
    };
    let params = trainable.params.iter();
    let params = params.map(|param| (param.name().to_owned(), param.value()));
    write(PARAMS, &params.collect())?;
    let (moments, ages) = optimizer.state()?;
    write(MOMENTS, &moments)?;
    let mut values = None;
    if let Some(controller) = &trainable.controller {
        let state = controller.state()?;
        write(CONTROLLER, &state.tensors)?;
        values = Some(state.values);
    }
    let record = Record {
        version: VERSION,
        step,
        total,
        rows_taken,
        rows,
        settings,
        ages,
        controller: values,
    };
    let path = staged.path().join(STATE);
    let text = serde_json::to_string_pretty(&record).map_err(std::io::Error::from);
    let text = text.map_err(Error::io("write", &path))? + "\n";
    let bytes = Some(text.len() as u64);
    fs::write(&path, text).map_err(Error::writing("write", &path, bytes))?;
    Ok(staged.commit()?)
}

/// Removes all but the newest `keep` of the checkpoints up to `step`, and that of the step `best`, the oldest first.
pub(crate) fn prune(folder: &Path, keep: NonZeroUsize, step: u64, best: Option<u64>) -> Result<()> {
    let mut until = steps(folder)?;
    until.retain(|(other, _)| *other <= step);
    for (other, path) in until.iter().rev().skip(keep.get()).rev() {
        if Some(*other) != best {
            remove(path)?;
        }
    }
    Ok(())
}

/// The complete checkpoint of a step.
pub(crate) fn at(folder: &Path, step: u64) -> Result<Checkpoint> {
    Checkpoint::open(&folder.join(name(step)))
}

/// The newest complete checkpoint in `folder`; `warn` hears of those that are not.
pub(crate) fn newest(folder: &Path, mut warn: impl FnMut(String)) -> Result<Option<Checkpoint>> {
    for (step, path) in steps(folder)?.into_iter().rev() {
        match Checkpoint::open(&path) {
            Ok(checkpoint) if checkpoint.record.step == step => return Ok(Some(checkpoint)),
            Ok(checkpoint) => warn(format!(
                "ignoring {}: it says that it is of step {}",
                path.display(),
                checkpoint.record.step
            )),
            Err(error) => warn(format!("ignoring an incomplete checkpoint: {error}")),
        }
    }
    Ok(None)
}

impl Checkpoint {
    /// Opens a checkpoint and checks that it is complete.
    ///
    /// # Errors
    /// If a file is missing or damaged, or was written in another form.
    pub fn open(path: &Path) -> Result<Self> {
        let state = path.join(STATE);
        let record = Value::Object(read_json_object(&state)?);
        let refuse = |what: String| Error::Checkpoint {
            path: state.clone(),
            what,
        };
        let record: Record = serde_json::from_value(record)
            .map_err(|error| refuse(format!("not the state of a checkpoint: {error}")))?;
        if record.version != VERSION {
            let version = record.version;
            return Err(refuse(format!("has version {version}, expected {VERSION}")));
        }
        let mut files = vec![PARAMS, MOMENTS];
        files.extend(record.controller.is_some().then_some(CONTROLLER));
        for file in files {
            Safetensors::open(&path.join(file))?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            record,
        })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says beside its tensors.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Refuses a run that is not a continuation of this one.
    pub(crate) fn check(&self, settings: &BTreeMap<String, Value>, rows: u64) -> Result<()> {
        let was = &self.record.settings;
        let mut keys: Vec<&String> = was.keys().chain(settings.keys()).collect();
        keys.sort();
        keys.dedup();
        let shown = |value: Option<&Value>| value.map(Value::to_string);
        let mut changes: Vec<Change> = keys
            .into_iter()
            .filter(|key| was.get(*key) != settings.get(*key))
            // Another number of rows says more than another hash of them.
            .filter(|key| self.record.rows == rows || ![CONTENT, HELD_OUT].contains(&key.as_str()))
            .map(|key| Change {
                key: key.clone(),
                was: shown(was.get(key)),
                now: shown(settings.get(key)),
            })
            .collect();
        if changes.is_empty() && self.record.rows != rows {
            changes.push(Change {
                key: "the number of rows of data.train".into(),
                was: Some(self.record.rows.to_string()),
                now: Some(rows.to_string()),
            });
        }
        if changes.is_empty() {
            return Ok(());
        }
        Err(Error::Changed {
            checkpoint: self.path.clone(),
            changes,
        })
    }

    /// Sets every parameter, moment and controller to what it was.
    pub(crate) fn restore(
        &self,
        optimizer: &mut dyn Optimizer,
        trainable: &mut Trainable<'_>,
    ) -> Result<()> {
        let path = self.path.join(PARAMS);
        let refuse = |path: &Path, what: String| Error::Checkpoint {
            path: path.to_path_buf(),
            what,
        };
        let mut tensors = read(&path)?;
        let mut values: Vec<(&Param, Tensor)> = Vec::with_capacity(tensors.len());
        for param in &trainable.params {
            let name = param.name();
            let value = tensors
                .remove(name)
                .ok_or_else(|| refuse(&path, format!("tensor `{name}` is missing")))?;
            if value.shape() != param.shape() || value.dtype() != param.dtype() {
                let what = format!(
                    "tensor `{name}` is {} {:?}, expected {} {:?}",
                    value.dtype().as_str(),
                    value.dims(),
                    param.dtype().as_str(),
                    param.shape().dims()
                );
                return Err(refuse(&path, what));
            }
            values.push((param, value));
        }
        if let Some(name) = tensors.keys().next() {
            let what = format!("tensor `{name}` belongs to no parameter of this run");
            return Err(refuse(&path, what));
        }
        let moments = self.path.join(MOMENTS);
        optimizer
            .restore(read(&moments)?, self.record.ages.clone())
            .map_err(|what| refuse(&moments, what))?;
        for (param, value) in values {
            param.set(&value)?;
        }
        match (&mut trainable.controller, &self.record.controller) {
            (None, None) => Ok(()),
            (Some(controller), Some(values)) => {
                let state = State {
                    values: values.clone(),
                    tensors: read(&self.path.join(CONTROLLER))?,
                };
                Ok(controller.restore(state)?)
            }
            (held, _) => {
                let what = match held {
                    Some(_) => "holds no state of a controller, and this run has one",
                    None => "holds the state of a controller, and this run has none",
                };
                Err(refuse(&self.path, what.to_owned()))
            }
        }
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = Safetensors::open(path)?;
    let tensors = file.names().into_iter();
    tensors
        .map(|name| Ok((name.to_owned(), file.tensor(name)?)))
        .collect()
}

fn name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The folders that are named like checkpoints, by step. Whatever else lies there is none of our business.
fn steps(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        if !entry.path().is_dir() {
            continue;
        }
        let file_name = entry.file_name();
        let step = file_name
            .to_str()
            .and_then(|name| name.strip_prefix("step-"));
        let step = step.and_then(|step| step.parse::<u64>().ok());
        if let Some(step) = step.filter(|&step| *file_name == *name(step)) {
            steps.push((step, entry.path()));
        }
    }
    steps.sort();
    Ok(steps)
}
