//! Running a run file.

use crate::adapters::{classes_in, save_trained};
use crate::base::{Base, BaseFiles};
use crate::card::training;
use crate::device::device;
use crate::families::FULL;
use crate::paths::{absolute, real};
use crate::rows::TaskRows;
use crate::{Error, Result, hub, merge_into};
use candle_core::DType;
use lowrank_adapter::{
    AdapterConfig, Attached, Param, SEQ_CLS, Selection, Source, Start, attach, train_all,
};
use lowrank_data::{ChatDate, Classes, Dataset, Plan};
use lowrank_format::{CONFIG_FILE, Existing, PeftFolder};
use lowrank_models::{Embedded, Head, Precision};
use lowrank_train::{Held, Mode, Progress, Rows, RunFile, RunFolder, Summary, TaskKeys, Trainable};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The name that run files train under; PEFT's own for a single adapter.
pub(crate) const NAME: &str = "default";

/// The key that may hold a word for names that only the model knows.
const TARGETS: &str = "target_modules";

const TASK_TYPE: &str = "task_type";

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

/// A run before its first step: everything that its file names, opened and fitted together. Nothing has been written.
pub(crate) struct Prepared {
    /// The run file with every default of its family.
    pub run: RunFile,
    pub base: Base,
    pub data: Dataset,
    pub held_out: Option<Dataset>,
    pub method: Method,
    pub outlook: Outlook,
    folder: PathBuf,
}

/// What a trainer says of a run before its first step.
pub(crate) struct Outlook {
    /// Which rows every step takes.
    pub steps: Plan,
    /// The tensors that are updated.
    pub trained: Vec<Param>,
    /// Scalars that are trained at the start.
    pub trainable_parameters: usize,
    /// Bytes of the optimiser's moments.
    pub moments: usize,
}

/// What a run trains.
pub(crate) enum Method {
    /// Every weight.
    Whole(Vec<Param>),
    Adapter(Box<Attached>),
}

impl Method {
    pub fn trainable<'a>(&'a mut self, base: &'a Base) -> Trainable<'a> {
        let model = base.model.as_ref();
        match self {
            Self::Whole(params) => Trainable::whole(model, NAME, params.clone()),
            Self::Adapter(attached) => Trainable::adapter(model, attached),
        }
    }
}

impl Prepared {
    /// # Errors
    /// If the run file asks for what is not there, or for what a trainer refuses.
    pub fn new(run: &RunFile, origin: &Path) -> Result<Self> {
        let mut run = run.clone();
        let folder = absolute(Path::new(&run.output.dir));
        keep_inputs(&run, &folder, origin)?;
        RunFolder::check(&folder).map_err(|error| at_output(origin, error))?;
        let mut plan = resolve(&mut run, origin)?;
        let device = device(run.model.device).map_err(Error::under(origin, "model.device"))?;
        let at_source = Error::under(origin, "model.source");
        let mut files = BaseFiles::open(&run.model.source).map_err(&at_source)?;
        if let Some(template) = &run.data.chat_template {
            files
                .set_chat_template(template)
                .map_err(Error::under(origin, "data.chat_template"))?;
        }
        if run.task != TaskKeys::CausalLm
            && let (Some(plan), Some(layer)) = (&mut plan, files.drawn_layer())
        {
            plan.config.common.save_module(layer);
            run.adapter.keys = written_keys(&plan.config);
        }
        if let Some(date) = run.data.chat_date {
            files.set_chat_date(date);
        } else if files
            .chat_template()
            .is_ok_and(|template| template.tells_time())
        {
            run.data.chat_date = Some(files.chat_date());
        }
        let known = plan.as_ref().and_then(|plan| plan.classes.clone());
        let rows = TaskRows::open(&run, &files, known.or(files.classes()), origin)?;
        let TaskRows { data, held_out } = rows;
        let head = match data.classes() {
            Some(classes) => Head::Classes {
                num_labels: classes.count(),
                seed: run.train.seed,
            },
            None => Head::Language,
        };
        let mut base = files
            .load(precision(run.model.dtype), head)
            .map_err(at_source)?;
        base.classes = data.classes().cloned();
        base.set_compute(run.train.compute);
        base.place(&device)
            .map_err(Error::under(origin, "model.device"))?;
        let mut method = method(plan, &run, &mut base, origin)?;
        // What a trainer refuses, before there is a folder, and before what is in it is removed.
        let rows = Rows::new(&data, held_out.as_ref());
        let outlook = Outlook::new(&run, &mut method.trainable(&base), rows)
            .map_err(|error| in_run_file(origin, error.into()))?;
        Ok(Self {
            run,
            base,
            data,
            held_out,
            method,
            outlook,
            folder,
        })
    }
}

