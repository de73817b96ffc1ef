//! Where models, adapters and rows come from: this machine, or the hub.

use crate::{Error, Result};
use lowrank_format::{Hub, HubId, Location};
use std::path::{Path, PathBuf};

/// What marks a file of a data set.
const DATA: &str = "hub:";

/// A model's folder or file, and what it is called on the hub if it comes from there.
pub fn model(source: &str) -> Result<(PathBuf, Option<HubId>)> {
    open(source, Hub::model)
}

/// An adapter's folder.
pub fn adapter(folder: &Path) -> Result<PathBuf> {
    match folder.to_str() {
        Some(text) => Ok(open(text, Hub::adapter)?.0),
        None => Ok(folder.to_path_buf()),
    }
}

fn open(
    text: &str,
    download: fn(&Hub, &HubId) -> lowrank_format::Result<PathBuf>,
) -> Result<(PathBuf, Option<HubId>)> {
    match Location::find(text)? {
        Location::Path(path) => Ok((path, None)),
        Location::Hub(id) => {
            let folder = Hub::from_env().and_then(|hub| download(&hub, &id));
            // It may have been meant as a path.
            let folder = folder.map_err(|source| Error::NotHere {
                path: text.into(),
                source: Box::new(source),
            })?;
            Ok((folder, Some(id)))
        }
    }
}

/// The files and patterns, with what is on the hub downloaded: `hub:org/name/path/to/file`, or
/// `hub:org/name@revision/path/to/file`.
pub fn data(files: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files {
        let Some(text) = file.strip_prefix(DATA) else {
            found.push(file.clone());
            continue;
        };
        let (id, path) = data_file(text)?;
        lowrank_data::check_supported(Path::new(file))?;
        let path = Hub::from_env()?.file(&id, path)?;
        let path = path.into_os_string().into_string().map_err(|path| {
            Error::Usage(format!(
                "the hub's cache {} has a name that is not Unicode; set HF_HOME to another",
                Path::new(&path).display()
            ))
        })?;
        found.push(path);
    }
    Ok(found)
}

fn data_file(text: &str) -> Result<(HubId, &str)> {
    let wrong = || {
        Error::Usage(format!(
            "`{DATA}{text}` names no file of a data set; expected `{DATA}org/name/file` or `{DATA}org/name@revision/file`"
        ))
    };
    let second = text.match_indices('/').nth(1).ok_or_else(wrong)?.0;
    let (id, path) = (&text[..second], &text[second + 1..]);
    let id = id
        .parse()
        .map_err(|error| Error::Usage(format!("{error} (in `{DATA}{text}`)")))?;
    Ok((id, path))
}
