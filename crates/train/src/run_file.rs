//! The run file: what to train, on what, how, and where to.

use crate::best::{self, Judging};
use crate::error::{Error, Result};
use crate::keys::{Keys, Origin, refuse_unknown};
use crate::optimizer::{self, Chosen, Group};
use crate::place::Place;
use crate::reference::known;
use crate::schedule::{Curve, Warmup};
use lowrank_adapter::{Blur, Compute, Memory, ResidualBase};
use lowrank_data::{ChatDate, Length, MAX_CLASSES};
use serde_json::{Map, Number};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use toml::{Table, Value};

/// A whole run. Every value that parses is in range.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFile {
    /// `[model]`.
    pub model: ModelKeys,
    /// `[adapter]`.
    pub adapter: AdapterKeys,
    /// `[task]`.
    pub task: TaskKeys,
    /// `[data]`.
    pub data: DataKeys,
    /// `[train]`.
    pub train: TrainKeys,
    /// `[output]`.
    pub output: OutputKeys,
}

/// The base model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelKeys {
    /// A folder, or the name of an embedded model.
    pub source: String,
    /// How the frozen weights are held.
    pub dtype: Held,
    /// What they lie on, and are computed on.
    pub device: Place,
}

/// How frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// As the checkpoint stores them.
    AsStored,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Half precision, computed with in single precision.
    F16,
    /// Half precision with the range of single precision, computed with in single precision.
    Bf16,
    /// Layers in four bits, doubly quantised, computed with in single precision; the embedding and the head as stored.
    Nf4,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AdapterKeys {
    /// The family's name; absent means the default family, or the one of `init_from`.
    pub family: Option<String>,
    /// Start from this adapter folder.
    pub init_from: Option<String>,
    /// What the base is to `init_from`, if PEFT saved that unconverted.
    pub residual_base: Option<ResidualBase>,
    /// Every other key as it was written: only the family knows them.
    pub keys: Map<String, serde_json::Value>,
}

/// The kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKeys {
    /// The next token.
    CausalLm,
    /// The class of each row, or a value.
    Classification {
        /// How many classes there are, 1 for a value; found in the rows if it is not given.
        num_labels: Option<NonZeroUsize>,
    },
}

/// The rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DataKeys {
    /// Files to train on, at least one pattern.
    pub train: Vec<TrainFiles>,
    /// Held-out files; may be empty.
    pub eval: Vec<String>,
    /// The share of the rows to train on that is held out instead, between 0 and 1; only without `eval`.
    pub eval_fraction: Option<f64>,
    /// Longer rows lose their right end, in tokens; as long are the sequences that rows are packed into.
    pub max_length: NonZeroUsize,
    /// Whether rows are joined into sequences, in which they do not see each other.
    pub packing: bool,
    /// Whether epochs are permuted.
    pub shuffle: bool,
    /// What writes rows of messages, if not the model's own template: a path, or a template's text.
    pub chat_template: Option<String>,
    /// What a template that tells the date is told, if not the day on which the run began.
    pub chat_date: Option<ChatDate>,
    /// Whether rows of similar length are put side by side; never together with `packing`.
    pub group_by_length: bool,
    /// Whether tokenised rows are kept in files.
    pub cache: CacheKey,
}

/// Files to train on, and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainFiles {
    /// A path or a glob.
    pub path: String,
    /// How often an epoch takes their rows, on average; above 0.
    pub weight: f64,
}

/// Whether tokenised rows are kept in files, instead of all of them in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheKey {
    /// If the files are large.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
    /// Always, in this folder.
    In(String),
}

/// The loop.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainKeys {
    /// `steps` or `epochs`.
    pub length: Length,
    /// Rows in a micro-batch; sequences, if they are packed.
    pub batch_size: NonZeroUsize,
    /// Micro-batches in a step.
    pub accumulate: NonZeroUsize,
    /// The optimiser with its constants.
    pub optimizer: Chosen,
    /// The learning rate of the factors that start at 0, in units of the others' (LoRA+); none: they are alike.
    pub lora_plus_ratio: Option<f64>,
    /// Settings of groups of tensors, by the groups' names (`[train.groups.<name>]`).
    pub groups: BTreeMap<String, Group>,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How it falls.
    pub schedule: Curve,
    /// What it falls to (`min_learning_rate`), at most `learning_rate`.
    pub least_rate: f64,
    /// How it rises.
    pub warmup: Warmup,
    /// The global norm that gradients are clipped to; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Smoothed labels and noise on embedded tokens (`label_smoothing`, `neftune_noise_alpha`).
    pub blur: Blur,
    /// What products with frozen weights are computed in (`compute`).
    pub compute: Compute,
    /// Whether blocks are computed again instead of kept (`recompute`).
    pub memory: Memory,
    /// Steps between evaluations; 0 = only before step 1 and at the end.
    pub eval_every: u64,
    /// What is done about evaluations.
    pub judging: Judging,
    /// Steps between checkpoints; 0 = only at the end.
    pub save_every: u64,
    /// How many checkpoints are kept.
    pub keep_checkpoints: NonZeroUsize,
    /// What everything random depends on.
    pub seed: u64,
    /// What happens to a step whose loss or gradient is not finite.
    pub on_non_finite: OnNonFinite,
}

