//! What can go wrong with a file.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file or folder could not be read or written. Every message names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot {action} {path}".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full, or a quota is used up.
    #[error(
        "cannot write {}{}: {source}; free some space there and run again",
        path.display(),
        bytes.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default()
    )]
    NoRoom {
        /// The file or folder, by the name that it was to have.
        path: PathBuf,
        /// How long the file was to be, if that is known.
        bytes: Option<u64>,
        /// What the system said.
        source: io::Error,
    },
    /// The path does not lead to anything.
    #[error("{} does not exist; expected {expected}", path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// A word that names no repository of the hub.
    #[error("`{text}` is not a hub id: {what}")]
    HubId {
        /// The word.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// A repository of the hub cannot be read, or what came is not what was promised.
    #[error("{repository}: {}{what}", file.as_ref().map(|file| format!("{file}: ")).unwrap_or_default())]
    Hub {
        /// What it is and what it is called, with its revision.
        repository: String,
        /// The file in it that was asked for.
        file: Option<String>,
        /// What happened, and what to do.
        what: String,
    },
    /// An environment variable, or a file that is read in its place, makes no sense.
    #[error("{name} {what}")]
    Setting {
        /// The variable or file.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// Weights in Python's pickle format, which runs code when it is read.
    #[error("{}: pickled weights are refused, because reading them can run any code; convert them in Python: {convert}", path.display())]
    Pickle {
        /// The pickle.
        path: PathBuf,
        /// Python code that writes the same weights as safetensors.
        convert: &'static str,
    },
    /// A safetensors file whose header is truncated, contradicts itself or contradicts the file.
    #[error("{}: not a valid safetensors file: {what}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A GGUF file whose header is truncated, contradicts itself or contradicts the file.
    #[error("{}: not a valid GGUF file: {what}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A shard index that does not fit its folder.
    #[error("{}: {what}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file name or link that leads out of the folder that it belongs to.
    #[error("{}: `{file}` points outside the folder", path.display())]
    Outside {
        /// The folder or the index that names the file.
        path: PathBuf,
        /// The offending name.
        file: String,
    },
    /// A file or folder does not hold a tensor.
    #[error("{}: tensor `{name}` is missing", path.display())]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is stored in a dtype that cannot be loaded.
    #[error("{}: tensor `{name}` is stored as {dtype}, which is not yet supported; {}", path.display(), Self::DTYPE_HINT)]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its dtype, as the file calls it.
        dtype: String,
    },
    /// A weight is infinite or not a number.
    #[error("{}: tensor `{name}` holds {value} at element {index}; expected finite numbers", path.display())]
    NonFinite {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The first such value.
        value: f64,
        /// Its place in row-major order.
        index: usize,
    },
    /// A file is not JSON, or not JSON of the expected form; the source says where.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// The JSON is sound, and says something that it must not.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// Tensors that cannot be written under the names they were given.
    #[error("tensor `{name}` {what}")]
    Name {
        /// The tensor.
        name: String,
        /// What is wrong with its name.
        what: &'static str,
    },
    /// Something lies where the output should go.
    #[error("{} already exists and {what}; choose another folder or ask for it to be replaced", path.display())]
    Exists {
        /// The output folder.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another process works in the folder.
    #[error("{} is in use by another run; wait for it to end or choose another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    const DTYPE_HINT: &'static str = "convert it to float32, float16 or bfloat16";

    /// For `map_err`: names what was tried, and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match Self::no_room(path, None, source) {
            Ok(full) => full,
            Err(source) => Self::Io {
                action,
                path: path.to_path_buf(),
                source,
            },
        }
    }

    /// For `map_err`: a file of so many bytes could not be written.
    pub(crate) fn writing(path: &Path, bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            Self::no_room(path, Some(bytes), source).unwrap_or_else(Self::io("write", path))
        }
    }

    /// [`Error::NoRoom`] of a file of so many bytes, where that is known, if that is what the system says.
    ///
    /// # Errors
    /// Anything else that it says, as it is.
    pub fn no_room(path: &Path, bytes: Option<u64>, source: io::Error) -> Result<Self, io::Error> {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Ok(Self::NoRoom {
                path: meant(path),
                bytes,
                source,
            }),
            _ => Err(source),
        }
    }

    pub(crate) fn content(path: &Path, what: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_path_buf(),
            what: what.into(),
        }
    }
}

/// A path with the names that folders and files get once they are whole, in place of `.<name>.<random>.tmp`.
fn meant(path: &Path) -> PathBuf {
    let name = |part: &OsStr| {
        let staged = part.to_str()?.strip_prefix('.')?.strip_suffix(".tmp")?;
        let (name, random) = staged.rsplit_once('.')?;
        (!name.is_empty() && !random.is_empty()).then(|| name.to_owned())
    };
    path.iter()
        .map(|part| name(part).map_or_else(|| part.to_owned(), Into::into))
        .collect()
}

impl From<Error> for lowrank_frozen::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Missing { path, name } => Self::Missing {
                origin: path.display().to_string(),
                name,
            },
            Error::DType { path, name, dtype } => Self::DType {
                origin: path.display().to_string(),
                name,
                dtype,
                hint: Error::DTYPE_HINT,
            },
            Error::Candle(error) => Self::Candle(error),
            other => Self::Read(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_the_file_that_was_meant_and_its_size() {
        let path = Path::new("runs/checkpoints/.step-000004.aB3xYz.tmp/params.safetensors");
        let full = || io::Error::from(ErrorKind::StorageFull);
        assert_eq!(
            Error::writing(path, 4096)(full()).to_string(),
            "cannot write runs/checkpoints/step-000004/params.safetensors (4096 bytes): no storage space; \
             free some space there and run again"
        );
        assert_eq!(
            Error::io("create a folder in", Path::new("/a/.b/.c.tmp"))(full()).to_string(),
            "cannot write /a/.b/.c.tmp: no storage space; free some space there and run again"
        );
        let denied = || io::Error::from(ErrorKind::PermissionDenied);
        assert_eq!(
            Error::writing(Path::new("a"), 7)(denied()).to_string(),
            "cannot write a: permission denied"
        );
    }
}
