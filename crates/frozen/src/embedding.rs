//! The frozen embedding table.

use crate::stored::Form;
use crate::{FrozenLinear, Result, Stored};
use candle_core::{DType, Device, Tensor};
use lowrank_ops as ops;

/// A table of which rows are looked up and which is never trained. Clones, and a head tied to it, share the numbers.
#[derive(Debug, Clone)]
pub struct FrozenEmbedding {
    table: Stored,
}

impl FrozenEmbedding {
    /// `table`: `[vocab, hidden]`.
    #[must_use]
    pub const fn new(table: Stored) -> Self {
        Self { table }
    }

    /// (vocab, hidden).
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        self.table.dims()
    }

    /// The dtype of the rows that are looked up.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.table.dtype()
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// The whole table in [`Self::dtype`].
    ///
    /// # Errors
    /// If candle refuses.
    pub fn weight(&self) -> Result<Tensor> {
        self.table.to_dense()
    }

    /// The same table on a device: see [`Stored::to_device`].
    ///
    /// # Errors
    /// If the device has no room, or refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self::new(self.table.to_device(device)?))
    }

    /// The linear layer that shares the table, hidden -> vocab: a tied head.
    #[must_use]
    pub fn head(&self) -> FrozenLinear {
        FrozenLinear::stored(self.table.clone())
    }

    /// The rows `ids` as (batch, tokens) = `shape` -> `[batch, tokens, hidden]`. No other row is decoded.
    ///
    /// # Errors
    /// If an id is not in the table, or their number is not batch * tokens.
    pub fn forward(&self, ids: &[u32], shape: (usize, usize)) -> Result<Tensor> {
        let packed = match &self.table.0 {
            Form::Dense(table) => return Ok(ops::embedding(table, ids, shape)?),
            Form::Packed(packed) => packed,
        };
        let (batch, tokens) = shape;
        let (vocab, hidden) = self.dims();
        if batch.checked_mul(tokens) != Some(ids.len()) {
            return Err(ops::Error::Shape {
                op: "embedding",
                what: "ids",
                got: vec![ids.len()],
                expected: format!("{batch} * {tokens} ids"),
            }
            .into());
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(ops::Error::Index {
                op: "embedding",
                index: *id as usize,
                len: vocab,
            }
            .into());
        }
        let rows = packed.rows(ids);
        Ok(Tensor::from_vec(
            rows,
            (batch, tokens, hidden),
            &Device::Cpu,
        )?)
    }
}