/// What happens to a step whose loss or gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNonFinite {
    /// The run stops with an error.
    Stop,
    /// The step counts, and changes nothing.
    Skip,
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputKeys {
    /// The run's folder.
    pub dir: String,
}

const SECTIONS: [&str; 6] = ["model", "adapter", "task", "data", "train", "output"];

const PATHS: &str = "a list of paths, for example [\"train.jsonl\"]";
const TRAIN_FILES: &str = "a list of paths, for example [\"train.jsonl\"], or with a weight {path = \"more.jsonl\", weight = 0.5}";
/// Rows of an epoch are listed in memory.
const MAX_WEIGHT: f64 = 1000.0;

/// Steps, epochs and seeds are TOML integers.
pub(crate) const MAX: u64 = i64::MAX as u64;

/// A step's rows are listed in memory.
const MAX_ROWS: u64 = 65_536;
const MAX_STEP_ROWS: u64 = 1 << 20;

impl RunFile {
    /// Reads a run file's text. `path` is for messages only; `sets` are `key=value` with a dotted key and a TOML value
    /// (a bare word is a string), applied in order.
    ///
    /// # Errors
    /// On wrong syntax (with line and column), an unknown key (with the nearest known one), a value of the wrong type
    /// or out of range, keys that exclude each other, or what is planned but not built. Each names file, key and value.
    pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Self> {
        let (origin, mut root) = Origin::parse(text, path, sets)?;
        refuse_unknown(&origin, "", &root, &SECTIONS)?;
        let mut section = |name| Keys::section(&mut root, &origin, name);
        let run = Self {
            model: model(section("model")?, &origin)?,
            adapter: adapter(section("adapter")?, &origin)?,
            task: task(section("task")?, &origin)?,
            data: data(section("data")?, &origin)?,
            train: train(section("train")?, &origin)?,
            output: output(section("output")?, &origin)?,
        };
        if run.data.packing && run.task != TaskKeys::CausalLm {
            let what = "`data.packing = true` joins rows, and `task.kind = \"classification\"` tells them apart; \
                        leave packing out";
            return Err(origin.error("data.packing", what));
        }
        if (run.model.device, run.train.compute) == (Place::Cuda, Compute::Bf16) {
            let what = "`train.compute = \"bf16\"` with `model.device = \"cuda\"` is not yet supported, expected \"f32\"";
            return Err(origin.error("train.compute", what));
        }
        Ok(run)
    }

    /// The file with every default filled in and paths made absolute from the working directory (a model or an
    /// adapter only if it exists as a path). Reading it again gives the same run.
    #[must_use]
    pub fn resolved(&self) -> String {
        crate::resolved::table(self).to_string()
    }
}

fn missing(origin: &Origin, key: &str, expected: &str) -> Error {
    origin.error(key, format!("`{key}` is missing, expected {expected}"))
}

fn model(keys: Keys<'_>, origin: &Origin) -> Result<ModelKeys> {
    const SOURCE: &str =
        "a model folder, a GGUF file, a hub id or the name of an embedded model, as a string";
    let mut keys = keys.only(&known("model"))?;
    let source = keys.string("source", SOURCE)?;
    let source = source.ok_or_else(|| missing(origin, "model.source", SOURCE))?;
    if source.starts_with("hub:") {
        return Err(origin.error(
            "model.source",
            format!(
                "`model.source = \"{source}\"` is for data; give a model of the hub as `org/name`"
            ),
        ));
    }
    let dtypes = [
        ("as-stored", Held::AsStored),
        ("f32", Held::F32),
        ("bf16", Held::Bf16),
        ("f16", Held::F16),
        ("f64", Held::F64),
        ("nf4", Held::Nf4),
    ];
    let dtype = keys.word("dtype", &dtypes, &[])?;
    Ok(ModelKeys {
        source,
        dtype: dtype.unwrap_or(Held::AsStored),
        device: keys.word("device", &Place::WORDS, &[])?.unwrap_or_default(),
    })
}

