//! One module a verb.

pub mod eval;
pub mod export;
pub mod families;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod plan;
pub mod train;

use crate::arguments::ModelArguments;
use lowrank::adapter::{self, Selection};
use lowrank::models::Precision;
use lowrank::training::{Place, RunFile};
use lowrank::{Base, Error, Reading, StrictBase, device, load_adapter, real_path};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

const VERBS: [&str; 8] = [
    "eval", "export", "families", "generate", "inspect", "merge", "plan", "train",
];
const PLANNED: [&str; 2] = ["chat", "combine"];

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
    let mut base = Base::open_for(&arguments.model, precision, adapters)?;
    base.place(&device)?;
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

/// True if both paths lead to the same place, which may not exist yet.
pub fn same(a: &Path, b: &Path) -> bool {
    real_path(a) == real_path(b)
}

/// True if `path` leads into the folder, which may not exist yet.
pub fn within(path: &Path, folder: &Path) -> bool {
    real_path(path).starts_with(real_path(folder))
}
