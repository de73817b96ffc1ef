//! Matrices in fewer bits than they are computed in: numbers become f32 a panel of rows at a time, never all at once.

use crate::blocks::Decode;
use crate::few_rows::Held;
use crate::kernels::{Numbers, Weights};
use crate::{BlockType, Encoding, Error, Nf4, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::fmt;
use std::sync::Arc;

/// How many f32 numbers a panel may have, 1 MiB of them: what a core's cache holds. A row is never split.
const PANEL: usize = 1 << 18;

/// How many numbers a thread should at least decode.
const GRAIN: usize = 1 << 13;

/// A row-major matrix of f16, bf16, quantised blocks or NF4. Clones share the numbers.
#[derive(Clone)]
pub(crate) struct Packed {
    dims: (usize, usize),
    encoding: Encoding,
    numbers: Arc<dyn Decode>,
}

impl Packed {
    /// From a matrix of f16 or bf16; `None` if it is of another dtype.
    pub(crate) fn from_tensor(tensor: &Tensor) -> Result<Option<Self>> {
        let dims = tensor.dims2()?;
        let flat = tensor.flatten_all()?;
        let numbers: Arc<dyn Decode> = match tensor.dtype() {
            DType::F16 => Arc::new(flat.to_vec1::<f16>()?),
            DType::BF16 => Arc::new(flat.to_vec1::<bf16>()?),
            _ => return Ok(None),
        };
        Ok(Some(Self {
            dims,
            encoding: Encoding::Plain(tensor.dtype()),
            numbers,
        }))
    }

    /// From blocks as a file holds them, row by row.
    pub(crate) fn from_blocks(
        block: BlockType,
        bytes: &[u8],
        dims: (usize, usize),
    ) -> Result<Self> {
        let (rows, columns) = dims;
        let row = columns / block.numbers() * block.bytes();
        if columns % block.numbers() != 0 || rows.checked_mul(row) != Some(bytes.len()) {
            return Err(Error::Blocks {
                block: block.name(),
                dims,
                bytes: bytes.len(),
            });
        }
        Ok(Self {
            dims,
            encoding: Encoding::Blocks(block),
            numbers: block.copy(bytes),
        })
    }

    pub(crate) fn from_nf4(numbers: Nf4, dims: (usize, usize)) -> Result<Self> {
        let (rows, columns) = dims;
        if rows.checked_mul(columns) != Some(numbers.numbers) {
            return Err(Error::Nf4 {
                what: format!(
                    "{} numbers are not a matrix of {rows} rows and {columns} columns",
                    numbers.numbers
                ),
            });
        }
        numbers.check()?;
        Ok(Self {
            dims,
            encoding: Encoding::Nf4 {
                double: numbers.is_double(),
            },
            numbers: Arc::new(numbers),
        })
    }

    pub(crate) const fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub(crate) fn bytes(&self) -> usize {
        self.numbers.bytes()
    }

    pub(crate) const fn dims(&self) -> (usize, usize) {
        self.dims
    }

    /// What the kernels read.
    pub(crate) fn weights(&self) -> Weights<'_> {
        let numbers = match self.numbers.bf16() {
            Some(numbers) => Numbers::Bf16(numbers),
            None => Numbers::Coded(&*self.numbers),
        };
        Weights::new(numbers, self.dims)
    }

    /// The whole matrix in f32.
    pub(crate) fn to_dense(&self) -> Result<Tensor> {
        let mut dense = vec![0f32; self.dims.0 * self.dims.1];
        self.decode(0, &mut dense);
        Ok(Tensor::from_vec(dense, self.dims, &Device::Cpu)?)
    }

    /// Some of the rows in f32, one after the other; the caller has checked that they exist.
    pub(crate) fn rows(&self, rows: &[u32]) -> Vec<f32> {
        let (_, columns) = self.dims;
        let mut into = vec![0f32; rows.len() * columns];
        if columns > 0 {
            into.par_chunks_mut(columns)
                .with_min_len(GRAIN.div_ceil(columns))
                .zip(rows)
                .for_each(|(into, row)| self.numbers.decode(*row as usize * columns, into));
        }
        into
    }

    pub(crate) fn all_finite(&self) -> Result<bool> {
        let (rows, columns) = self.dims;
        let height = (PANEL / columns.max(1)).clamp(1, rows.max(1));
        let mut scratch = vec![0f32; height * columns];
        let mut finite = true;
        for first in (0..rows).step_by(height) {
            let panel = &mut scratch[..(rows - first).min(height) * columns];
            self.decode(first, panel);
            finite &= panel
                .par_chunks(GRAIN)
                .all(|part| part.iter().fold(true, |all, x| all & x.is_finite()));
        }
        Ok(finite)
    }

    /// For products with few rows.
    pub(crate) fn held(&self) -> Held<'_> {
        Held::Encoded(self.encoding, &*self.numbers)
    }

    /// Decodes whole rows from the one numbered `first` on.
    fn decode(&self, first: usize, into: &mut [f32]) {
        let (_, columns) = self.dims;
        if columns == 0 {
            return;
        }
        into.par_chunks_mut(columns)
            .with_min_len(GRAIN.div_ceil(columns))
            .enumerate()
            .for_each(|(row, into)| self.numbers.decode((first + row) * columns, into));
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.encoding.name(), self.dims)
    }
}
