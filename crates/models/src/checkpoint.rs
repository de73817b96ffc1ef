//! Reading what a model needs from a checkpoint, and nothing else.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_frozen::{Error as FrozenError, Weights};
use lowrank_ops as ops;
use std::collections::BTreeSet;

/// How the frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the checkpoint stores them, which must be f32 or f64 throughout.
    AsStored,
    /// In this dtype: f32, or f64 for oracles.
    Cast(DType),
}

const HINT: &str = "use dtype = \"f32\"";

/// A checkpoint that was found to hold exactly what the model needs.
pub(crate) struct Checkpoint<'a> {
    weights: &'a dyn Weights,
    dtype: DType,
}

impl<'a> Checkpoint<'a> {
    /// Compares names, shapes and dtypes with what is `needed`, before anything is read. `ignored` says of other
    /// tensors whether they may be there.
    pub(crate) fn new(
        weights: &'a dyn Weights,
        precision: Precision,
        needed: impl Iterator<Item = (String, Vec<usize>)>,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut common = match precision {
            Precision::AsStored => None,
            Precision::Cast(dtype @ (DType::F32 | DType::F64)) => Some(dtype),
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
            let (readable, hint) = match precision {
                Precision::Cast(_) => (
                    matches!(
                        info.dtype,
                        DType::F32 | DType::F64 | DType::F16 | DType::BF16
                    ),
                    "expected f32, f64, f16 or bf16",
                ),
                Precision::AsStored => match info.dtype {
                    DType::F32 | DType::F64 if *common.get_or_insert(info.dtype) == info.dtype => {
                        (true, HINT)
                    }
                    DType::F32 | DType::F64 => (
                        false,
                        "the tensors before it have another dtype; use dtype = \"f32\"",
                    ),
                    _ => (false, HINT),
                },
            };
            if !readable {
                return Err(FrozenError::DType {
                    origin: weights.origin(),
                    name,
                    dtype: info.dtype.as_str().to_owned(),
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
            dtype: common.unwrap_or(DType::F32),
        })
    }

    /// Reads one tensor, so that a cast holds two copies of that one only.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor> {
        let tensor = self.weights.tensor(name)?;
        let tensor = tensor.to_dtype(self.dtype).map_err(ops::Error::from)?;
        if !ops::all_finite(&tensor)? {
            return Err(Error::NotFinite {
                origin: self.weights.origin(),
                name: name.to_owned(),
                dtype: self.dtype.as_str(),
            });
        }
        Ok(tensor)
    }
}