impl Outlook {
    fn new(
        run: &RunFile,
        trainable: &mut Trainable<'_>,
        rows: Rows<'_>,
    ) -> lowrank_train::Result<Self> {
        let trainer = rows.trainer(trainable, run)?;
        Ok(Self {
            steps: trainer.plan().clone(),
            trained: trainer.optimizer().params().to_vec(),
            trainable_parameters: trainer.trainable_parameters(),
            moments: trainer.optimizer().bytes(),
        })
    }
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
    if mode == Mode::Resume && run.data.chat_date.is_none() {
        run.data.chat_date = begun_on(&run, origin)?;
    }
    let Prepared {
        run,
        mut base,
        data,
        held_out,
        mut method,
        outlook,
        folder,
    } = Prepared::new(&run, origin)?;
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
    let none = data.summary().unsupervised;
    if none > 0 {
        progress.warning(&format!(
            "data.train: of {none} rows nothing is learnt: they hold nothing that is supervised, or lost it where they were cut"
        ));
    }
    let trainable_parameters = outlook.trainable_parameters;
    let folder = open_folder(&folder, mode, origin)?;
    let rows = Rows::new(&data, held_out.as_ref());
    let mut trainable = method.trainable(&base);
    let summary = lowrank_train::train(&folder, &run, &mut trainable, rows, progress)?;
    drop(trainable);
    let result = match method {
        Method::Whole(_) => {
            let selection = Selection::one(NAME);
            let existing = Existing::Replace;
            merge_into(&mut base, &selection, None, &folder.model(), existing)?.folder
        }
        Method::Adapter(attached) => {
            let fingerprint = base.fingerprint()?;
            let training = training(&run, &folder, &data, held_out.as_ref(), &summary);
            save_trained(
                &attached,
                &fingerprint,
                base.classes.as_ref(),
                &folder.adapter(),
                Existing::Replace,
                Some(&training),
            )?
        }
    };
    Ok(Trained {
        summary,
        result,
        trainable_parameters,
    })
}

/// The day that the run in the output folder told its chat template, if it told any.
fn begun_on(run: &RunFile, origin: &Path) -> Result<Option<ChatDate>> {
    let path = RunFolder::run_file_in(Path::new(&run.output.dir));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let (origin, path) = (origin.display(), path.display());
            let what = format!("{origin}: `output.dir`: cannot read {path}: {error}");
            return Err(Error::Usage(what));
        }
    };
    Ok(RunFile::parse(&text, &path, &[])?.data.chat_date)
}

fn precision(held: Held) -> Precision {
    match held {
        Held::AsStored => Precision::AsStored,
        Held::F32 => Precision::Cast(DType::F32),
        Held::F64 => Precision::Cast(DType::F64),
        Held::F16 => Precision::Cast(DType::F16),
        Held::Bf16 => Precision::Cast(DType::BF16),
        Held::Nf4 => Precision::Nf4 { double: true },
    }
}

/// The adapter that a run file trains.
struct Planned {
    config: AdapterConfig,
    start: Start,
    /// Those that the adapter that is started from tells apart.
    classes: Option<Classes>,
}

/// Puts what is trained into the model.
fn method(plan: Option<Planned>, run: &RunFile, base: &mut Base, origin: &Path) -> Result<Method> {
    let Some(Planned {
        mut config, start, ..
    }) = plan
    else {
        return Ok(Method::Whole(train_all(base.model.as_mut(), NAME)?));
    };
    let (name, revision) = base.name();
    config.common.base_model_name_or_path = Some(name);
    config.common.revision = revision;
    let init_from = run.adapter.init_from.as_ref().map(PathBuf::from);
    let attached = attach(base.model.as_mut(), NAME, &config, start);
    let attached = attached.map_err(|source| match init_from {
        Some(folder) => Error::within(folder)(source),
        None => in_adapter_table(origin, &source),
    })?;
    Ok(Method::Adapter(Box::new(attached)))
}

/// A folder that is not empty is told as it is; anything else names the key.
fn open_folder(path: &Path, mode: Mode, origin: &Path) -> Result<RunFolder> {
    RunFolder::open(path, mode).map_err(|error| at_output(origin, error))
}

fn at_output(origin: &Path, error: lowrank_train::Error) -> Error {
    match Error::from(error) {
        error if error.is_usage() => error,
        error => Error::under(origin, "output.dir")(error),
    }
}

