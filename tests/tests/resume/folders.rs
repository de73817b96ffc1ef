//! What folders hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every file below a folder.
pub fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            let inner = tree(&path).into_iter();
            files.extend(inner.map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, fs::read(path).unwrap());
        }
    }
    files
}

/// What a folder holds, sorted; nothing if it is missing.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().into_iter().flatten();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries.map(|e| name(e).into_string().unwrap()).collect();
    names.sort();
    names
}

/// The names of a run's checkpoints, sorted.
pub fn checkpoints(folder: &Path) -> Vec<String> {
    let mut names = names(&folder.join("checkpoints"));
    names.retain(|name| name.starts_with("step-"));
    names
}
