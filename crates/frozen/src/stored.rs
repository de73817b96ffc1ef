//! A matrix in the form it is held in.

use crate::packed::Packed;
use crate::{BlockType, Error, Nf4, Result};
use candle_core::{DType, Device, Tensor};
use lowrank_ops as ops;

/// How numbers are held, in a file or in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Each on its own.
    Plain(DType),
    /// In blocks that share a scale.
    Blocks(BlockType),
    /// In four bits and blocks of 64, see [`Nf4`].
    Nf4 {
        /// Whether the scales are quantised too.
        double: bool,
    },
}

impl Encoding {
    /// The name, `bf16`, `q4_1` or `nf4`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.as_str(),
            Self::Blocks(block) => block.name(),
            Self::Nf4 { .. } => "nf4",
        }
    }
}

impl From<DType> for Encoding {
    fn from(dtype: DType) -> Self {
        Self::Plain(dtype)
    }
}

/// A matrix as it is held: dense in f32 or f64, or packed in f16, bf16, quantised blocks or NF4, which are computed with
/// in f32. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct Stored(pub(crate) Form);

#[derive(Debug, Clone)]
pub(crate) enum Form {
    Dense(Tensor),
    Packed(Packed),
}

impl Stored {
    /// A matrix of f32, f64, f16 or bf16, taken detached.
    ///
    /// # Errors
    /// If it is not a matrix, or of another dtype.
    pub fn new(matrix: Tensor) -> Result<Self> {
        matrix.dims2()?;
        let matrix = matrix.detach();
        if matches!(matrix.dtype(), DType::F32 | DType::F64) {
            return Ok(Self(Form::Dense(matrix.contiguous()?)));
        }
        match Packed::from_tensor(&matrix)? {
            Some(packed) => Ok(Self(Form::Packed(packed))),
            None => Err(Error::Frozen {
                dtype: matrix.dtype().as_str(),
            }),
        }
    }

    /// Quantised blocks as GGUF holds them, row by row; `dims` are rows and columns in numbers. The bytes are copied.
    ///
    /// # Errors
    /// If a row is not a whole number of blocks, or the bytes are not those of all rows.
    pub fn blocks(block: BlockType, bytes: &[u8], dims: (usize, usize)) -> Result<Self> {
        Packed::from_blocks(block, bytes, dims).map(|packed| Self(Form::Packed(packed)))
    }

    /// A matrix in NF4, row by row; `dims` are rows and columns.
    ///
    /// # Errors
    /// If there are more or fewer numbers, or codes or scales do not fit them.
    pub fn nf4(numbers: Nf4, dims: (usize, usize)) -> Result<Self> {
        Packed::from_nf4(numbers, dims).map(|packed| Self(Form::Packed(packed)))
    }

    /// Rows and columns.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        match &self.0 {
            Form::Dense(matrix) => (matrix.dims()[0], matrix.dims()[1]),
            Form::Packed(packed) => packed.dims(),
        }
    }

    /// The dtype it is computed with in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Form::Dense(matrix) => matrix.dtype(),
            Form::Packed(_) => DType::F32,
        }
    }

    /// How it is held.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        match &self.0 {
            Form::Dense(matrix) => matrix.dtype().into(),
            Form::Packed(packed) => packed.encoding(),
        }
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Form::Dense(matrix) => matrix.elem_count() * matrix.dtype().size_in_bytes(),
            Form::Packed(packed) => packed.bytes(),
        }
    }

    /// The matrix in [`Self::dtype`]; a copy if it is packed.
    ///
    /// # Errors
    /// If candle refuses.
    pub fn to_dense(&self) -> Result<Tensor> {
        match &self.0 {
            Form::Dense(matrix) => Ok(matrix.clone()),
            Form::Packed(packed) => packed.to_dense(),
        }
    }

    /// The matrix on a device. Our kernels, which read packed numbers, run on the CPU: anywhere else a packed matrix becomes
    /// a dense one of f32.
    ///
    /// # Errors
    /// If the device has no room, or refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if device.is_cpu() && matches!(self.0, Form::Packed(_)) {
            return Ok(self.clone());
        }
        Ok(Self(Form::Dense(self.to_dense()?.to_device(device)?)))
    }

    /// Where it lies.
    #[must_use]
    pub fn device(&self) -> Device {
        match &self.0 {
            Form::Dense(matrix) => matrix.device().clone(),
            Form::Packed(_) => Device::Cpu,
        }
    }

    /// True if no number is a NaN or an infinity.
    ///
    /// # Errors
    /// If candle refuses.
    pub fn all_finite(&self) -> Result<bool> {
        match &self.0 {
            Form::Dense(matrix) => Ok(ops::all_finite(matrix)?),
            Form::Packed(packed) => packed.all_finite(),
        }
    }
}
