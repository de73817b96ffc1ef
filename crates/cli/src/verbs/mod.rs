//! One module a verb.

pub mod chat;
pub mod classify;
pub mod embed;
pub mod eval;
pub mod export;
pub mod families;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod plan;
pub mod train;

use crate::arguments::ModelArguments;
use candle_core::Device;
use lowrank::adapter::{self, Selection};
use lowrank::data::named_files;
use lowrank::models::{Embedded, Precision};
use lowrank::training::{Place, RunFile};
use lowrank::{Base, Error, Reading, StrictBase, device, load_adapter, real_path};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

const VERBS: [&str; 10] = [
    "chat", "embed", "eval", "export", "families", "generate", "inspect", "merge", "plan", "train",
];
const PLANNED: [&str; 1] = ["combine"];

/// Why an unknown verb is refused.
pub fn other(words: &[OsString]) -> anyhow::Error {
    let word = words
        .first()
        .map(|word| word.to_string_lossy().into_owned())
        .unwrap_or_default();
    let what = if PLANNED.contains(&word.as_str()) {
        format!("`{word}` is not yet supported")
    } else {
        let near = adapter::nearest(&word, VERBS.into_iter().chain(PLANNED));
        match near {
            Some(near) => format!("unknown verb `{word}`, did you mean `{near}`?"),
            None => format!(
                "unknown verb `{word}`, expected one of: {}",
                VERBS.join(", ")
            ),
        }
    };
    Error::Usage(what).into()
}

/// Reads a run file.
pub fn run_file(path: &Path, sets: &[String]) -> lowrank::Result<RunFile> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(RunFile::parse(&text, path, sets)?)
}

/// Opens the base on a device and attaches its adapters; all of them are selected.
pub fn open(
    arguments: &ModelArguments,
    precision: Precision,
    place: Place,
) -> lowrank::Result<(Base, Selection)> {
    let device = device(place)?;
    let adapters = arguments
        .adapters
        .iter()
        .map(|source| source.path.as_path());
    let base = Base::open_for(&arguments.model, precision, adapters)?;
    attach(arguments, base, &device)
}

/// Moves the base to a device and attaches the adapters; all of them are selected.
pub fn attach(
    arguments: &ModelArguments,
    mut base: Base,
    device: &Device,
) -> lowrank::Result<(Base, Selection)> {
    base.place(device)?;
    let reading = Reading {
        strict: if arguments.strict_base {
            StrictBase::Yes
        } else {
            StrictBase::No
        },
        residual_base: arguments.residual_base,
    };
    let mut selected: Vec<(Arc<str>, f64)> = Vec::new();
    for (index, source) in arguments.adapters.iter().enumerate() {
        // A single adapter keeps PEFT's name for it.
        let name = match &source.name {
            Some(name) => name.clone(),
            None if index == 0 => "default".to_owned(),
            None => format!("default{index}"),
        };
        load_adapter(&mut base, &name, &source.path, reading).map_err(|error| match error {
            // A name that cannot be used is the command line's.
            Error::In { source, .. } if matches!(*source, adapter::Error::Adapter { .. }) => {
                Error::Usage(format!("--adapter: {source}"))
            }
            other => other,
        })?;
        selected.push((name.into(), source.weight));
    }
    Ok((base, Selection::weighted(selected)))
}

/// Refuses a file that cannot be written, or whose writing would destroy what is read: what is only found when all is
/// computed would cost a user that time.
pub fn check_output(
    flag: &str,
    path: &Path,
    model: &ModelArguments,
    data: &[String],
) -> lowrank::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    if path.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
        return Err(Error::Usage(format!(
            "{flag} {}: expected a file in a folder that exists",
            path.display()
        )));
    }
    // A link leads somewhere, or else nobody knows where to write.
    if path.symlink_metadata().is_ok() && !path.is_file() {
        return Err(Error::Usage(format!(
            "{flag} {}: there is something that is no regular file; choose another name",
            path.display()
        )));
    }
    let in_model = Embedded::named(&model.model).is_none() && within(path, Path::new(&model.model));
    let mut adapters = model.adapters.iter();
    let in_adapter = adapters.any(|adapter| within(path, &adapter.path));
    // What names no file is told when it is opened.
    let inputs = data.iter().map(|pattern| named_files(pattern));
    let mut inputs = inputs.flat_map(Result::unwrap_or_default);
    if inputs.any(|input| same(&input, path)) || in_model || in_adapter {
        return Err(Error::Usage(format!(
            "{flag} {}: this would overwrite what is read",
            path.display()
        )));
    }
    Ok(())
}

/// True if both paths lead to the same place, which may not exist yet.
pub fn same(a: &Path, b: &Path) -> bool {
    real_path(a) == real_path(b)
}

/// True if `path` leads into the folder, which may not exist yet.
pub fn within(path: &Path, folder: &Path) -> bool {
    real_path(path).starts_with(real_path(folder))
}
