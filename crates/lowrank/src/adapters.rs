//! Adapter folders and the models they are attached to.

use crate::base::{Base, BaseFiles};
use crate::{Error, Result, hub};
use lowrank_adapter::{AdapterConfig, Attached, ResidualBase, SEQ_CLS, Source, Start, attach};
use lowrank_data::Classes;
use lowrank_format::{
    AtomicFolder, CONFIG_FILE, Existing, Fingerprint, LowrankJson, PeftFolder, Training,
};
use lowrank_models::{Head, Precision, classes_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `PATH`, or `NAME=PATH@WEIGHT` with name and weight optional. The path may be a hub id with a revision,
/// `org/name@revision@WEIGHT`: what follows the last `@` is a weight if it is a number and no commit's hash.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSource {
    /// What it is selected by; positions name the others.
    pub name: Option<String>,
    /// The folder, or the hub id.
    pub path: PathBuf,
    /// The factor of its update.
    pub weight: f64,
}

impl FromStr for AdapterSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once('=') {
            // A path may contain the sign; a name may not contain a separator.
            Some((name, rest)) if !name.contains('/') => (Some(name.to_owned()), rest),
            _ => (None, text),
        };
        let (path, weight) = match rest.rsplit_once('@') {
            Some((path, word)) => match weight(word) {
                Some(weight) => (path, weight),
                // Part of a path, or the revision of a hub id; nothing else has a slash before the sign.
                None if word.contains('/') || path.contains('/') => (rest, 1.0),
                None => return Err(format!("`{word}` after `@` is not a weight")),
            },
            None => (rest, 1.0),
        };
        if path.is_empty() {
            return Err(format!("`{text}` names no folder"));
        }
        Ok(Self {
            name,
            path: path.into(),
            weight,
        })
    }
}

/// The number that a word is. A commit's hash may look like one.
fn weight(word: &str) -> Option<f64> {
    let weight = word
        .parse()
        .ok()
        .filter(|weight: &f64| weight.is_finite())?;
    let is_commit = word.len() == 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!is_commit).then_some(weight)
}

/// What another base than the adapter's own means when only its values differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrictBase {
    /// An error.
    Yes,
    /// A warning: merging an adapter into the same model in another precision is ordinary.
    No,
}

/// What is said about the base when an adapter is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What a base of other values means.
    pub strict: StrictBase,
    /// What the base is to an adapter that PEFT saved unconverted after a start that it subtracts from the base.
    pub residual_base: Option<ResidualBase>,
}

impl From<StrictBase> for Reading {
    fn from(strict: StrictBase) -> Self {
        Self {
            strict,
            residual_base: None,
        }
    }
}

/// The classes that an adapter folder was trained to tell apart, by the shape of the head that is saved with it; none if it
/// is no classifier's: its `task_type` is another than "SEQ_CLS", or it has none and no such head.
///
/// # Errors
/// If the folder is damaged, or lacks the head that it should have.
pub fn adapter_classes(folder: &Path) -> Result<Option<Classes>> {
    classes_in(&PeftFolder::read(&hub::adapter(folder)?)?)
}

fn task_type(files: &PeftFolder) -> Option<&str> {
    files.config.get("task_type").and_then(Value::as_str)
}

pub(crate) fn classes_in(files: &PeftFolder) -> Result<Option<Classes>> {
    let rows = |name: &str| files.tensors.get(name)?.dims().first().copied();
    let count = match (task_type(files), classes_of(rows)) {
        (Some(SEQ_CLS), None) => {
            let what = "`task_type` is \"SEQ_CLS\", and there is no classification head: expected a tensor `score.weight` \
                        or `classifier.weight`";
            let error = lowrank_adapter::Error::Other(what.to_owned());
            return Err(Error::within(&files.path)(error));
        }
        (Some(SEQ_CLS) | None, Some(count)) => count,
        _ => return Ok(None),
    };
    let names = files
        .lowrank
        .as_ref()
        .and_then(|beside| beside.labels.clone());
    let named = names.and_then(|names| Classes::named(count, names));
    Ok(Some(named.unwrap_or(Classes::new(count))))
}

impl Base {
    /// Opens a base with the head that these adapters were trained with: that of a classifier if one of them is one's, or if
    /// none says what it is for and the base itself is one.
    ///
    /// # Errors
    /// As [`Self::open`], and if two adapters tell different numbers of classes apart.
    pub fn open_for<'a>(
        source: &str,
        precision: Precision,
        adapters: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let files = BaseFiles::open(source)?;
        let (mut classes, mut own): (Option<Classes>, bool) = (None, true);
        for folder in adapters {
            let adapter = PeftFolder::read(&hub::adapter(folder)?)?;
            own &= task_type(&adapter).is_none();
            let Some(found) = classes_in(&adapter)? else {
                continue;
            };
            check_drawn(&files, &adapter)?;
            match &classes {
                Some(first) if first.count() != found.count() => {
                    return Err(Error::Usage(format!(
                        "adapter {} tells {} classes apart, and one before it {}; use one of them",
                        folder.display(),
                        found.count(),
                        first.count()
                    )));
                }
                Some(_) => {}
                None => classes = Some(found),
            }
        }
        if own && classes.is_none() {
            classes = files.classes();
        }
        let Some(classes) = classes else {
            return files.load(precision, Head::Language);
        };
        let num_labels = classes.count();
        let mut base = files.load(
            precision,
            Head::Classes {
                num_labels,
                seed: 0,
            },
        )?;
        if !classes.names().is_empty() {
            base.classes = Some(classes);
        }
        Ok(base)
    }
}