fn adapter(mut keys: Keys<'_>, origin: &Origin) -> Result<AdapterKeys> {
    let family = keys.string("family", "the name of a family, as a string")?;
    let init_from = keys.string("init_from", "an adapter folder, as a string")?;
    let residual_base = keys.word("residual_base", &ResidualBase::WORDS, &[])?;
    if residual_base.is_some() && init_from.is_none() {
        let what =
            "`adapter.residual_base` says how `adapter.init_from` is read, and that is missing";
        return Err(origin.error("adapter.residual_base", what));
    }
    let mut rest = Map::new();
    for (key, value) in keys.rest() {
        let name = format!("adapter.{key}");
        let json = to_json(&value).ok_or_else(|| {
            origin.expected(&name, &value, "finite numbers, and neither dates nor times")
        })?;
        rest.insert(key, json);
    }
    Ok(AdapterKeys {
        family,
        init_from,
        residual_base,
        keys: rest,
    })
}

fn to_json(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) => text.clone().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => Number::from_f64(*number)?.into(),
        Value::Boolean(value) => (*value).into(),
        Value::Array(items) => items
            .iter()
            .map(to_json)
            .collect::<Option<Vec<_>>>()?
            .into(),
        Value::Table(table) => {
            let pairs = table.iter();
            let pairs = pairs.map(|(key, value)| Some((key.clone(), to_json(value)?)));
            serde_json::Value::Object(pairs.collect::<Option<_>>()?)
        }
        Value::Datetime(_) => return None,
    })
}

fn task(keys: Keys<'_>, origin: &Origin) -> Result<TaskKeys> {
    let mut keys = keys.only(&known("task"))?;
    let num_labels = count(&mut keys, "num_labels", 1, MAX_CLASSES as u64)?;
    let kinds = [
        ("causal-lm", TaskKeys::CausalLm),
        ("classification", TaskKeys::Classification { num_labels }),
    ];
    let kind = keys.word("kind", &kinds, &[])?;
    let kind = kind.unwrap_or(TaskKeys::CausalLm);
    if kind == TaskKeys::CausalLm && num_labels.is_some() {
        let what =
            "`task.num_labels` is for `task.kind = \"classification\"`; set that, or leave it out";
        return Err(origin.error("task.num_labels", what));
    }
    Ok(kind)
}

fn data(keys: Keys<'_>, origin: &Origin) -> Result<DataKeys> {
    let mut keys = keys.only(&known("data"))?;
    let train = train_files(&mut keys, origin)?;
    let eval = keys.strings("eval", PATHS)?.unwrap_or_default();
    let between = |number: f64| 0.0 < number && number < 1.0;
    let eval_fraction = keys.number("eval_fraction", "a number between 0 and 1", between)?;
    if eval_fraction.is_some() && !eval.is_empty() {
        let what = "`data.eval` and `data.eval_fraction` are both given, expected one of them";
        return Err(origin.error("data.eval_fraction", what));
    }
    let packing = keys.boolean("packing")?.unwrap_or(false);
    let group_by_length = keys.boolean("group_by_length")?.unwrap_or(false);
    if packing && group_by_length {
        let what = "`data.group_by_length` and `data.packing` are both true: packed sequences are of one length already; \
                    leave one of them out";
        return Err(origin.error("data.group_by_length", what));
    }
    // A vocabulary's ids and positions are 32 bits wide.
    let max_length = count(&mut keys, "max_length", 2, u64::from(u32::MAX))?;
    Ok(DataKeys {
        train,
        eval,
        max_length: max_length.unwrap_or(const { NonZeroUsize::new(512).expect("not 0") }),
        eval_fraction,
        packing,
        shuffle: keys.boolean("shuffle")?.unwrap_or(true),
        chat_template: keys.string(
            "chat_template",
            "a file with a chat template, or the template itself, as a string",
        )?,
        chat_date: chat_date(&mut keys)?,
        group_by_length,
        cache: cache(&mut keys)?,
    })
}

