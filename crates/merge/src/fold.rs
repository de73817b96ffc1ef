//! Folding a selection of adapters into the weights of a model in memory.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Merge, Model, Part, Pass, Selection, Weight};
use lowrank_ops as ops;

/// The weights of a stand-alone model.
#[derive(Debug)]
pub struct Folded {
    /// Names as in the base's checkpoint, in the order of the forward pass.
    pub tensors: Vec<(String, Tensor)>,
    /// False if some layer is only near to its adapted one.
    pub exact: bool,
    /// True if the base's head was tied to its embedding and no longer can be: the model's configuration must say so.
    pub untied: bool,
}

/// Folds the selected adapters into copies of the weights; the model is left as it is. Sums are formed in the base's
/// precision and cast to `dtype` once.
///
/// # Errors
/// If an adapter's update depends on the input, or a result is not finite.
pub fn fold(model: &mut dyn Model, selection: &Selection, dtype: Option<DType>) -> Result<Folded> {
    let mut folding = Folding {
        selection,
        pass: Pass::evaluation(selection.clone()),
        dtype,
        changed_embeddings: Vec::new(),
        folded: Folded {
            tensors: Vec::new(),
            exact: true,
            untied: false,
        },
    };
    let mut failed = None;
    model.parts(&mut |part| {
        if failed.is_none() {
            failed = folding.part(part).err();
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(folding.folded),
    }
}

struct Folding<'a> {
    selection: &'a Selection,
    pass: Pass,
    dtype: Option<DType>,
    changed_embeddings: Vec<String>,
    folded: Folded,
}

impl Folding<'_> {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        match part {
            Part::Linear(linear) | Part::Head(linear) => {
                if let Some(embedding) = linear.tied_to() {
                    let changed = linear.is_changed_by(self.selection)
                        || self.changed_embeddings.iter().any(|path| path == embedding);
                    if !changed || linear.trains_tied(self.selection) {
                        return Ok(());
                    }
                    self.folded.untied = true;
                }
                let path = linear.path().to_owned();
                let merged = match linear.merge(&mut self.pass)? {
                    Merge::Exact(merged) => merged,
                    Merge::Approximate(merged) => {
                        self.folded.exact = false;
                        merged
                    }
                    Merge::InputDependent { why } => {
                        return Err(Error::InputDependent { site: path, why });
                    }
                };
                self.push(format!("{path}.weight"), merged.weight)?;
                if let Some(bias) = merged.bias {
                    self.push(format!("{path}.bias"), bias)?;
                }
                Ok(())
            }
            Part::Embedding(embedding) => {
                if embedding.weight.is_changed_by(self.selection) {
                    self.changed_embeddings.push(embedding.path().to_owned());
                }
                self.weight(&embedding.weight)
            }
            Part::Norm(norm) => {
                self.weight(&norm.weight)?;
                norm.bias.as_ref().map_or(Ok(()), |bias| self.weight(bias))
            }
        }
    }

    fn weight(&mut self, weight: &Weight) -> Result<()> {
        let value = weight.get(&self.pass)?.detach();
        self.push(weight.name().to_owned(), value)
    }

    fn push(&mut self, name: String, tensor: Tensor) -> Result<()> {
        let tensor = match self.dtype {
            Some(dtype) => tensor.to_dtype(dtype)?,
            None => tensor,
        };
        // After the cast: f16 ends at 65504.
        let widened = match tensor.dtype() {
            DType::F64 => tensor.clone(),
            _ => tensor.to_dtype(DType::F32)?,
        };
        if !ops::all_finite(&widened)? {
            let dtype = tensor.dtype().as_str();
            return Err(Error::NonFinite { name, dtype });
        }
        self.folded.tensors.push((name, tensor));
        Ok(())
    }
}
