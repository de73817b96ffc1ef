//! Tokenised rows that are kept for the next time.

use crate::encoded::Encoded;
use crate::error::{Error, Result};
use crate::example::Encoder;
use crate::row::Kind;
use crate::stored::{Key, Stored, Writer};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where the tokenised rows of data files are kept, and when. A file of them is named by a hash of everything that the rows
/// depend on, is written whole or not at all, and is checked whenever it is opened; one that is damaged is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The folder; made if it is needed.
    pub folder: PathBuf,
    /// Data sets whose files have fewer bytes together are held in memory instead.
    pub at_least: u64,
    /// Whether it is an error that the folder cannot be written to; otherwise rows are held in memory then.
    pub required: bool,
}

impl Cache {
    /// Whether the rows of these files are kept. Those of a pipe are not: it can be read once, and a file is read to know it again.
    ///
    /// # Errors
    /// If a file is not there.
    pub(crate) fn holds(&self, files: &[PathBuf]) -> Result<bool> {
        let mut bytes = 0u64;
        for path in files {
            let found = metadata(path)?;
            if !found.is_file() {
                if self.required {
                    tracing::warn!(
                        "all rows are held in memory, whatever `data.cache` says: {} is no regular file",
                        path.display()
                    );
                }
                return Ok(false);
            }
            bytes = bytes.saturating_add(found.len());
        }
        Ok(bytes >= self.at_least)
    }

    /// The rows of a file: those that are kept, or else they are read and kept. None if they have labels.
    pub(crate) fn open(&self, path: &Path, encoder: &Encoder<'_>) -> Result<Option<Stored>> {
        let before = state(path)?;
        let key = key(path, encoder)?;
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = self.folder.join(format!("{name}.rows"));
        match Stored::open(&kept, &key, encoder.vocab) {
            Ok(Some(stored)) => return Ok(Some(stored)),
            Ok(None) => {}
            Err(what) => tracing::warn!(
                "the tokenised rows in {} cannot be used ({what}): they are made again",
                kept.display()
            ),
        }
        tracing::info!(
            "keeping the tokenised rows of {} in {}",
            path.display(),
            kept.display()
        );
        let mut writer = Writer::create(&kept, &key)?;
        let mut rows = Encoded::open(path, encoder)?;
        while let Some((example, reference)) = rows.next()? {
            if rows.kind() == Some(Kind::Labelled) {
                return Ok(None);
            }
            writer.push(&example, &reference)?;
        }
        let kind = rows.kind().ok_or_else(|| Error::NoRows {
            path: path.to_owned(),
        })?;
        if state(path)? != before {
            return Err(Error::Changing {
                path: path.to_owned(),
            });
        }
        writer.finish(kind)?;
        match Stored::open(&kept, &key, encoder.vocab) {
            Ok(Some(stored)) => Ok(Some(stored)),
            _ => Err(Error::CacheChanged { path: kept }),
        }
    }
}

/// Length and time of the last change.
fn state(path: &Path) -> Result<(u64, Option<SystemTime>)> {
    let found = metadata(path)?;
    Ok((found.len(), found.modified().ok()))
}

fn metadata(path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// What the rows of a file depend on: what it holds, what its name says about its format, and how rows become tokens.
fn key(path: &Path, encoder: &Encoder<'_>) -> Result<Key> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    let content = hash.finalize();
    let extension = path.extension().unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [
        // What makes tokens may change with it.
        env!("CARGO_PKG_VERSION").as_bytes(),
        &content,
        Kind::names().as_bytes(),
        extension.to_ascii_lowercase().as_encoded_bytes(),
        encoder.depends_on().as_bytes(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hash.finalize().into())
}
