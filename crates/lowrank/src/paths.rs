//! Paths that are compared, or written into files that others read.

use std::path::{Path, PathBuf};

/// The path without links and `..`, as far as it exists.
pub fn real(path: &Path) -> PathBuf {
    let path = absolute(path);
    let found = path.ancestors().find_map(|ancestor| {
        let real = ancestor.canonicalize().ok()?;
        Some(real.join(path.strip_prefix(ancestor).ok()?))
    });
    found.unwrap_or(path)
}

/// The path from the root; links and `..` stay.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
