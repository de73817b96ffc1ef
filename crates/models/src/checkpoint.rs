//! Reading what a model needs from a checkpoint, and nothing else.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_frozen::{Encoding, Error as FrozenError, Stored, Weights};
use lowrank_ops as ops;
use std::collections::BTreeSet;

/// How the frozen matrices are held. Computing, and what is no matrix, is in f64 if they are, else in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the checkpoint stores them: f64 throughout, or each in f32, f16, bf16 or GGUF's blocks.
    AsStored,
    /// In this dtype: f32, f16, bf16, or f64 for oracles.
    Cast(DType),
}

const HINT: &str = "use dtype = \"f32\"";

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
            Precision::Cast(DType::F32 | DType::F16 | DType::BF16) => Some(DType::F32),
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
                Encoding::Plain(DType::F32 | DType::F16 | DType::BF16) | Encoding::Blocks(_) => {
                    Some(DType::F32)
                }
                Encoding::Plain(_) => None,
            };
            let refusal = match (precision, natural) {
                (Precision::Cast(_), None) => Some("expected f32, f64, f16 or bf16"),
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

    /// Reads one matrix, so that a cast holds two copies of that one only.
    pub(crate) fn matrix(&self, name: &str) -> Result<Stored> {
        let matrix = match self.precision {
            Precision::AsStored => self.weights.stored(name)?,
            Precision::Cast(dtype) => {
                let tensor = self.weights.tensor(name)?;
                Stored::new(tensor.to_dtype(dtype).map_err(ops::Error::from)?)?
            }
        };
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
