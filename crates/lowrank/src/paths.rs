//! Paths that are compared, or written into files that others read.

use std::path::{Component, Path, PathBuf};

/// The path from the root, without links and `..`, whether it exists or not: equal for paths that lead to the same place.
#[must_use]
pub fn real(path: &Path) -> PathBuf {
    let path = absolute(path);
    let found = path.ancestors().find_map(|ancestor| {
        let mut real = ancestor.canonicalize().ok()?;
        let mut went_up = false;
        // What does not exist yet is no link, but `..` leads out of it again, perhaps to one.
        for part in path.strip_prefix(ancestor).ok()?.components() {
            if part == Component::ParentDir {
                went_up = true;
                real.pop();
            } else {
                real.push(part);
            }
        }
        Some(if went_up { self::real(&real) } else { real })
    });
    found.unwrap_or(path)
}

/// The path from the root; links and `..` stay.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_and_parents_are_resolved_whether_they_exist_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b", root.join("link")).unwrap();
        for (path, expected) in [
            ("a/b", "a/b"),
            ("link", "a/b"),
            ("link/..", "a"),
            ("link/new", "a/b/new"),
            ("new/../link", "a/b"),
            ("new/../link/other", "a/b/other"),
            ("link/new/../../c", "a/c"),
            ("new/./x", "new/x"),
        ] {
            assert_eq!(real(&root.join(path)), root.join(expected), "{path}");
        }
    }
}
