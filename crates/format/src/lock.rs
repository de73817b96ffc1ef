//! One run a folder.

use crate::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Holds a folder against other processes (`flock` on its `.lock` file) until it is dropped or the process ends.
///
/// The file stays behind: removing it would let two runs hold two files of the same name.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks an existing folder, without waiting.
    ///
    /// # Errors
    /// [`Error::InUse`] if another run holds it, [`Error::Io`] if the lock file cannot be made.
    pub fn acquire(dir: &Path) -> Result<Self> {
        let path = dir.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse {
                path: dir.to_path_buf(),
            }),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = FolderLock::acquire(dir.path()).unwrap();
        let message = FolderLock::acquire(dir.path()).unwrap_err().to_string();
        let path = dir.path().display();
        assert_eq!(
            message,
            format!("{path} is in use by another run; wait for it to end or choose another folder")
        );
        drop(held);
        FolderLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        let message = FolderLock::acquire(&missing).unwrap_err().to_string();
        let expected = format!("cannot create {}/.lock: No such file", missing.display());
        assert!(message.starts_with(&expected), "{message}");
    }
}
