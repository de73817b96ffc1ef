//! One safetensors file, mapped into memory.
#![expect(
    unsafe_code,
    reason = "a memory map, so that a tensor is read when it is asked for and not before"
)]

use crate::header::{self, Entry};
use crate::{Error, Result, source};
use candle_core::{Device, Tensor};
use lowrank_frozen::{TensorInfo, Weights};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A safetensors file whose header has been checked: whatever it lists lies inside it.
pub struct Safetensors {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
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
        let invalid = |what| Error::Header {
            path: path.to_path_buf(),
            what,
        };
        // An empty file cannot be mapped.
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length < header::LENGTH_BYTES {
            let what = format!("it is {length} bytes long, and the header's length alone takes 8");
            return Err(invalid(what));
        }
        // SAFETY: the map is read-only and private to this value. Nothing in this workspace changes a weight file in
        // place: writers make a new file and rename it. Another program that cuts the file short while it is being
        // read ends the process with SIGBUS, as it does for every reader that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let header = header::parse(&map).map_err(invalid)?;
        Ok(Self {
            path: path.to_path_buf(),
            map,
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
        let bytes = &self.map[entry.bytes.clone()];
        Ok(Tensor::from_raw_buffer(
            bytes,
            dtype,
            &entry.shape,
            &Device::Cpu,
        )?)
    }

    /// The file.
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
