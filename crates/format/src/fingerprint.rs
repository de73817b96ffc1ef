//! Which base an adapter was trained on: two hashes of its weights, and the file that keeps them.

use crate::{Error, Result, atomic_write_file, bytes, python_json, read_json_object};
use candle_core::DType;
use lowrank_frozen::Weights;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Two SHA-256 hashes of a checkpoint, in hexadecimal.
///
/// Neither depends on how the tensors are spread over files, nor on their order in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of the tensors' names and shapes.
    pub shape: String,
    /// Of names, shapes, dtypes and every byte of the values, where halves and blocks count as the f32 numbers they are.
    pub content: String,
}

/// Hashes a checkpoint completely. Memory: the largest tensor.
///
/// # Errors
/// If a tensor cannot be read.
pub fn fingerprint(weights: &dyn Weights) -> Result<Fingerprint, lowrank_frozen::Error> {
    // A tensor is hashed in pieces of this many bytes, so that all cores work on one; part of the definition.
    const PIECE: usize = 1 << 22;
    let mut shape = Sha256::new();
    let mut content = Sha256::new();
    for name in weights.names() {
        // Halves are hashed as the f32 numbers that they are, as blocks are: what counts is the numbers, not their storage.
        let tensor = match weights.tensor(name)? {
            half if matches!(half.dtype(), DType::F16 | DType::BF16) => {
                half.to_dtype(DType::F32)?
            }
            tensor => tensor,
        };
        let mut head = Vec::new();
        put(&mut head, name.as_bytes());
        head.extend((tensor.rank() as u64).to_le_bytes());
        for &size in tensor.dims() {
            head.extend((size as u64).to_le_bytes());
        }
        shape.update(&head);
        put(&mut head, tensor.dtype().as_str().as_bytes());
        content.update(&head);
        let pieces: Vec<_> = bytes::with_bytes(&tensor, |bytes| {
            bytes.par_chunks(PIECE).map(Sha256::digest).collect()
        })?;
        for piece in pieces {
            content.update(piece);
        }
    }
    Ok(Fingerprint {
        shape: hex(&shape.finalize()),
        content: hex(&content.finalize()),
    })
}

/// Text with its length in front, so that two texts cannot run into one another.
fn put(head: &mut Vec<u8>, text: &[u8]) {
    head.extend((text.len() as u64).to_le_bytes());
    head.extend(text);
}

/// Two lower-case digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// What `lowrank.json` says beside an adapter: the family, and the base it was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowrankJson {
    /// The version of this file's form, [`LowrankJson::VERSION`].
    pub version: u64,
    /// [`Fingerprint::shape`] of the base.
    pub base_shape: String,
    /// [`Fingerprint::content`] of the base.
    pub base_content: String,
    /// The family's name.
    pub family: String,
    /// What the classes of a classifier are called, in order; none if they have no names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
}

impl LowrankJson {
    /// The file's name.
    pub const FILE: &str = "lowrank.json";
    /// The only version so far.
    pub const VERSION: u64 = 1;

    /// What is to be written beside an adapter of `family`.
    #[must_use]
    pub fn new(family: &str, base: &Fingerprint) -> Self {
        Self {
            version: Self::VERSION,
            base_shape: base.shape.clone(),
            base_content: base.content.clone(),
            family: family.to_owned(),
            labels: None,
        }
    }

    /// With the names of the classes that the adapter tells apart; none if the list is empty.
    #[must_use]
    pub fn with_labels(self, names: &[String]) -> Self {
        let labels = (!names.is_empty()).then(|| names.to_vec());
        Self { labels, ..self }
    }

    /// Reads the file of a folder; `None` if there is none, as in adapters that PEFT wrote.
    ///
    /// # Errors
    /// If the file cannot be read, is of another form, or of a version that this release does not know.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(Self::FILE);
        if !path.exists() {
            return Ok(None);
        }
        let object = read_json_object(&path)?;
        let version = object.get("version").unwrap_or(&Value::Null);
        if version.as_u64() != Some(Self::VERSION) {
            let what = format!(
                "`version` is {version}, and this release knows {} only",
                Self::VERSION
            );
            return Err(Error::content(&path, what));
        }
        serde_json::from_value(Value::Object(object))
            .map(Some)
            .map_err(|source| Error::Json { path, source })
    }

    /// Writes the file into a folder.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        let value = serde_json::to_value(self).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        atomic_write_file(&path, format!("{}\n", python_json(&value)).as_bytes())
    }
}
