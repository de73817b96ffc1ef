//! The golden files that `tests/parity/generate.py` wrote with the real PEFT.

use crate::device::device;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use lowrank::adapter::{Attached, Batch, ResidualBase, Tokens};
use lowrank::data::Example;
use lowrank::models::Precision;
use lowrank::{Base, Reading, StrictBase, load_adapter};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The folder of the golden files.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/golden")
}

/// One case: a PEFT adapter, what it computes, and ten optimiser steps.
#[derive(Debug)]
pub struct Case {
    /// Its name, the folder's.
    pub name: String,
    /// The base model's folder.
    pub model: PathBuf,
    /// The adapter that the steps start from.
    pub init: PathBuf,
    /// The adapter after ten steps.
    pub last: PathBuf,
    /// `init` as PEFT converts it, after a start that it subtracts from the base. The other files are unconverted, to be
    /// read over the original base.
    pub converted: Option<PathBuf>,
    /// A batch a step.
    pub batches: Vec<Batch>,
    /// The rows of those batches, without padding, in order.
    pub examples: Vec<Example>,
    /// Logits, gradients and merged weights for the first batch.
    pub expected: BTreeMap<String, Tensor>,
    /// Losses and gradient norms.
    pub steps: Steps,
}

/// `steps.json`: the optimiser's settings, and what happened.
#[derive(Debug, Deserialize)]
pub struct Steps {
    /// AdamW's settings.
    pub optimizer: Optimizer,
    /// The rate of each step.
    pub lr: Vec<f64>,
    /// The norm that gradients were clipped to.
    pub max_grad_norm: f64,
    /// The run in f32.
    pub f32: Trace,
    /// The run in f64.
    pub f64: Trace,
}

/// AdamW's settings.
#[derive(Debug, Deserialize)]
pub struct Optimizer {
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

/// One number a step.
#[derive(Debug, Deserialize)]
pub struct Trace {
    /// The loss before the update.
    pub loss: Vec<f64>,
    /// The norm before clipping.
    pub grad_norm: Vec<f64>,
}

/// One entry of `batch.json`: rows padded on the right.
#[derive(Debug, Deserialize)]
pub struct Rows {
    input_ids: Vec<Vec<u32>>,
    labels: Vec<Vec<i32>>,
    lengths: Vec<usize>,
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// If a file is missing or of another form.
    pub fn open(name: &str) -> Result<Self> {
        let folder = folder().join("cases").join(name);
        let config: serde_json::Value =
            read_json(&folder.join("adapter_init/adapter_config.json"))?;
        let base = config["base_model_name_or_path"]
            .as_str()
            .context("no base model")?;
        let rows: Vec<Rows> = read_json(&folder.join("batch.json"))?;
        let expected: HashMap<String, Tensor> =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu)?;
        Ok(Self {
            name: name.to_owned(),
            model: self::folder().join(base),
            init: folder.join("adapter_init"),
            last: folder.join("adapter_final"),
            converted: Some(folder.join("adapter_converted")).filter(|folder| folder.exists()),
            batches: rows.iter().map(Rows::batch).collect::<Result<_>>()?,
            examples: rows.iter().flat_map(Rows::examples).collect(),
            expected: expected.into_iter().collect(),
            steps: read_json(&folder.join("steps.json"))?,
        })
    }

    /// Opens the base in `dtype` on the tests' [`device`] and attaches the initial adapter.
    ///
    /// # Errors
    /// If either cannot be read.
    pub fn attach(&self, dtype: DType) -> Result<(Base, Attached)> {
        let mut base = Base::open(&self.model.to_string_lossy(), Precision::Cast(dtype))?;
        base.place(&device()?)?;
        let reading = Reading {
            strict: StrictBase::No,
            residual_base: self.converted.as_ref().map(|_| ResidualBase::Original),
        };
        let attached = load_adapter(&mut base, "default", &self.init, reading)?;
        Ok((base, attached))
    }

    /// The names of all cases, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn names() -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder().join("cases"))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// The expected tensors whose names begin with `prefix`, without it.
    #[must_use]
    pub fn expected_under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let strip = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        self.expected.iter().filter_map(strip).collect()
    }
}

impl Rows {
    /// The rows without padding.
    #[must_use]
    pub fn examples(&self) -> Vec<Example> {
        let rows = self.input_ids.iter().zip(&self.labels).zip(&self.lengths);
        let example = |((ids, labels), &used): ((&Vec<u32>, &Vec<i32>), &usize)| Example {
            ids: ids[..used].to_vec(),
            labels: labels[..used].to_vec(),
            ..Example::default()
        };
        rows.map(example).collect()
    }

    fn batch(&self) -> Result<Batch> {
        let (rows, length) = (self.input_ids.len(), self.input_ids[0].len());
        let segments = self
            .lengths
            .iter()
            .flat_map(|&used| (0..length).map(move |i| u32::from(i < used)));
        let tokens = Tokens {
            rows,
            length,
            ids: self.input_ids.concat(),
            segments: segments.collect(),
            positions: (0..rows).flat_map(|_| 0..length as u32).collect(),
        };
        Ok(Batch::new(tokens, self.labels.concat())?)
    }
}

/// Reads a JSON file.
///
/// # Errors
/// If it is missing or of another form.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
