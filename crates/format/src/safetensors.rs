//! One safetensors file, mapped into memory or part of the program.

use crate::bitsandbytes::Raw;
use crate::header::{self, Entry};
use crate::mapped::Mapped;
use crate::{Error, Result, source};
use candle_core::{Device, Tensor};
use lowrank_frozen::{TensorInfo, Weights};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A safetensors file whose header has been checked: whatever it lists lies inside it.
pub struct Safetensors {
    path: PathBuf,
    bytes: Bytes,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// Where a file's bytes lie.
enum Bytes {
    Map(Mapped),
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

impl Safetensors {
    /// Maps a file and checks its header; no tensor is read.
    ///
    /// # Errors
    /// If the file cannot be read, or if its header is truncated, not JSON, longer than the file or than 100 MB,
    /// lists a name twice, or places tensors that overlap, leave holes, lie outside the file or have another size
    /// than their shape and dtype imply.
    pub fn open(path: &Path) -> Result<Self> {
        source::refuse_pickle(path, source::CONVERT_MODEL)?;
        let file = source::open_file(path)?;
        // An empty file cannot be mapped.
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length < header::LENGTH_BYTES {
            let what = format!("it is {length} bytes long, and the header's length alone takes 8");
            return Err(Error::Header {
                path: path.to_path_buf(),
                what,
            });
        }
        let map = Mapped::new(&file, path)?;
        Self::checked(path, Bytes::Map(map))
    }

    /// Reads a file that is embedded in the program, and checks its header as [`Self::open`] does. `name` stands where a
    /// file's path would, in messages.
    ///
    /// # Errors
    /// If its header is damaged.
    pub fn embedded(bytes: &'static [u8], name: &str) -> Result<Self> {
        Self::checked(Path::new(name), Bytes::Embedded(bytes))
    }

    fn checked(path: &Path, bytes: Bytes) -> Result<Self> {
        let header = header::parse(&bytes).map_err(|what| Error::Header {
            path: path.to_path_buf(),
            what,
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
            tensors: header.tensors,
            metadata: header.metadata,
        })
    }

    /// Every tensor's name, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// Whether the file holds a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The text that the header holds beside the tensors, such as `format`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Shape and dtype of a tensor; `None` if there is none of this name or if [`Self::tensor`] cannot load its dtype.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.tensors.get(name)?;
        Some(TensorInfo {
            shape: entry.shape.clone(),
            encoding: entry.dtype.loads_as()?.into(),
        })
    }

    /// Reads a tensor, in the dtype it is stored in, to the CPU; booleans become `u8`. Its values are not looked at.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none of this name, [`Error::DType`] if it is stored as something else than
    /// f64, f32, f16, bf16, i64, i32, i16, u32, u8 or booleans.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::Missing {
            path: self.path.clone(),
            name: name.to_owned(),
        })?;
        let dtype = entry.dtype.loads_as().ok_or_else(|| Error::DType {
            path: self.path.clone(),
            name: name.to_owned(),
            dtype: entry.dtype.name().to_owned(),
        })?;
        let bytes = &self.bytes[entry.bytes.clone()];
        let tensor = Tensor::from_raw_buffer(bytes, dtype, &entry.shape, &Device::Cpu)?;
        if let Bytes::Map(map) = &self.bytes {
            map.release(entry.bytes.clone());
        }
        Ok(tensor)
    }

    /// A tensor as it lies in the file.
    pub(crate) fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let entry = self.tensors.get(name)?;
        Some(Raw {
            path: &self.path,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.bytes[entry.bytes.clone()],
        })
    }

    /// The file, or the name of what is embedded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// As [`Checkpoint`](crate::Checkpoint) reads them: a tensor with a non-finite value is an error.
impl Weights for Safetensors {
    fn names(&self) -> Vec<&str> {
        self.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.info(name)
    }

    fn tensor(&self, name: &str) -> lowrank_frozen::Result<Tensor> {
        let tensor = self.tensor(name)?;
        crate::check_finite(&self.path, name, &tensor)?;
        Ok(tensor)
    }

    fn origin(&self) -> String {
        self.path.display().to_string()
    }
}

impl fmt::Debug for Safetensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Safetensors")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