/// Refuses an adapter that was trained on a layer that nobody has: drawn, and not saved.
fn check_drawn(base: &BaseFiles, adapter: &PeftFolder) -> Result<()> {
    let Some(layer) = base.drawn_layer() else {
        return Ok(());
    };
    let part = format!(".{layer}.");
    if adapter.tensors.keys().any(|name| name.contains(&part)) {
        return Ok(());
    }
    let what = format!(
        "the base has no `{layer}`, so the adapter was trained with a random one, and that was not saved with it: what it \
         knows is lost; train it with `modules_to_save = [\"{layer}\"]`"
    );
    Err(Error::within(&adapter.path)(lowrank_adapter::Error::Other(
        what,
    )))
}

/// Reads an adapter folder, or one of the hub (`org/name[@revision]`), and attaches it under `name`.
///
/// # Errors
/// If the folder is damaged, its family unknown, its configuration or tensors do not fit, or it was trained on a base
/// of another shape.
pub fn load_adapter(
    base: &mut Base,
    name: &str,
    folder: &Path,
    reading: impl Into<Reading>,
) -> Result<Attached> {
    let reading = reading.into();
    let folder = &hub::adapter(folder)?;
    let files = PeftFolder::read(folder)?;
    let in_config = Error::within(folder.join(CONFIG_FILE));
    let family = lowrank_registry::by_peft_type(&files.peft_type).map_err(&in_config)?;
    let config = AdapterConfig::parse(family, &files.config, Source::AdapterFolder)
        .and_then(|config| config.read_as(reading.residual_base))
        .map_err(&in_config)?;
    if let Some(recorded) = &files.lowrank {
        check_base(base, folder, recorded, reading.strict)?;
    }
    let start = Start::Saved {
        tensors: files.tensors,
        seed: 0,
    };
    attach(base.model.as_mut(), name, &config, start).map_err(Error::within(folder))
}

fn check_base(
    base: &Base,
    folder: &Path,
    recorded: &LowrankJson,
    strict: StrictBase,
) -> Result<()> {
    let found = base.fingerprint()?;
    let other = |what: &str| Error::OtherBase {
        path: folder.to_path_buf(),
        what: format!("{what}: {}", base.path().display()),
    };
    if found.shape != recorded.base_shape {
        return Err(other(
            "the adapter was trained on a base of other names and sizes than this one",
        ));
    }
    if found.content != recorded.base_content {
        let what = "the adapter was trained on a base with other values than this one";
        if strict == StrictBase::Yes {
            return Err(other(what));
        }
        tracing::warn!("{}", other(what));
    }
    Ok(())
}

/// Writes an adapter into `target`, whole or not at all.
///
/// # Errors
/// If a tensor is not finite, or the folder cannot be written.
pub fn save_adapter(
    attached: &Attached,
    base: &Fingerprint,
    target: &Path,
    existing: Existing,
) -> Result<PathBuf> {
    save_trained(attached, base, None, target, existing, None)
}

/// As [`save_adapter`], with the classes that a classifier tells apart, whose names are kept beside it, and what the model
/// card says of the training.
pub(crate) fn save_trained(
    attached: &Attached,
    base: &Fingerprint,
    classes: Option<&Classes>,
    target: &Path,
    existing: Existing,
    training: Option<&Training>,
) -> Result<PathBuf> {
    let folder = AtomicFolder::create(target, existing)?;
    let exported = attached.exported()?;
    let tensors = exported
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor));
    let family = exported.config.family.name();
    PeftFolder::write(
        folder.path(),
        &exported.config.to_peft(),
        tensors,
        &LowrankJson::new(family, base).with_labels(classes.map_or(&[], Classes::names)),
        training,
    )?;
    Ok(folder.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapter_sources_have_optional_names_and_weights() {
        let check = |text: &str, name: Option<&str>, path: &str, weight: f64| {
            let source = AdapterSource {
                name: name.map(str::to_owned),
                path: path.into(),
                weight,
            };
            assert_eq!(text.parse(), Ok(source), "{text}");
        };
        check("runs/first/adapter", None, "runs/first/adapter", 1.0);
        check("a=runs/x@0.25", Some("a"), "runs/x", 0.25);
        check("runs/x@-2", None, "runs/x", -2.0);
        check("runs/k=v/x", None, "runs/k=v/x", 1.0);
        check("runs@home/x", None, "runs@home/x", 1.0);
        check("org/name@v1.5", None, "org/name@v1.5", 1.0);
        check("a=org/name@main@0.5", Some("a"), "org/name@main", 0.5);
        check("org/name@0.5", None, "org/name", 0.5);
        check("org/name@2@1", None, "org/name@2", 1.0);
        check("org/name@refs/pr/1@2", None, "org/name@refs/pr/1", 2.0);
        let commit = "1234567890123456789012345678901234567890";
        let pinned = format!("org/name@{commit}");
        check(&pinned, None, &pinned, 1.0);
        let refused = |text: &str| text.parse::<AdapterSource>().unwrap_err();
        assert_eq!(refused("x@heavy"), "`heavy` after `@` is not a weight");
        assert_eq!(refused("a="), "`a=` names no folder");
    }
}
