//! Running a run file, and writing stand-alone models.

use crate::base::Base;
use crate::{Error, Result, save_adapter};
use candle_core::DType;
use lowrank_adapter::{AdapterConfig, Selection, Source, Start, attach, train_all};
use lowrank_data::{Dataset, Options, Tokenizer};
use lowrank_format::{
    AtomicFolder, CONFIG_FILE, Existing, PeftFolder, atomic_write_file, copy_side_files,
    python_json, write_sharded,
};
use lowrank_merge::fold;
use lowrank_models::Precision;
use lowrank_train::{Held, Mode, Progress, Rows, RunFile, RunFolder, Summary, Trainable};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The name that run files train under; PEFT's own for a single adapter.
const NAME: &str = "default";

/// The family that trains every weight; it is no adapter.
const FULL: &str = "full";

/// Shards of written models hold at most this many bytes, as Hugging Face's do.
const SHARD_BYTES: u64 = 5_000_000_000;

/// What a run left behind.
#[derive(Debug)]
pub struct Trained {
    /// What the trainer says.
    pub summary: Summary,
    /// `adapter/`, or `model/` after full training.
    pub result: PathBuf,
    /// Scalars that were trained.
    pub trainable_parameters: usize,
}

/// What a run file trains.
enum Plan {
    Full,
    Adapter { config: AdapterConfig, start: Start },
}

/// Runs a run file to the end and writes its result. `origin` is the file, for messages.
///
/// # Errors
/// If the run file asks for what is not there, or the run fails; [`Error::is_usage`] tells the two apart.
pub fn train(
    run: &RunFile,
    origin: &Path,
    mode: Mode,
    progress: &mut dyn Progress,
) -> Result<Trained> {
    let mut run = run.clone();
    let path = absolute(Path::new(&run.output.dir));
    keep_inputs(&run, &path, origin)?;
    let plan = resolve(&mut run, origin)?;
    let precision = match run.model.dtype {
        Held::AsStored => Precision::AsStored,
        Held::F32 => Precision::Cast(DType::F32),
        Held::F64 => Precision::Cast(DType::F64),
    };
    let mut base = Base::open(&run.model.source, precision)?;
    let options = Options {
        max_length: run.data.max_length,
        end_token: base.info.eos_token_ids.first().copied(),
        vocab: base.info.vocab_size,
        limit: None,
    };
    let data = open_data(&run.data.train, &base, &options)?;
    let held_out = match run.data.eval.as_slice() {
        [] => None,
        files => Some(open_data(files, &base, &options)?),
    };
    for (what, data) in [
        ("data.train", Some(&data)),
        ("data.eval", held_out.as_ref()),
    ] {
        let cut = data.map_or(0, |data| data.summary().truncated);
        if cut > 0 {
            let limit = run.data.max_length;
            progress.warning(&format!(
                "{what}: {cut} rows are longer than data.max_length = {limit} and lost their right end"
            ));
        }
    }
    let rows = Rows::new(&data, held_out.as_ref());
    match plan {
        Plan::Full => {
            let folder = RunFolder::open(&path, mode)?;
            let params = train_all(base.model.as_mut(), NAME)?;
            let trainable_parameters = params.iter().map(lowrank_adapter::Param::elem_count).sum();
            let mut trainable = Trainable::whole(base.model.as_ref(), NAME, params);
            let summary = lowrank_train::train(&folder, &run, &mut trainable, rows, progress)?;
            drop(trainable);
            let selection = Selection::one(NAME);
            let existing = Existing::Replace;
            let written = merge_into(&mut base, &selection, None, &folder.model(), existing)?;
            Ok(Trained {
                summary,
                result: written.folder,
                trainable_parameters,
            })
        }
        Plan::Adapter { mut config, start } => {
            let source = base.absolute().display().to_string();
            config.common.base_model_name_or_path = Some(source);
            let model = base.model.as_mut();
            let init_from = run.adapter.init_from.as_ref().map(PathBuf::from);
            let mut attached =
                attach(model, NAME, &config, start).map_err(|source| match init_from {
                    Some(path) => Error::In { path, source },
                    None => in_adapter_table(origin, &source),
                })?;
            let folder = RunFolder::open(&path, mode)?;
            let trainable_parameters = attached.trainable_parameters();
            let mut trainable = Trainable::adapter(base.model.as_ref(), &mut attached);
            let summary = lowrank_train::train(&folder, &run, &mut trainable, rows, progress)?;
            drop(trainable);
            let fingerprint = base.fingerprint()?;
            let result = save_adapter(
                &attached,
                &fingerprint,
                &folder.adapter(),
                Existing::Replace,
            )?;
            Ok(Trained {
                summary,
                result,
                trainable_parameters,
            })
        }
    }
}

