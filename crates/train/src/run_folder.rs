//! The folder of a run: one run at a time, nothing lost by accident.

use crate::error::{Error, Result};
use lowrank_format::{FolderLock, atomic_write_file};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What becomes of a folder that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    Fresh,
    /// Its newest checkpoint is continued; without one, and in an empty folder, the run starts at step 1.
    Resume,
    /// What a run wrote there is removed.
    Overwrite,
}

/// A run's folder, held against other processes until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    mode: Mode,
    _lock: FolderLock,
}

const LOCK: &str = ".lock";
const RUN_FILE: &str = "run.toml";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";

/// What the names of event files begin with: TensorBoard knows them by it.
pub(crate) const EVENTS: &str = "events.out.tfevents.";

/// Everything else that a run writes into its folder.
const RESULTS: [&str; 5] = ["adapter", "model", "report.html", "tb", "metrics.csv"];

impl RunFolder {
    /// Makes the folder if it is missing, locks it, and removes what a killed run left unfinished.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] if the folder holds anything and `mode` is [`Mode::Fresh`]; [`Error::Foreign`] if no run has
    /// written to it and it holds what a run would replace; if another run works in it; if it cannot be written to.
    pub fn open(path: &Path, mode: Mode) -> Result<Self> {
        if mode == Mode::Fresh && !is_fresh(path)? {
            // A folder that is in use is better known as that.
            if path.join(LOCK).exists() {
                drop(FolderLock::acquire(path)?);
            }
            return Err(not_empty(path));
        }
        keep_foreign(path)?;
        fs::create_dir_all(path).map_err(Error::io("create folder", path))?;
        let lock = FolderLock::acquire(path)?;
        if mode == Mode::Fresh && !is_fresh(path)? {
            return Err(not_empty(path));
        }
        let folder = Self {
            path: path.to_path_buf(),
            mode,
            _lock: lock,
        };
        folder.remove_leftovers(&folder.path)?;
        folder.remove_leftovers(&folder.checkpoints())?;
        folder.remove_leftovers(&folder.events())?;
        if mode == Mode::Overwrite {
            folder.remove_run()?;
        }
        Ok(folder)
    }

    /// Refuses what is no folder; one that is missing can be made. Nothing is written, and no mode is asked.
    ///
    /// # Errors
    /// If the path, or what it lies in, is a file, or cannot be read.
    pub fn check(path: &Path) -> Result<()> {
        list(path).map(drop)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it was opened.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where checkpoints lie.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Where the metrics are.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Where the resolved run file is.
    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.path.join(RUN_FILE)
    }

    /// Where the resolved run file of a run with this folder is.
    #[must_use]
    pub fn run_file_in(folder: &Path) -> PathBuf {
        folder.join(RUN_FILE)
    }

    /// Where a trained adapter belongs.
    #[must_use]
    pub fn adapter(&self) -> PathBuf {
        self.path.join(RESULTS[0])
    }

    /// Where a wholly trained model belongs.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.path.join(RESULTS[1])
    }

    /// Where the page about the run is.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join(RESULTS[2])
    }

    /// Where TensorBoard finds its events.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.path.join(RESULTS[3])
    }

    /// Where the metrics are as a table.
    #[must_use]
    pub fn table(&self) -> PathBuf {
        self.path.join(RESULTS[4])
    }

    pub(crate) fn write_run_file(&self, text: &str) -> Result<()> {
        Ok(atomic_write_file(&self.run_file(), text.as_bytes())?)
    }

    /// Folders and files that a killed process did not come to rename. The lock says that nobody still writes them.
    fn remove_leftovers(&self, folder: &Path) -> Result<()> {
        for path in list(folder)? {
            if is_leftover(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// A folder that no run has written to keeps what it holds. The run file goes last: until then it is a run's folder.
    fn remove_run(&self) -> Result<()> {
        if !self.run_file().exists() {
            return Ok(());
        }
        for name in [CHECKPOINTS, METRICS]
            .iter()
            .chain(&RESULTS)
            .chain([&RUN_FILE])
        {
            remove(&self.path.join(name))?;
        }
        Ok(())
    }
}

/// A run begins with its run file: without one, no run has made what has the name of a result.
fn keep_foreign(folder: &Path) -> Result<()> {
    if folder.join(RUN_FILE).exists() {
        return Ok(());
    }
    let names = [CHECKPOINTS, METRICS].into_iter().chain(RESULTS);
    let mut paths = names.map(|name| folder.join(name));
    match paths.find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(Error::Foreign { path }),
        None => Ok(()),
    }
}

fn is_leftover(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let ours = [CHECKPOINTS, METRICS, RUN_FILE, "step-", EVENTS]
        .into_iter()
        .chain(RESULTS);
    let begins = ours.into_iter().any(|ours| {
        name.strip_prefix('.')
            .is_some_and(|name| name.starts_with(ours))
    });
    begins && (name.ends_with(".tmp") || name.ends_with(".old"))
}

/// Missing, or with nothing in it but what a run leaves that did not come to begin.
fn is_fresh(path: &Path) -> Result<bool> {
    let entries = list(path)?;
    Ok(entries
        .iter()
        .all(|path| path.ends_with(LOCK) || is_leftover(path)))
}

fn not_empty(path: &Path) -> Error {
    Error::NotEmpty {
        path: path.to_path_buf(),
    }
}

/// What a folder holds; nothing if it is missing.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    entries
        .map(|entry| Ok(entry.map_err(Error::io("list", folder))?.path()))
        .collect()
}

/// Removes what is there, if anything is. A folder loses its name first: a kill leaves no half of it under that name.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let unnamed = unnamed(path);
            fs::rename(path, &unnamed).and_then(|()| fs::remove_dir_all(&unnamed))
        }
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(Error::io("remove", path))
}

/// What a folder is called while it is removed; itself if it is a leftover already.
fn unnamed(path: &Path) -> PathBuf {
    match path.file_name() {
        Some(name) if !is_leftover(path) => path.with_file_name(format!(".{}.old", name.display())),
        _ => path.to_path_buf(),
    }
}