fn train_files(keys: &mut Keys<'_>, origin: &Origin) -> Result<Vec<TrainFiles>> {
    let Some(value) = keys.take("train") else {
        return Err(missing(origin, "data.train", TRAIN_FILES));
    };
    let files = match &value {
        Value::Array(files) if !files.is_empty() => files,
        _ => return Err(keys.wrong("train", &value, TRAIN_FILES)),
    };
    let mut found = Vec::with_capacity(files.len());
    for (number, file) in files.iter().enumerate() {
        let table = match file {
            Value::String(path) if !path.is_empty() => {
                found.push(TrainFiles {
                    path: path.clone(),
                    weight: 1.0,
                });
                continue;
            }
            Value::Table(table) => table.clone(),
            _ => return Err(keys.wrong("train", &value, TRAIN_FILES)),
        };
        let name = format!("data.train[{number}]");
        let mut keys = Keys::new(table, origin, &name).only(&["path", "weight"])?;
        let path = keys.string("path", "a path, as a string")?;
        let in_range = |number: f64| 0.0 < number && number <= MAX_WEIGHT;
        let expected = format!("a number above 0 and at most {MAX_WEIGHT}");
        found.push(TrainFiles {
            path: path
                .ok_or_else(|| missing(origin, &format!("{name}.path"), "a path, as a string"))?,
            weight: keys.number("weight", &expected, in_range)?.unwrap_or(1.0),
        });
    }
    Ok(found)
}

fn chat_date(keys: &mut Keys<'_>) -> Result<Option<ChatDate>> {
    const EXPECTED: &str = "a date from 1970 on, like \"2026-11-23\"";
    let Some(value) = keys.take("chat_date") else {
        return Ok(None);
    };
    let date = match &value {
        Value::String(text) => text.parse().ok(),
        // TOML has dates of its own, with and without a time.
        Value::Datetime(date) => date.to_string().parse().ok(),
        _ => None,
    };
    date.map(Some)
        .ok_or_else(|| keys.wrong("chat_date", &value, EXPECTED))
}

fn cache(keys: &mut Keys<'_>) -> Result<CacheKey> {
    match keys.take("cache") {
        None => Ok(CacheKey::Auto),
        Some(Value::Boolean(true)) => Ok(CacheKey::On),
        Some(Value::Boolean(false)) => Ok(CacheKey::Off),
        Some(Value::String(word)) if word == "auto" => Ok(CacheKey::Auto),
        Some(Value::String(folder)) if !folder.is_empty() => Ok(CacheKey::In(folder)),
        Some(other) => Err(keys.wrong("cache", &other, "\"auto\", true, false or a folder")),
    }
}

fn train(keys: Keys<'_>, origin: &Origin) -> Result<TrainKeys> {
    const NOT_NEGATIVE: &str = "a finite number of at least 0";
    let mut keys = keys.only(&known("train"))?;
    let compute = [("f32", Compute::F32), ("bf16", Compute::Bf16)];
    let compute = keys.word("compute", &compute, &[])?.unwrap_or_default();
    let not_negative = |number| number >= 0.0;
    let steps = keys.integer("steps", 1..=MAX)?;
    let epochs = keys.integer("epochs", 1..=MAX)?;
    let length = match (steps, epochs) {
        (Some(_), Some(_)) => return Err(both(origin, "steps", "epochs")),
        (Some(steps), None) => Length::Steps(steps),
        (None, epochs) => Length::Epochs(epochs.unwrap_or(1)),
    };
    let warmup_steps = keys.integer("warmup_steps", 0..=MAX)?;
    let ratio = |number: f64| (0.0..=1.0).contains(&number);
    let warmup = match (
        warmup_steps,
        keys.number("warmup_ratio", "a number from 0 to 1", ratio)?,
    ) {
        (Some(_), Some(_)) => return Err(both(origin, "warmup_steps", "warmup_ratio")),
        (None, Some(ratio)) => Warmup::Ratio(ratio),
        (steps, None) => Warmup::Steps(steps.unwrap_or(0)),
    };
    let curves = [
        ("constant", Curve::Constant),
        ("linear", Curve::Linear),
        ("cosine", Curve::Cosine),
    ];
    let on_non_finite = [("stop", OnNonFinite::Stop), ("skip", OnNonFinite::Skip)];
    let batch_size = count(&mut keys, "batch_size", 1, MAX_ROWS)?
        .unwrap_or(const { NonZeroUsize::new(8).expect("not 0") });
    let accumulate = count(&mut keys, "accumulate", 1, MAX_ROWS)?.unwrap_or(NonZeroUsize::MIN);
    let rows = batch_size.saturating_mul(accumulate);
    if rows.get() as u64 > MAX_STEP_ROWS {
        let what = format!(
            "`train.batch_size` * `train.accumulate` is {rows}, expected at most {MAX_STEP_ROWS} rows a step"
        );
        return Err(origin.error("train.accumulate", what));
    }
    let learning_rate = keys.number("learning_rate", NOT_NEGATIVE, not_negative)?;
    let learning_rate = learning_rate.unwrap_or(2e-4);
    let schedule = keys.word("schedule", &curves, &[])?;
    let schedule = schedule.unwrap_or(Curve::Constant);
    let eval_every = keys.integer("eval_every", 0..=MAX)?.unwrap_or(0);
    Ok(TrainKeys {
        length,
        batch_size,
        accumulate,
        optimizer: optimizer::read(&mut keys, origin)?,
        lora_plus_ratio: keys.number("lora_plus_ratio", "a finite number above 0", |ratio| {
            ratio > 0.0
        })?,
        groups: groups(&mut keys, origin)?,
        least_rate: least_rate(&mut keys, origin, learning_rate, schedule)?,
        learning_rate,
        schedule,
        warmup,
        max_grad_norm: keys
            .number("max_grad_norm", NOT_NEGATIVE, not_negative)?
            .unwrap_or(1.0),
        blur: Blur {
            label_smoothing: keys
                .number("label_smoothing", "a number from 0 to below 1", |share| {
                    (0.0..1.0).contains(&share)
                })?
                .unwrap_or(0.0),
            embedding_noise: keys
                .number("neftune_noise_alpha", NOT_NEGATIVE, not_negative)?
                .unwrap_or(0.0),
        },
        compute,
        memory: match keys.boolean("recompute")? {
            Some(true) => Memory::Recompute,
            _ => Memory::Keep,
        },
        judging: best::read(&mut keys, origin, eval_every)?,
        eval_every,
        save_every: keys.integer("save_every", 0..=MAX)?.unwrap_or(0),
        keep_checkpoints: count(&mut keys, "keep_checkpoints", 1, MAX)?
            .unwrap_or(const { NonZeroUsize::new(2).expect("not 0") }),
        seed: keys.integer("seed", 0..=MAX)?.unwrap_or(42),
        on_non_finite: keys
            .word("on_non_finite", &on_non_finite, &[])?
            .unwrap_or(OnNonFinite::Stop),
    })
}