/// Something in the run file's `[adapter]` table.
fn in_adapter_table(origin: &Path, error: &lowrank_adapter::Error) -> Error {
    Error::Usage(format!("{}: [adapter]: {error}", origin.display()))
}

/// A run replaces what its folder holds: what it reads must lie elsewhere, or it could not be run again.
fn keep_inputs(run: &RunFile, out: &Path, origin: &Path) -> Result<()> {
    let inputs = [
        ("model.source", Some(&run.model.source)),
        ("adapter.init_from", run.adapter.init_from.as_ref()),
    ];
    for (key, input) in inputs {
        if let Some(input) = input
            && real(Path::new(input)).starts_with(real(out))
        {
            return Err(Error::Usage(format!(
                "{}: `{key} = \"{input}\"` lies inside `output.dir`, which the run writes to; choose another folder",
                origin.display()
            )));
        }
    }
    Ok(())
}

/// Reads the `[adapter]` table, with `init_from`, and writes every default back into the run file.
fn resolve(run: &mut RunFile, origin: &Path) -> Result<Plan> {
    let wrong = |error: lowrank_adapter::Error| in_adapter_table(origin, &error);
    let start = run.adapter.init_from.as_ref().map(PathBuf::from);
    let mut keys = run.adapter.keys.clone();
    let named = run.adapter.family.clone();
    if named.as_deref() == Some(FULL) {
        if let Some(key) = keys
            .keys()
            .next()
            .cloned()
            .or(start.map(|_| "init_from".into()))
        {
            let what = format!("`{key}` has no meaning for family \"{FULL}\"");
            return Err(wrong(lowrank_adapter::Error::Other(what)));
        }
        return Ok(Plan::Full);
    }
    let mut tensors = None;
    let word = named.as_deref().unwrap_or("lora");
    let mut family = lowrank_registry::by_name(word).map_err(|error| {
        // The registry lists adapters, and this is none.
        match lowrank_adapter::nearest(word, [FULL]) {
            Some(near) => wrong(lowrank_adapter::Error::Other(format!(
                "unknown family `{word}`, did you mean `{near}`?"
            ))),
            None => wrong(error),
        }
    })?;
    if let Some(folder) = start {
        let files = PeftFolder::read(&folder)?;
        let in_config = |source| Error::In {
            path: folder.join(CONFIG_FILE),
            source,
        };
        let stored = lowrank_registry::by_peft_type(&files.peft_type).map_err(in_config)?;
        if named.is_some() && stored.name() != family.name() {
            let (ours, theirs) = (family.name(), stored.name());
            let what = format!("family = \"{ours}\", but init_from holds a \"{theirs}\" adapter");
            return Err(wrong(lowrank_adapter::Error::Other(what)));
        }
        family = stored;
        let config = AdapterConfig::parse(family, &files.config, Source::AdapterFolder);
        keys = agree(&config.map_err(in_config)?, &keys).map_err(wrong)?;
        tensors = Some(files.tensors);
    }
    let config = AdapterConfig::parse(family, &keys, Source::RunFile).map_err(wrong)?;
    run.adapter.family = Some(family.name().to_owned());
    run.adapter.keys = written_keys(&config);
    let start = match tensors {
        Some(tensors) => Start::Saved {
            tensors,
            seed: run.train.seed,
        },
        None => Start::Seed(run.train.seed),
    };
    Ok(Plan::Adapter { config, start })
}

/// The keys of a stored configuration; what the run file gives beside them must say the same.
fn agree(
    stored: &AdapterConfig,
    given: &Map<String, Value>,
) -> Result<Map<String, Value>, lowrank_adapter::Error> {
    let keys = written_keys(stored);
    // Defaults filled in on both sides, so that `8` and `8.0`, or a missing key and its default, are the same.
    let written = written_keys(&AdapterConfig::parse(
        stored.family,
        given,
        Source::RunFile,
    )?);
    for key in given.keys() {
        if written.get(key) != keys.get(key) {
            let value =
                |keys: &Map<String, Value>| keys.get(key).map_or("absent".into(), Value::to_string);
            return Err(lowrank_adapter::Error::Config {
                what: format!(
                    "`{key} = {}`, but the adapter in init_from has {}; leave the key out or make them agree",
                    value(&written),
                    value(&keys)
                ),
            });
        }
    }
    Ok(keys)
}

