//! The rows of a run and of an evaluation, and where they are kept.

use crate::base::{Base, BaseFiles};
use crate::{Error, Result, hub};
use lowrank_data::{
    Cache, Classes, Dataset, Example, Expected, Kind, Options, Tokenizer, read_texts,
};
use lowrank_models::Reading;
use lowrank_train::{CacheKey, RunFile, TaskKeys};
use std::env;
use std::path::{Path, PathBuf};

/// Files of more bytes together are kept tokenised, instead of all rows in memory.
const LARGE: u64 = 64 << 20;

/// The environment's name for the folder that things are kept in.
const VARIABLE: &str = "LOWRANK_CACHE";

/// The rows that a run file names.
pub(crate) struct TaskRows {
    pub data: Dataset,
    pub held_out: Option<Dataset>,
}

impl TaskRows {
    /// `known` are the classes that the base, or the adapter that is started from, tells apart already.
    pub fn open(
        run: &RunFile,
        base: &BaseFiles,
        known: Option<Classes>,
        origin: &Path,
    ) -> Result<Self> {
        let options = Options {
            max_length: run.data.max_length,
            end_token: base.info.eos_token_ids.first().copied(),
            vocab: base.info.vocab_size,
            limit: None,
        };
        let open = |files: &[String], key, expected: Expected<'_>| {
            let data = open_expected(files, base, &options, expected, &run.data.cache)
                .map_err(Error::under(origin, key))?;
            check_kinds(&data, run.task, origin, key)?;
            Ok::<_, Error>(data)
        };
        let given = match run.task {
            TaskKeys::Classification { num_labels } => num_labels,
            TaskKeys::CausalLm => None,
        };
        let known = known.filter(|known| given.is_none_or(|count| count == known.count()));
        let expected = match &known {
            Some(known) if run.task != TaskKeys::CausalLm => Expected::Given(known),
            _ => Expected::Found(given),
        };
        let files = run.data.train.iter();
        let (patterns, weights): (Vec<String>, Vec<f64>) = files
            .map(|files| (files.path.clone(), files.weight))
            .unzip();
        let data = open(&patterns, "data.train", expected)?;
        let (data, mut held_out) = match run.data.eval_fraction {
            None => (data, None),
            Some(fraction) => {
                let parts = data.split(fraction, run.train.seed).map_err(Error::from);
                let key = Error::under(origin, "data.eval_fraction");
                let (data, held_out) = parts.map_err(key)?;
                (data, Some(held_out))
            }
        };
        let data = data.weighted(&weights).map_err(Error::from);
        let data = data.map_err(Error::under(origin, "data.train"))?;
        if !run.data.eval.is_empty() {
            let expected = match data.classes() {
                Some(classes) => Expected::Given(classes),
                None => Expected::Found(None),
            };
            let eval = open(&run.data.eval, "data.eval", expected)?;
            held_out = Some(eval.with_references()?);
        }
        let smoothing = run.train.blur.label_smoothing;
        if smoothing > 0.0 && data.classes().is_some_and(Classes::is_regression) {
            return Err(Error::Usage(format!(
                "{}: `train.label_smoothing` is {smoothing}, and the labels of a regression are values, which are not smoothed; \
                 leave it out",
                origin.display()
            )));
        }
        Ok(Self { data, held_out })
    }
}

/// Refuses rows that the task has no use for.
fn check_kinds(data: &Dataset, task: TaskKeys, origin: &Path, key: &str) -> Result<()> {
    let is_classification = task != TaskKeys::CausalLm;
    let mut files = data.summary().files.iter();
    let Some(file) = files.find(|file| (file.kind == Kind::Labelled) != is_classification) else {
        return Ok(());
    };
    let (origin, path, kind) = (origin.display(), file.path.display(), file.kind);
    let what = match is_classification {
        true => format!(
            "`task.kind = \"classification\"` needs rows {}",
            Kind::Labelled
        ),
        false => "`task.kind = \"causal-lm\"` cannot learn from labels; set `task.kind = \"classification\"`".to_owned(),
    };
    Err(Error::Usage(format!(
        "{origin}: `{key}`: {path} has rows {kind}, and {what}"
    )))
}

