//! Where in its schedule an adapter stands. Forward passes must know, and so must a checkpoint: it is a scratch tensor.

use candle_core::Tensor;
use lowrank_adapter::{Attach, Error, Export, Init, Kind, Param, Result, Spec};

const NAME: &str = "salora_phase";

/// What gates are in training passes. An evaluation uses test-time gates until ranks are extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Phase A: all are 1.
    Open,
    /// Phase B: drawn.
    Learning,
    /// Phase C: there are none any more; those of the ranks that stay are part of P.
    Extracted,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Open, Self::Learning, Self::Extracted];

    const fn number(self) -> f64 {
        match self {
            Self::Open => 0.0,
            Self::Learning => 1.0,
            Self::Extracted => 2.0,
        }
    }

    fn read(tensor: &Tensor) -> Result<Self> {
        let number = tensor
            .to_dtype(candle_core::DType::F64)?
            .to_scalar::<f64>()?;
        let found = Self::ALL.into_iter().find(|phase| phase.number() == number);
        found.ok_or_else(|| Error::Other(format!("`{NAME}` is {number}, expected 0, 1 or 2")))
    }

    /// The phase of what is exported; `None` if it has no gates.
    pub fn of<C>(export: &Export<C>) -> Result<Option<Self>> {
        export.scratch.get(NAME).map(Self::read).transpose()
    }
}

/// The phase of all layers together.
#[derive(Debug, Clone)]
pub(crate) struct PhaseParam(Param);

impl PhaseParam {
    pub fn declare(cx: &mut Attach<'_>, start: Phase) -> Result<Self> {
        let start = Tensor::new(start.number(), &candle_core::Device::Cpu)?;
        let spec = Spec::new(NAME, ()).kind(Kind::Scratch);
        Ok(Self(cx.shared(spec.init(Init::Value(start)))?))
    }

    pub fn get(&self) -> Result<Phase> {
        Phase::read(&self.0.value())
    }

    pub fn set(&self, phase: Phase) -> Result<()> {
        let number = Tensor::new(phase.number(), self.0.device())?;
        Ok(self.0.set(&number.to_dtype(self.0.dtype())?)?)
    }
}
