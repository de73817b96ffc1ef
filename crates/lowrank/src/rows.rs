//! The rows that a run or an evaluation reads, and where they are kept.

use crate::base::Base;
use crate::{Error, Result, hub};
use lowrank_data::{Cache, Dataset, Options, Tokenizer};
use lowrank_train::{CacheKey, RunFile};
use std::env;
use std::path::{Path, PathBuf};

/// Files of more bytes together are kept tokenised, instead of all rows in memory.
const LARGE: u64 = 64 << 20;

/// The environment's name for the folder that things are kept in.
const VARIABLE: &str = "LOWRANK_CACHE";

/// Opens rows with the base's tokenizer; rows of token ids need none. A file may be one of the hub's:
/// `hub:org/name/file` or `hub:org/name@revision/file`. Rows of large files are kept tokenised in the folder that
/// LOWRANK_CACHE names, or else in a `lowrank` folder among the user's caches, and read one at a time.
///
/// # Errors
/// If a row cannot be read (the message names file and line), or is longer than the model can.
pub fn open_data(files: &[String], base: &Base, options: &Options) -> Result<Dataset> {
    let data = open(files, base, options, &CacheKey::Auto)?;
    Ok(data.with_references()?)
}

/// What a run trains on, and what is held out. `origin` is its file, for messages.
pub(crate) fn of_run(
    run: &RunFile,
    base: &Base,
    options: &Options,
    origin: &Path,
) -> Result<(Dataset, Option<Dataset>)> {
    let keys = &run.data;
    let patterns: Vec<String> = keys.train.iter().map(|files| files.path.clone()).collect();
    let weights: Vec<f64> = keys.train.iter().map(|files| files.weight).collect();
    let in_train = |error: Error| Error::under(origin, "data.train")(error);
    let data = open(&patterns, base, options, &keys.cache).map_err(in_train)?;
    let (data, mut held_out) = match keys.eval_fraction {
        Some(fraction) => {
            let parts = data.split(fraction, run.train.seed).map_err(Error::from);
            let (data, held_out) = parts.map_err(Error::under(origin, "data.eval_fraction"))?;
            (data, Some(held_out))
        }
        None => (data, None),
    };
    let data = data.weighted(&weights).map_err(Error::from);
    let data = data.map_err(in_train)?;
    if !keys.eval.is_empty() {
        let eval = open(&keys.eval, base, options, &keys.cache)
            .and_then(|eval| Ok(eval.with_references()?));
        held_out = Some(eval.map_err(Error::under(origin, "data.eval"))?);
    }
    Ok((data, held_out))
}

fn open(files: &[String], base: &Base, options: &Options, key: &CacheKey) -> Result<Dataset> {
    let (tokenizer, broken): (Option<Tokenizer>, Option<Error>) = match base.has_tokenizer() {
        true => match base.tokenizer() {
            Ok(tokenizer) => (Some(tokenizer), None),
            Err(error) => (None, Some(error)),
        },
        false => (None, None),
    };
    let (found, tokenizer) = (hub::data(files)?, tokenizer.as_ref());
    let opened = match cache(key)? {
        Some(cache) => Dataset::open_cached(&found, tokenizer, options, &cache),
        None => Dataset::open(&found, tokenizer, options),
    };
    let data = match (opened, broken) {
        // A tokenizer that cannot be read matters to rows that need one.
        (Err(error), Some(broken)) if error.needs_tokenizer() => return Err(broken),
        (data, _) => data?,
    };
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
