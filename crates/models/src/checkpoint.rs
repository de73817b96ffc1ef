//! Reading what a model needs from a checkpoint, and nothing else.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_frozen::{Encoding, Error as FrozenError, Nf4, Stored, Weights};
use lowrank_ops as ops;
use std::collections::BTreeSet;

/// How the frozen matrices are held. Computing, and what is no matrix, is in f64 if they are, else in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the checkpoint stores them: f64 throughout, or each in f32, f16, bf16 or GGUF's blocks.
    AsStored,
    /// In this dtype: f32, f16, bf16, or f64 for oracles.
    Cast(DType),
    /// Linear layers in NF4; the embedding and the head as the checkpoint stores them, f64 in f32. What is NF4 already
    /// stays as it is.
    Nf4 {
        /// Whether the scales are quantised too.
        double: bool,
    },
}

const HINT: &str = "use dtype = \"f32\"";

/// Whether a head is stored beside the table that it is tied to and is another: then it is not tied, as in transformers.
pub(crate) fn differ(weights: &dyn Weights, head: &str, table: &str) -> Result<bool> {
    let (Some(one), Some(other)) = (weights.info(head), weights.info(table)) else {
        return Ok(false);
    };
    if one.shape != other.shape {
        return Ok(true);
    }
    let (one, other) = (weights.tensor(head)?, weights.tensor(table)?);
    let other = other.to_dtype(one.dtype()).map_err(ops::Error::from)?;
    let unequal = one.ne(&other).and_then(|unequal| unequal.max_all());
    let unequal = unequal.and_then(|unequal| unequal.to_scalar::<u8>());
    Ok(unequal.map_err(ops::Error::from)? != 0)
}

/// A checkpoint that was found to hold exactly what the model needs.
pub(crate) struct Checkpoint<'a> {
    weights: &'a dyn Weights,
    precision: Precision,
    /// What is computed in.
    dtype: DType,
}

impl<'a> Checkpoint<'a> {
    /// Compares names, shapes and encodings with what is `needed`, before anything is read. `ignored` says of other
    /// tensors whether they may be there.
    pub(crate) fn new(
        weights: &'a dyn Weights,
        precision: Precision,
        needed: impl Iterator<Item = (String, Vec<usize>)>,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut computed = match precision {
            Precision::AsStored => None,
            Precision::Cast(DType::F64) => Some(DType::F64),
            Precision::Cast(DType::F32 | DType::F16 | DType::BF16) | Precision::Nf4 { .. } => {
                Some(DType::F32)
            }
            Precision::Cast(dtype) => {
                return Err(Error::Precision {
                    dtype: dtype.as_str(),
                });
            }
        };
        let mut used = BTreeSet::new();
        for (name, expected) in needed {
            let Some(info) = weights.info(&name) else {
                let origin = weights.origin();
                return Err(FrozenError::Missing { origin, name }.into());
            };
            if info.shape != expected {
                return Err(FrozenError::Shape {
                    origin: weights.origin(),
                    name,
                    got: info.shape,
                    expected,
                }
                .into());
            }
            let natural = match info.encoding {
                Encoding::Plain(DType::F64) => Some(DType::F64),
                Encoding::Plain(DType::F32 | DType::F16 | DType::BF16)
                | Encoding::Blocks(_)
                | Encoding::Nf4 { .. } => Some(DType::F32),
                Encoding::Plain(_) => None,
            };
            let refusal = match (precision, natural) {
                (Precision::Cast(_) | Precision::Nf4 { .. }, None) => {
                    Some("expected f32, f64, f16 or bf16")
                }
                (Precision::AsStored, None) => Some(HINT),
                (Precision::AsStored, Some(natural))
                    if *computed.get_or_insert(natural) != natural =>
                {
                    Some("the tensors before it have another dtype; use dtype = \"f32\"")
                }
                _ => None,
            };
            if let Some(hint) = refusal {
                return Err(FrozenError::DType {
                    origin: weights.origin(),
                    name,
                    dtype: info.encoding.name().to_owned(),
                    hint,
                }
                .into());
            }
            used.insert(name);
        }
        for name in weights.names() {
            if !used.contains(name) && !ignored(name) {
                return Err(Error::Unused {
                    origin: weights.origin(),
                    name: name.to_owned(),
                });
            }
        }
        Ok(Self {
            weights,
            precision,
            dtype: computed.unwrap_or(DType::F32),
        })
    }

    /// Reads a norm's weight or a bias.
    pub(crate) fn vector(&self, name: &str) -> Result<Tensor> {
        let tensor = self.weights.tensor(name)?;
        let tensor = tensor.to_dtype(self.dtype).map_err(ops::Error::from)?;
        if !ops::all_finite(&tensor)? {
            return Err(self.not_finite(name, self.dtype.as_str()));
        }
        Ok(tensor)
    }

    /// Reads a linear layer's matrix, so that a cast holds two copies of that one only.
    pub(crate) fn matrix(&self, name: &str) -> Result<Stored> {
        let matrix = match (self.precision, self.encoding(name)) {
            (Precision::AsStored, _) | (Precision::Nf4 { .. }, Some(Encoding::Nf4 { .. })) => {
                self.weights.stored(name)?
            }
            (Precision::Cast(dtype), _) => Stored::new(self.cast(name, dtype)?)?,
            (Precision::Nf4 { double }, _) => {
                let tensor = self.cast(name, DType::F32)?;
                self.quantise(name, &tensor, double)?
            }
        };
        self.finite(name, matrix)
    }

    /// Reads the embedding or the head, which transformers leaves out of four bits too.
    pub(crate) fn table(&self, name: &str) -> Result<Stored> {
        if !matches!(self.precision, Precision::Nf4 { .. }) {
            return self.matrix(name);
        }
        let table = match self.encoding(name) {
            Some(Encoding::Plain(DType::F64)) => Stored::new(self.cast(name, DType::F32)?)?,
            _ => self.weights.stored(name)?,
        };
        self.finite(name, table)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.info(name).is_some()
    }

    /// What is computed in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    fn encoding(&self, name: &str) -> Option<Encoding> {
        self.weights.info(name).map(|info| info.encoding)
    }

    fn cast(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let tensor = self.weights.tensor(name)?;
        Ok(tensor.to_dtype(dtype).map_err(ops::Error::from)?)
    }

    fn quantise(&self, name: &str, tensor: &Tensor, double: bool) -> Result<Stored> {
        let dims = tensor.dims2().map_err(ops::Error::from)?;
        let tensor = tensor.contiguous().map_err(ops::Error::from)?;
        let numbers = ops::data::<f32>(&tensor)?;
        match Nf4::quantise(&numbers, double) {
            Err(FrozenError::NotFinite) => Err(self.not_finite(name, "nf4")),
            numbers => Ok(Stored::nf4(numbers?, dims)?),
        }
    }

    fn finite(&self, name: &str, matrix: Stored) -> Result<Stored> {
        if !matrix.all_finite()? {
            return Err(self.not_finite(name, matrix.encoding().name()));
        }
        Ok(matrix)
    }

    fn not_finite(&self, name: &str, dtype: &'static str) -> Error {
        Error::NotFinite {
            origin: self.weights.origin(),
            name: name.to_owned(),
            dtype,
        }
    }
}
