//! Paths that users and files name: what may be opened, and what is refused before it is.

use crate::{Error, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

pub(crate) const FOLDER: &str = "a folder in Hugging Face layout";
/// Another class than the one that config.json names would lose its head.
pub(crate) const CONVERT_MODEL: &str = "`CLASS.from_pretrained(folder).save_pretrained(other_folder, safe_serialization=True)`, where CLASS is what \
     transformers calls the one in `architectures` of config.json";
pub(crate) const CONVERT_ADAPTER: &str =
    "`PeftModel.from_pretrained(base, folder).save_pretrained(folder, safe_serialization=True)`";

/// Checks that `path` is a folder, and refuses by name what else a user may give.
pub(crate) fn require_folder(
    path: &Path,
    expected: &'static str,
    convert: &'static str,
) -> Result<()> {
    refuse_pickle(path, convert)?;
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::content(
            path,
            format!("is a file; expected {expected}"),
        )),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Error::NotFound {
                path: path.to_path_buf(),
                expected,
            })
        }
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

pub(crate) fn refuse_pickle(path: &Path, convert: &'static str) -> Result<()> {
    if !is_pickle(path) {
        return Ok(());
    }
    Err(Error::Pickle {
        path: path.to_path_buf(),
        convert,
    })
}

/// The first pickle of a folder by name, for a message about a folder that holds nothing readable.
pub(crate) fn find_pickle(folder: &Path) -> Result<Option<PathBuf>> {
    let names = list(folder)?;
    let found = names.iter().find(|name| is_pickle(Path::new(name)));
    Ok(found.map(|name| folder.join(name)))
}

/// The names in a folder, sorted; those that are not UTF-8 are left out.
pub(crate) fn list(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Opens a regular file: a pipe would block for ever, a device may never end.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let metadata = path.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::content(path, "is not a regular file"));
    }
    File::open(path).map_err(Error::io("read", path))
}

/// The path of `file` in `folder`, or `None` if there is no such file.
///
/// `file` must be a plain name. It may be a link, as long as it ends inside the folder; in the hub's cache, where
/// `snapshots/<revision>` holds links to `blobs`, also there.
///
/// # Errors
/// [`Error::Outside`], naming `named_by`, if the name or the link leads elsewhere.
pub(crate) fn inside(folder: &Path, file: &str, named_by: &Path) -> Result<Option<PathBuf>> {
    check_plain(file, named_by)?;
    let path = folder.join(file);
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let root = folder.canonicalize().map_err(Error::io("read", folder))?;
    let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots
        .and_then(Path::parent)
        .map(|repository| repository.join("blobs"));
    if target.starts_with(&root) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        Ok(Some(path))
    } else {
        Err(outside(file, named_by))
    }
}

/// Checks that `file` is a name in a folder.
///
/// # Errors
/// [`Error::Outside`], naming `named_by`, if it is anything else.
pub(crate) fn check_plain(file: &str, named_by: &Path) -> Result<()> {
    let mut parts = Path::new(file).components();
    let plain = matches!(parts.next(), Some(Component::Normal(name)) if name == OsStr::new(file));
    if !plain || parts.next().is_some() || file.contains(['/', '\\', '\0']) {
        return Err(outside(file, named_by));
    }
    Ok(())
}

fn outside(file: &str, named_by: &Path) -> Error {
    Error::Outside {
        path: named_by.to_path_buf(),
        file: file.to_owned(),
    }
}

pub(crate) fn is_pickle(path: &Path) -> bool {
    has_suffix(path, &["bin", "pt", "pth", "ckpt", "pkl", "pickle"])
}

fn has_suffix(path: &Path, suffixes: &[&str]) -> bool {
    let suffix = path.extension().unwrap_or_default();
    suffixes
        .iter()
        .any(|known| suffix.eq_ignore_ascii_case(known))
}
