//! The declaration of one tensor.

use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use lowrank_ops::Kind;
use lowrank_ops::rng::{Key, Stream};

/// The optimiser group of the factor that a low-rank update starts at 0 with: PEFT's `lora_B`.
pub const LORA_B: &str = "lora_B";

/// How a tensor starts.
#[derive(Debug, Clone)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Uniform in ±1/sqrt(columns): torch's `kaiming_uniform_` with a = sqrt(5), the start of its linear layers.
    KaimingUniform,
    /// Normal with mean 0.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// A given value of the tensor's shape.
    Value(Tensor),
}

impl Init {
    pub(crate) fn draw(&self, shape: &Shape, key: Key, dtype: DType) -> Result<Tensor> {
        let device = &Device::Cpu;
        let fill = |mut next: Box<dyn FnMut(&mut Stream) -> f64>| -> Result<Tensor> {
            let mut stream = key.stream();
            let values: Vec<f64> = (0..shape.elem_count()).map(|_| next(&mut stream)).collect();
            Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
        };
        match self {
            Self::Zeros => Ok(Tensor::zeros(shape, dtype, device)?),
            Self::Ones => Ok(Tensor::ones(shape, dtype, device)?),
            Self::KaimingUniform => {
                let columns = shape.dims().last().copied().unwrap_or(1).max(1);
                let bound = 1.0 / (columns as f64).sqrt();
                fill(Box::new(move |stream| {
                    bound * (2.0 * stream.uniform() - 1.0)
                }))
            }
            Self::Normal { std } => {
                let std = *std;
                fill(Box::new(move |stream| std * stream.normal()))
            }
            Self::Value(value) if value.shape() == shape => Ok(value.to_dtype(dtype)?),
            Self::Value(value) => Err(Error::Other(format!(
                "the initial value has shape {:?}, declared is {:?}",
                value.dims(),
                shape.dims()
            ))),
        }
    }
}

/// What is declared of one tensor.
#[derive(Debug, Clone)]
pub struct Spec {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) init: Init,
    pub(crate) kind: Kind,
    pub(crate) group: &'static str,
    pub(crate) rank_axis: Option<usize>,
    pub(crate) decay: bool,
    pub(crate) dtype: Option<DType>,
    pub(crate) learning_rate: Option<f64>,
}

impl Spec {
    /// A trained tensor that starts at 0. `name` is PEFT's key after the module's path: `lora_A.weight`.
    pub fn new(name: impl Into<String>, shape: impl Into<Shape>) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            init: Init::Zeros,
            kind: Kind::Trained,
            group: "default",
            rank_axis: None,
            decay: true,
            dtype: None,
            learning_rate: None,
        }
    }

    /// How it starts.
    #[must_use]
    pub fn init(self, init: Init) -> Self {
        Self { init, ..self }
    }

    /// The optimiser group, which sets learning rate and decay.
    #[must_use]
    pub fn group(self, group: &'static str) -> Self {
        Self { group, ..self }
    }

    /// Trained, saved or scratch.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The axis along which ranks lie: what a gate prunes and revives.
    #[must_use]
    pub fn rank_axis(self, axis: usize) -> Self {
        Self {
            rank_axis: Some(axis),
            ..self
        }
    }

    /// A dtype of its own, instead of the one that the model computes in: integers, for indices. Not for what is trained.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        Self {
            dtype: Some(dtype),
            ..self
        }
    }

    /// A base learning rate of its own, instead of the run's; the run's schedule applies to it.
    #[must_use]
    pub fn learning_rate(self, rate: f64) -> Self {
        Self {
            learning_rate: Some(rate),
            ..self
        }
    }

    /// Weight decay leaves this tensor alone.
    #[must_use]
    pub fn no_decay(self) -> Self {
        Self {
            decay: false,
            ..self
        }
    }
}
