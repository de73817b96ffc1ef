//! Files and folders that appear whole under their name, or not at all.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What to do with a folder that already lies where the output should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// A folder that is not empty is an error.
    Refuse,
    /// A folder is replaced as a whole once the new one is complete.
    Replace,
}

/// A folder that is written under a temporary name, `.<name>.<random>.tmp` beside its target, and renamed when done.
///
/// Dropped before [`commit`](Self::commit), it removes what it wrote and changes nothing else. A killed process leaves
/// the temporary folder behind, and under the target's name what was there before.
///
/// On Linux, replacing a folder exchanges old and new in one step: at every moment one of the two is there, complete.
/// On file systems that cannot exchange, the old folder is renamed to `.<name>.<random>.old` first; a process killed
/// between the two renames leaves it there.
#[derive(Debug)]
pub struct AtomicFolder {
    // Fields are dropped in this order: the staging folder must be gone before its parents can be.
    staging: TempDir,
    parents: NewParents,
    target: PathBuf,
    existing: Existing,
}

impl AtomicFolder {
    /// Makes an empty staging folder for `target`, and `target`'s parents where they are missing.
    ///
    /// # Errors
    /// If `target` is a file, if it is a folder that is not empty and `existing` refuses that, or if nothing can be
    /// created beside it; the message names the folder.
    pub fn create(target: &Path, existing: Existing) -> Result<Self> {
        let target = resolve(target)?;
        if !is_empty_or_missing(&target)? && existing == Existing::Refuse {
            return Err(not_empty(&target));
        }
        let (parent, name) = split(&target)?;
        let parents = NewParents::create(parent)?;
        let staging = named(&format!(".{name}."), ".tmp")
            .tempdir_in(parent)
            .map_err(Error::io("create a folder in", parent))?;
        Ok(Self {
            staging,
            parents,
            target,
            existing,
        })
    }

    /// The folder to write into.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Syncs every file to the disk and gives the folder its name; returns its path.
    ///
    /// # Errors
    /// If a file cannot be synced, or if something that may not be replaced has appeared under the name meanwhile.
    /// The staging folder is removed then.
    pub fn commit(self) -> Result<PathBuf> {
        sync_tree(self.staging.path())?;
        match fs::rename(self.staging.path(), &self.target) {
            Ok(()) => {}
            Err(error) if is_not_empty(&error) && self.existing == Existing::Replace => {
                self.replace()?;
            }
            Err(error) if is_not_empty(&error) => return Err(not_empty(&self.target)),
            Err(error) => {
                return Err(Error::io("rename a finished folder to", &self.target)(
                    error,
                ));
            }
        }
        let (parent, _) = split(&self.target)?;
        sync(parent)?;
        self.parents.keep();
        // What lies under the staging name now, if anything, is the old folder; dropping `staging` removes it.
        Ok(self.target)
    }

    /// Puts the staging folder in the place of the target, and the target in its place.
    fn replace(&self) -> Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            use rustix::io::Errno;
            let (new, old) = (self.staging.path(), &self.target);
            match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(()),
                // The file system, or the kernel, knows no exchange.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::XDEV) => {}
                Err(error) => return Err(Error::io("replace", old)(error.into())),
            }
        }
        self.replace_in_two_steps()
    }

    fn replace_in_two_steps(&self) -> Result<()> {
        let (parent, name) = split(&self.target)?;
        let aside = named(&format!(".{name}."), ".old")
            .tempdir_in(parent)
            .map_err(Error::io("create a folder in", parent))?;
        let failed = |error| Error::io("replace", &self.target)(error);
        // From here until the new folder is in place, the old one must survive an error.
        let aside = aside.keep();
        fs::rename(&self.target, &aside).map_err(failed)?;
        if let Err(error) = fs::rename(self.staging.path(), &self.target) {
            fs::rename(&aside, &self.target).map_err(failed)?;
            return Err(failed(error));
        }
        fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))
    }
}

/// Writes a file under a temporary name beside `path`, syncs it and renames it: a reader sees the old bytes or the new. Where
/// `path` is a link, what it leads to is written.
///
/// # Errors
/// If the folder cannot be written to; an existing file is then unchanged. If what exists is a pipe, a device or another thing that
/// a file must not take the place of, or a link that leads nowhere.
pub fn atomic_write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let length = bytes.len() as u64;
    atomic_write(path, length, |writer| {
        let written = writer.write_all(bytes);
        written.map_err(Error::writing(path, length))
    })
}

/// As [`atomic_write_file`], with the bytes, so many of them (0 if that is not known), written by a function.
///
/// # Errors
/// As there, and what the function refuses.
pub fn atomic_write<E: From<Error>>(
    path: &Path,
    bytes: u64,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let path = &resolve(path)?;
    if path
        .metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
    {
        return Err(E::from(Error::Exists {
            path: path.clone(),
            what: "is no regular file",
        }));
    }
    let (parent, name) = split(path)?;
    let prefix = format!(".{name}.");
    let mut builder = named(&prefix, ".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(parent).map_err(|error| {
        match Error::no_room(path, Some(bytes), error) {
            Ok(full) => full,
            Err(error) => Error::io("create a file in", parent)(error),
        }
    })?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
    write(&mut writer)?;
    writer.flush().map_err(Error::writing(path, bytes))?;
    drop(writer);
    let synced = file.as_file().sync_all();
    synced.map_err(Error::writing(path, bytes))?;
    file.persist(path)
        .map_err(|error| Error::io("write", path)(error.error))?;
    Ok(sync(parent)?)
}

/// Folders that had to be made for the staging folder; those still empty are removed with it.
#[derive(Debug)]
struct NewParents(Vec<PathBuf>);

impl NewParents {
    fn create(parent: &Path) -> Result<Self> {
        let missing = parent.ancestors().take_while(|folder| {
            !folder.as_os_str().is_empty() && matches!(folder.try_exists(), Ok(false))
        });
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(parent).map_err(Error::io("create folder", parent))?;
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewParents {
    fn drop(&mut self) {
        // Innermost first. One that holds something by now stays, and with it those around it.
        for folder in &self.0 {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A builder of names that are not guessed, with the permissions of an ordinary folder.
fn named<'a>(prefix: &'a str, suffix: &'a str) -> tempfile::Builder<'a, 'a> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(suffix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    builder
}

/// Follows links and `..`, so that the folder itself is replaced and not what leads to it.
fn resolve(target: &Path) -> Result<PathBuf> {
    match target.symlink_metadata() {
        Ok(_) => target.canonicalize().map_err(Error::io("find", target)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(target.to_path_buf()),
        Err(error) => Err(Error::io("create", target)(error)),
    }
}

/// Parent (`.` if there is none) and name of a path.
fn split(path: &Path) -> Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::content(path, "is not a name that can be written"))?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    Ok((parent.unwrap_or(Path::new(".")), name))
}

fn is_empty_or_missing(target: &Path) -> Result<bool> {
    match target.read_dir() {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Err(Error::Exists {
            path: target.to_path_buf(),
            what: "is not a folder",
        }),
        Err(error) => Err(Error::io("list", target)(error)),
    }
}

fn is_not_empty(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
    )
}

fn not_empty(target: &Path) -> Error {
    Error::Exists {
        path: target.to_path_buf(),
        what: "is not empty",
    }
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in folder.read_dir().map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io("read", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            sync(&path)?;
        }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    // Elsewhere a folder cannot be opened, and a read-only handle cannot be synced.
    if cfg!(unix) {
        let file = File::open(path).map_err(Error::io("sync", path))?;
        file.sync_all().map_err(Error::io("sync", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