/// Opens rows with the base's tokenizer, which rows of token ids do not need, and with its chat template, which only rows of
/// messages need. A file may be one of the hub's:
/// `hub:org/name/file` or `hub:org/name@revision/file`. Rows of large files are kept tokenised in the folder that LOWRANK_CACHE names,
/// or else in a `lowrank` folder among the user's caches, and read one at a time.
///
/// # Errors
/// If a row cannot be read (the message names file and line), has a label that is none of the base's classes, or is longer
/// than the model can.
pub fn open_data(files: &[String], base: &Base, options: &Options) -> Result<Dataset> {
    let expected = match &base.classes {
        Some(classes) => Expected::Given(classes),
        None => Expected::Found(None),
    };
    let data = open_expected(files, base, options, expected, &CacheKey::Auto)?;
    Ok(data.with_references()?)
}

/// Opens the texts of rows to be embedded, in the base's own tokenizer; files are as [`open_data`]'s.
///
/// # Errors
/// If there is no tokenizer that can be read, or a row cannot be read; the message names file and line.
pub fn open_texts(files: &[String], base: &BaseFiles, options: &Options) -> Result<Vec<Example>> {
    let tokenizer = base.tokenizer()?;
    Ok(read_texts(&hub::data(files)?, &tokenizer, options)?)
}

fn open_expected(
    files: &[String],
    base: &BaseFiles,
    options: &Options,
    expected: Expected<'_>,
    key: &CacheKey,
) -> Result<Dataset> {
    let (tokenizer, broken): (Option<Tokenizer>, Option<Error>) = match base.has_tokenizer() {
        true => match base.tokenizer() {
            Ok(tokenizer) => {
                let template = base.chat_template();
                let template = template.map_err(|error| error.to_string());
                (Some(tokenizer.with_chat_template(template)), None)
            }
            Err(error) => (None, Some(error)),
        },
        false => (None, None),
    };
    let (found, tokenizer) = (hub::data(files)?, tokenizer.as_ref());
    let opened = match cache(key)? {
        Some(cache) => Dataset::open_cached(&found, tokenizer, options, expected, &cache),
        None => Dataset::open_with(&found, tokenizer, options, expected),
    };
    let data = match (opened, broken) {
        // A tokenizer that cannot be read matters to rows that need one.
        (Err(error), Some(broken)) if error.needs_tokenizer() => return Err(broken),
        (data, _) => data?,
    };
    if base.info.reading == Reading::BothWays
        && let Some(file) = data
            .summary()
            .files
            .iter()
            .find(|file| file.kind != Kind::Labelled)
    {
        return Err(Error::Usage(format!(
            "{}: rows {} are for models that continue texts, and a {} reads texts as a whole; expected rows {} for a classifier",
            file.path.display(),
            file.kind,
            base.info.model_type,
            Kind::Labelled
        )));
    }
    let (longest, limit) = (data.longest(), base.info.max_position_embeddings);
    if longest > limit {
        return Err(Error::TooLong {
            files: format!("`{}`", files.join("`, `")),
            longest,
            limit,
        });
    }
    Ok(data)
}

/// Where rows are kept, if they are.
fn cache(key: &CacheKey) -> Result<Option<Cache>> {
    let (folder, at_least, required) = match key {
        CacheKey::Off => return Ok(None),
        CacheKey::Auto => (folder(), LARGE, false),
        CacheKey::On => (folder(), 0, true),
        CacheKey::In(folder) => (Some(PathBuf::from(folder)), 0, true),
    };
    match folder {
        Some(folder) => Ok(Some(Cache {
            folder,
            at_least,
            required,
        })),
        None if required => Err(Error::Usage(format!(
            "`data.cache = true`, and there is no home folder: set {VARIABLE} to a folder, or name one in `data.cache`"
        ))),
        None => Ok(None),
    }
}

/// The folder for tokenised rows.
fn folder() -> Option<PathBuf> {
    let folder = |name: &str| {
        let value = env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    let ours = folder(VARIABLE).or_else(|| {
        let caches = folder("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")))?;
        Some(caches.join("lowrank"))
    })?;
    Some(ours.join("rows"))
}
