//! From what a user writes under `[data]` to files.

use crate::error::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};

/// The files that the patterns name, each with the number of its pattern, in the order of the patterns, those of one
/// pattern sorted.
pub(crate) fn files(patterns: &[String]) -> Result<Vec<(usize, PathBuf)>> {
    if patterns.is_empty() {
        return Err(Error::NoPatterns);
    }
    let mut files = Vec::new();
    for (number, pattern) in patterns.iter().enumerate() {
        let mut found = Vec::new();
        expand(pattern, &mut found)?;
        for path in found {
            check_supported(&path)?;
            files.push((number, path));
        }
    }
    Ok(files)
}

/// The files that one path or glob names, sorted.
///
/// # Errors
/// If it names none, or names what is not read: a folder, or a file of the hub.
pub fn named_files(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    expand(pattern, &mut files)?;
    Ok(files)
}

fn expand(pattern: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    if pattern.starts_with("hub:") {
        return Err(Error::NotYetSupported {
            name: pattern.to_owned(),
            what: "data sets of the hub",
            remedy: "download the file and give its path",
        });
    }
    let path = Path::new(pattern);
    // A file may have a bracket in its name: what exists is not a pattern.
    if path.is_dir() {
        return Err(Error::Folder {
            path: path.to_owned(),
        });
    }
    if path.exists() {
        files.push(path.to_owned());
        return Ok(());
    }
    if !pattern.contains(['*', '?', '[']) {
        return Err(Error::NotFound {
            path: path.to_owned(),
        });
    }
    let matches = glob::glob(pattern).map_err(|error| Error::Pattern {
        pattern: pattern.to_owned(),
        message: error.msg.to_owned(),
    })?;
    let first = files.len();
    for found in matches {
        let found = found.map_err(|error| Error::Read {
            path: error.path().to_owned(),
            source: io::Error::from(error),
        })?;
        if !found.is_dir() {
            files.push(found);
        }
    }
    if files.len() == first {
        return Err(Error::NoMatch {
            pattern: pattern.to_owned(),
        });
    }
    Ok(())
}

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON object a line.
    Lines,
    /// CSV.
    Commas,
    /// TSV.
    Tabs,
    /// Parquet.
    Columns,
}

/// The format that the end of a name stands for.
pub(crate) fn format(path: &Path) -> Format {
    match extension(path).as_str() {
        "csv" => Format::Commas,
        "tsv" => Format::Tabs,
        "parquet" => Format::Columns,
        _ => Format::Lines,
    }
}

fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// Refuses, by the end of their names, files in formats that are not read.
///
/// # Errors
/// If it is such a file; whether it exists does not matter.
pub fn check_supported(path: &Path) -> Result<()> {
    match extension(path).as_str() {
        "bz2" | "gz" | "xz" | "zip" | "zst" => Err(Error::NotYetSupported {
            name: path.display().to_string(),
            what: "compressed files",
            remedy: "unpack the file",
        }),
        _ => Ok(()),
    }
}