fn least_rate(keys: &mut Keys<'_>, origin: &Origin, highest: f64, curve: Curve) -> Result<f64> {
    const KEY: &str = "min_learning_rate";
    let expected = format!("a number from 0 to `train.learning_rate`, which is {highest}");
    let fits = |rate: f64| (0.0..=highest).contains(&rate);
    let least = keys.number(KEY, &expected, fits)?.unwrap_or(0.0);
    if least > 0.0 && curve == Curve::Constant {
        let what = "`train.min_learning_rate` is for rates that fall, expected `train.schedule` to be \"linear\" or \"cosine\"";
        return Err(origin.error("train.min_learning_rate", what));
    }
    Ok(least)
}

fn both(origin: &Origin, first: &str, second: &str) -> Error {
    let what = format!("`train.{first}` and `train.{second}` are both given, expected one of them");
    origin.error(&format!("train.{first}"), what)
}

fn count(keys: &mut Keys<'_>, key: &str, min: u64, max: u64) -> Result<Option<NonZeroUsize>> {
    let count = keys.integer(key, min..=max)?;
    Ok(count
        .and_then(|count| usize::try_from(count).ok())
        .and_then(NonZeroUsize::new))
}

fn groups(keys: &mut Keys<'_>, origin: &Origin) -> Result<BTreeMap<String, Group>> {
    let mut groups = BTreeMap::new();
    let tables = match keys.take("groups") {
        None => Table::new(),
        Some(Value::Table(tables)) => tables,
        Some(other) => return Err(keys.wrong("groups", &other, "a table of groups")),
    };
    for (name, value) in tables {
        let dotted = format!("train.groups.{name}");
        let table = match value {
            Value::Table(table) => table,
            other => return Err(origin.expected(&dotted, &other, "a table")),
        };
        let mut keys =
            Keys::new(table, origin, &dotted).only(&["learning_rate_factor", "weight_decay"])?;
        let expected = "a finite number of at least 0";
        let factor = keys.number("learning_rate_factor", expected, |number| number >= 0.0)?;
        let weight_decay = keys.number("weight_decay", expected, |number| number >= 0.0)?;
        let group = Group {
            learning_rate_factor: factor.unwrap_or(1.0),
            weight_decay,
        };
        groups.insert(name, group);
    }
    Ok(groups)
}

fn output(keys: Keys<'_>, origin: &Origin) -> Result<OutputKeys> {
    const DIR: &str = "a folder, as a string, for example \"runs/first\"";
    let mut keys = keys.only(&known("output"))?;
    let dir = keys.string("dir", DIR)?;
    let dir = dir.ok_or_else(|| missing(origin, "output.dir", DIR))?;
    Ok(OutputKeys { dir })
}
