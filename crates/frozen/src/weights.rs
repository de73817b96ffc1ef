//! What a model is built from: named tensors of a checkpoint, whoever reads them.

use crate::{Encoding, Result, Stored};
use candle_core::Tensor;

/// The named tensors of a checkpoint. A reader implements this; a model asks for what it needs.
pub trait Weights: Send + Sync {
    /// Every tensor's name, sorted.
    fn names(&self) -> Vec<&str>;

    /// Shape and encoding of a tensor, without reading it; `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads a tensor to the CPU, in the dtype it is stored in; blocks become f32.
    ///
    /// # Errors
    /// If the tensor is missing or cannot be read; the message names the file.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Reads a matrix as it is stored: blocks stay blocks.
    ///
    /// # Errors
    /// As [`Self::tensor`], and if it is not a matrix or of a dtype that cannot be held.
    fn stored(&self, name: &str) -> Result<Stored> {
        Stored::new(self.tensor(name)?)
    }

    /// Where the tensors come from, for messages: a file or a folder.
    fn origin(&self) -> String;
}

/// What is known of a tensor before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// What its numbers are stored as.
    pub encoding: Encoding,
}