/// The configuration as a run file writes it: without what belongs to adapter folders, and without nulls.
fn written_keys(config: &AdapterConfig) -> Map<String, Value> {
    let mut keys: Map<String, Value> = config.to_peft();
    for (key, _) in config.family.fixed() {
        keys.remove(key);
    }
    for key in [
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
    ] {
        keys.remove(key);
    }
    keys.retain(|_, value| !value.is_null());
    let sorted: BTreeMap<String, Value> = keys.into_iter().collect();
    sorted.into_iter().collect()
}

/// Opens rows with the base's tokenizer; rows of token ids need none.
///
/// # Errors
/// If a row cannot be read; the message names file and line.
pub fn open_data(files: &[String], base: &Base, options: &Options) -> Result<Dataset> {
    let tokenizer: Option<Tokenizer> = match base.folder().join("tokenizer.json").exists() {
        true => Some(base.tokenizer()?),
        false => None,
    };
    Ok(Dataset::open(files, tokenizer.as_ref(), options)?)
}

/// A stand-alone model that was written.
#[derive(Debug)]
pub struct Written {
    /// Its folder.
    pub folder: PathBuf,
    /// The dtype of its weights.
    pub dtype: DType,
    /// False if some layer is only near to its adapted one.
    pub exact: bool,
}

/// Folds the selected adapters into the base and writes a model folder, whole or not at all.
///
/// # Errors
/// If an adapter cannot be folded, or the folder cannot be written. [`Existing::Replace`] replaces model folders only,
/// and never one that the base was read from.
pub fn merge_into(
    base: &mut Base,
    selection: &Selection,
    dtype: Option<DType>,
    out: &Path,
    existing: Existing,
) -> Result<Written> {
    check_output(base.folder(), out, existing)?;
    let folder = AtomicFolder::create(out, existing)?;
    let folded = fold(base.model.as_mut(), selection, dtype)?;
    let tensors = folded
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor));
    write_sharded(folder.path(), tensors, SHARD_BYTES)?;
    copy_side_files(base.folder(), folder.path())?;
    let dtype = folded
        .tensors
        .first()
        .map_or(DType::F32, |(_, tensor)| tensor.dtype());
    let mut config = base.config.clone();
    if folded.untied {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    let word = match dtype {
        DType::F64 => "float64",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    // transformers 5 writes `dtype` where 4 wrote `torch_dtype`.
    let key = if config.contains_key("dtype") {
        "dtype"
    } else {
        "torch_dtype"
    };
    config.insert(key.into(), word.into());
    let text = python_json(&Value::Object(config));
    atomic_write_file(&folder.path().join("config.json"), text.as_bytes())?;
    Ok(Written {
        folder: folder.commit()?,
        dtype,
        exact: folded.exact,
    })
}

/// Nothing but a model folder may be replaced, and not the one that is being read.
fn check_output(source: &Path, out: &Path, existing: Existing) -> Result<()> {
    let refuse = |what: &str| {
        let out = out.display();
        Err(Error::Usage(format!(
            "the output folder {out} {what}; choose another"
        )))
    };
    let (inner, outer) = (real(source), real(out));
    if outer.starts_with(&inner) {
        return refuse(&format!(
            "lies inside the base model's folder {}",
            source.display()
        ));
    }
    if inner.starts_with(&outer) {
        return refuse(&format!(
            "contains the base model's folder {}",
            source.display()
        ));
    }
    let holds = out
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    if existing == Existing::Replace && holds && !out.join("config.json").exists() {
        return refuse("is neither empty nor a model's, so it is not replaced");
    }
    Ok(())
}

/// The path without links and `..`, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = absolute(path);
    let found = path.ancestors().find_map(|ancestor| {
        let real = ancestor.canonicalize().ok()?;
        Some(real.join(path.strip_prefix(ancestor).ok()?))
    });
    found.unwrap_or(path)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