/// Names the run file in an error about what it says.
fn in_run_file(origin: &Path, error: Error) -> Error {
    match error {
        error if error.is_usage() => Error::Usage(format!("{}: {error}", origin.display())),
        error => error,
    }
}

/// Something in the run file's `[adapter]` table.
fn in_adapter_table(origin: &Path, error: &lowrank_adapter::Error) -> Error {
    Error::Usage(format!("{}: [adapter]: {error}", origin.display()))
}

/// A run replaces what its folder holds: what it reads must lie elsewhere, or it could not be run again.
fn keep_inputs(run: &RunFile, out: &Path, origin: &Path) -> Result<()> {
    let source = &run.model.source;
    let inputs = [
        (
            "model.source",
            Embedded::named(source).is_none().then_some(source),
        ),
        ("adapter.init_from", run.adapter.init_from.as_ref()),
    ];
    for (key, input) in inputs {
        let Some(input) = input else { continue };
        let (inner, outer) = (real(Path::new(input)), real(out));
        let what = if inner.starts_with(&outer) {
            "lies inside `output.dir`, which the run writes to"
        } else if outer.starts_with(&inner) {
            "contains `output.dir`, and a run writes nothing into what it reads"
        } else {
            continue;
        };
        return Err(Error::Usage(format!(
            "{}: `{key} = \"{input}\"` {what}; choose another folder",
            origin.display()
        )));
    }
    Ok(())
}

/// Reads the `[adapter]` table, with `init_from`, and writes every default back into the run file. None: all weights
/// are trained.
fn resolve(run: &mut RunFile, origin: &Path) -> Result<Option<Planned>> {
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
        return Ok(None);
    }
    task_type(&mut keys, run.task).map_err(wrong)?;
    let (mut tensors, mut classes) = (None, None);
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
        let folder = hub::adapter(&folder).map_err(Error::under(origin, "adapter.init_from"))?;
        let files = PeftFolder::read(&folder)?;
        let in_config = Error::within(folder.join(CONFIG_FILE));
        let stored = lowrank_registry::by_peft_type(&files.peft_type).map_err(&in_config)?;
        if named.is_some() && stored.name() != family.name() {
            let (ours, theirs) = (family.name(), stored.name());
            let what = format!("family = \"{ours}\", but init_from holds a \"{theirs}\" adapter");
            return Err(wrong(lowrank_adapter::Error::Other(what)));
        }
        family = stored;
        let config = AdapterConfig::parse(family, &files.config, Source::AdapterFolder)
            .and_then(|config| config.read_as(run.adapter.residual_base))
            .map_err(&in_config)?;
        if config.common.is_classifier() != (run.task != TaskKeys::CausalLm) {
            let stored = config.common.task_type.as_deref().unwrap_or("none");
            let what = format!(
                "init_from holds an adapter of the task type {stored}, which `task.kind` contradicts"
            );
            return Err(wrong(lowrank_adapter::Error::Other(what)));
        }
        keys = agree(&config, &keys).map_err(wrong)?;
        classes = classes_in(&files)?;
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
    Ok(Some(Planned {
        config,
        start,
        classes,
    }))
}

/// A classifier's adapter says so, as PEFT's does, and trains the head by that.
fn task_type(keys: &mut Map<String, Value>, task: TaskKeys) -> Result<(), lowrank_adapter::Error> {
    let is_classifier = task != TaskKeys::CausalLm;
    match keys.get(TASK_TYPE).and_then(Value::as_str) {
        None if is_classifier => {
            keys.insert(TASK_TYPE.into(), SEQ_CLS.into());
        }
        Some(given) if is_classifier != (given == SEQ_CLS) => {
            let kind = if is_classifier {
                "classification"
            } else {
                "causal-lm"
            };
            let what = format!("`{TASK_TYPE} = \"{given}\"` contradicts `task.kind = \"{kind}\"`");
            return Err(lowrank_adapter::Error::Config { what });
        }
        _ => {}
    }
    Ok(())
}

/// The keys of a stored configuration; what the run file gives beside them must say the same.
fn agree(
    stored: &AdapterConfig,
    given: &Map<String, Value>,
) -> Result<Map<String, Value>, lowrank_adapter::Error> {
    let mut keys = written_keys(stored);
    // What all linear layers are depends on the model; if the adapter does not have them all, or has others, its tensors
    // will not fit.
    if given
        .get(TARGETS)
        .and_then(Value::as_str)
        .is_some_and(|word| word.eq_ignore_ascii_case("all-linear"))
    {
        keys.insert(TARGETS.into(), given[TARGETS].clone());
    }
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
