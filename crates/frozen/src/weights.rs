//! What a model is built from: named tensors of a checkpoint, whoever reads them.

use crate::Result;
use candle_core::{DType, Tensor};

/// The named tensors of a checkpoint. A reader implements this; a model asks for what it needs.
pub trait Weights: Send + Sync {
    /// Every tensor's name, sorted.
    fn names(&self) -> Vec<&str>;

    /// Shape and dtype of a tensor, without reading it; `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads a tensor, in the dtype it is stored in, to the CPU.
    ///
    /// # Errors
    /// If the tensor is missing or cannot be read; the message names the file.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Where the tensors come from, for messages: a file or a folder.
    fn origin(&self) -> String;
}

/// What is known of a tensor before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The dtype it is stored in.
    pub dtype: DType,
}
