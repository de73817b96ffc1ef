//! What a model makes of whole rows: the head that gives each a number a class, and its losses.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::fields::Fields;
use candle_core::{Device, Shape, Tensor};
use lowrank_adapter::{Batch, Error as AdapterError, Linear, Pass, Result as AdapterResult};
use lowrank_frozen::{FrozenLinear, Stored, Weights};
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Map, Value};
use std::num::NonZeroUsize;

/// What the linear layer that gives the classes is called: in LLaMA's kind, in BERT's, in RoBERTa's.
const HEADS: [&str; 3] = [
    "score.weight",
    "classifier.weight",
    "classifier.out_proj.weight",
];

/// Of transformers, where config.json does not say.
const INITIALIZER_RANGE: f64 = 0.02;

/// How many numbers a checkpoint's own head gives a row; none if it has no head for classes.
#[must_use]
pub fn stored_classes(weights: &dyn Weights) -> Option<NonZeroUsize> {
    classes_of(|name| Some(*weights.info(name)?.shape.first()?))
}

/// How many numbers a row is given by the head among these tensors, `rows_of` telling the first dimension of the one that is
/// called so.
#[must_use]
pub fn classes_of(rows_of: impl Fn(&str) -> Option<usize>) -> Option<NonZeroUsize> {
    let rows = HEADS.iter().find_map(|name| rows_of(name));
    rows.and_then(NonZeroUsize::new)
}

/// The entry of `modules_to_save` for the layer in front of a classifier's head that these weights lack, so that it is drawn:
/// BERT's pooler, which masked-token models are saved without. A head saves what else is drawn.
#[must_use]
pub fn drawn_layer(model_type: &str, weights: &dyn Weights) -> Option<&'static str> {
    const POOLER: &str = "pooler";
    let has = |name: &str| name.ends_with("pooler.dense.weight");
    let is_drawn = model_type == "bert" && !weights.names().into_iter().any(has);
    is_drawn.then_some(POOLER)
}

/// How many numbers a layer that is drawn may have.
const MOST: usize = 1 << 30;

/// A head for classes, and how it starts where the checkpoint has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Classes {
    pub num_labels: NonZeroUsize,
    pub seed: u64,
    /// The standard deviation of drawn weights; drawn biases are 0.
    pub deviation: f64,
}

impl Classes {
    /// `config` is the object that config.json holds.
    pub fn new(
        num_labels: NonZeroUsize,
        seed: u64,
        config: &Map<String, Value>,
        origin: &str,
    ) -> Result<Self> {
        let deviation = Fields::new(config, origin).positive("initializer_range")?;
        Ok(Self {
            num_labels,
            seed,
            deviation: deviation.unwrap_or(INITIALIZER_RANGE),
        })
    }

    /// The linear layer at `path`, `n_in` -> `n_out`: the checkpoint's, or a new one. A head is held as tables are.
    pub fn linear(
        &self,
        checkpoint: &Checkpoint<'_>,
        path: &str,
        (n_out, n_in): (usize, usize),
        bias: Bias,
    ) -> Result<Linear> {
        let name = format!("{path}.weight");
        let stored = checkpoint.has(&name);
        let weight = match stored {
            true => checkpoint.table(&name)?,
            false => {
                if n_out.checked_mul(n_in).is_none_or(|count| count > MOST) {
                    let what = format!("{n_out} labels are too many");
                    return Err(AdapterError::Other(what).into());
                }
                let mut stream = Key::new(self.seed, Purpose::Init).site(&name).stream();
                let draw = || self.deviation * stream.normal();
                let numbers: Vec<f64> = std::iter::repeat_with(draw).take(n_out * n_in).collect();
                Stored::new(checkpoint.made(numbers, (n_out, n_in))?)?
            }
        };
        let bias = match bias {
            Bias::None => None,
            Bias::One if stored => Some(checkpoint.vector(&format!("{path}.bias"))?),
            Bias::One => Some(checkpoint.made(vec![0.0; n_out], n_out)?),
        };
        Ok(Linear::new(
            path,
            FrozenLinear::stored(weight).with_bias(bias),
        ))
    }

    /// Names and shapes of [`Self::linear`]'s tensors, none if the checkpoint does not have them.
    pub fn tensors(
        weights: &dyn Weights,
        path: &str,
        (n_out, n_in): (usize, usize),
        bias: Bias,
    ) -> Vec<(String, Vec<usize>)> {
        let name = format!("{path}.weight");
        if weights.info(&name).is_none() {
            return Vec::new();
        }
        let bias = match bias {
            Bias::None => None,
            Bias::One => Some((format!("{path}.bias"), vec![n_out])),
        };
        [(name, vec![n_out, n_in])]
            .into_iter()
            .chain(bias)
            .collect()
    }

    /// The loss of each supervised row, `[row_targets]`: cross-entropy, or the squared error where a row has one number.
    /// `x`: what the last layer reads of each of those rows, `[row_targets, n_in]`.
    pub fn losses(
        &self,
        last: &Linear,
        x: &Tensor,
        batch: &Batch,
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        let targets = batch.row_targets();
        if self.num_labels.get() == 1 {
            if let Some((row, label)) = targets.iter().find(|(_, label)| !label.is_finite()) {
                return Err(AdapterError::Other(format!(
                    "row {row} of a batch has the label {label}, expected a number"
                )));
            }
            let values: Vec<f64> = targets.into_iter().map(|(_, value)| value).collect();
            let values = Tensor::new(values, x.device())?.to_dtype(x.dtype())?;
            let given = last.forward(x, pass)?.squeeze(1)?;
            return Ok((given - values)?.sqr()?);
        }
        let class = |(row, label): (u32, f64)| {
            let is_class = label >= 0.0 && label.fract() == 0.0;
            if is_class && label < self.num_labels.get() as f64 {
                // Not negative, no fraction, and below the number of classes.
                return Ok(label as u32);
            }
            Err(AdapterError::Other(format!(
                "row {row} of a batch has the label {label}, expected one of {} classes, 0 to {}",
                self.num_labels,
                self.num_labels.get() - 1
            )))
        };
        let classes = targets.into_iter().map(class);
        let classes = classes.collect::<AdapterResult<Vec<u32>>>()?;
        last.cross_entropy(x, &classes, pass)
    }
}

/// Whether a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    None,
    One,
}

/// The flat position of the last token of each of these rows that is no padding: neither by its segment nor, as transformers
/// judges, by its id.
pub(crate) fn last_tokens(
    batch: &Batch,
    padding: Option<u32>,
    rows: impl IntoIterator<Item = u32>,
) -> Vec<u32> {
    let tokens = batch.tokens();
    let last = |row: u32| {
        let start = row as usize * tokens.length;
        let row = start..start + tokens.length;
        let mut row = tokens.segments[row.clone()].iter().zip(&tokens.ids[row]);
        let last = row.rposition(|(&segment, &id)| segment != 0 && Some(id) != padding);
        (start + last.unwrap_or(0)) as u32
    };
    rows.into_iter().map(last).collect()
}

impl Checkpoint<'_> {
    /// A tensor that is no part of the checkpoint, in what is computed in.
    fn made(&self, numbers: Vec<f64>, shape: impl Into<Shape>) -> Result<Tensor> {
        let made = Tensor::from_vec(numbers, shape.into(), &Device::Cpu);
        let made = made.and_then(|tensor| tensor.to_dtype(self.dtype()));
        Ok(made.map_err(ops::Error::from)?)
    }
}
