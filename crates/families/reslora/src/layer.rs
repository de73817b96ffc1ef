//! One adapted layer, whatever its shortcut.

use crate::chain::Place;
use crate::{MergeMode, PreNum, ResType, ResloraConfig, block, input, middle};
use candle_core::Tensor;
use lowrank_adapter::{Adapter, LowRank, Merge, Pass, Result};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, Dropout};

#[derive(Debug)]
pub(crate) struct Layer {
    pub place: Place,
    pub res_type: ResType,
    pub pre_num: PreNum,
    pub merge: MergeMode,
    pub scale: f64,
    pub dropout: f64,
}

/// What a layer adds to its base's output.
pub(crate) enum Update {
    /// scale (drop(x) Aᵀ) Bᵀ.
    Factors {
        a: Tensor,
        b: Tensor,
        scale: f64,
        dropout: Option<Dropout>,
    },
    /// h Bᵀ, with h (.., rank).
    Activations { h: Tensor, b: Tensor },
}

/// The factors of s B A, what is folded into the base.
pub(crate) struct Folded {
    pub a: Tensor,
    pub b: Tensor,
    pub exact: bool,
}

impl Layer {
    pub fn new(config: &ResloraConfig, place: Place) -> Self {
        Self {
            place,
            res_type: config.res_type,
            pre_num: config.pre_num,
            merge: config.merge,
            scale: config.scale(),
            dropout: config.lora_dropout.get(),
        }
    }

    /// The dropout of one block's input, keyed by `key`.
    pub fn dropout(&self, key: &str, pass: &Pass) -> Result<Option<Dropout>> {
        pass.dropout(self.dropout, key)
    }

    /// drop(x) Aᵀ: `x` (.., n_in), `a` `[rank, n_in]` -> (.., rank).
    pub fn down(&self, x: &Tensor, a: &Tensor, key: &str, pass: &Pass) -> Result<Tensor> {
        Ok(ops::linear(&self.dropped(x, key, pass)?, a, None)?)
    }

    fn dropped(&self, x: &Tensor, key: &str, pass: &Pass) -> Result<Tensor> {
        match self.dropout(key, pass)? {
            Some(dropout) => Ok(dropout.of(x)?),
            None => Ok(x.clone()),
        }
    }

    fn update(&self, x: &Tensor, pass: &mut Pass) -> Result<Update> {
        match self.res_type {
            ResType::Input => input::update(self, x, pass),
            ResType::Block => block::update(self, x, pass),
            ResType::Middle => middle::update(self, x, pass),
        }
    }

    /// B and A as they are: a block that no shortcut reaches.
    pub fn alone(&self) -> Folded {
        let own = self.place.own();
        Folded {
            a: own.a.value(),
            b: own.b.value(),
            exact: true,
        }
    }

    /// B times `factor`, near to what the layer does.
    pub fn scaled(&self, factor: f64) -> Result<Folded> {
        let alone = self.alone();
        Ok(Folded {
            b: (alone.b * factor)?,
            exact: false,
            ..alone
        })
    }
}

impl Update {
    fn onto(self, base: &FrozenLinear, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Activations { h, b } => base.forward_plus(x, &h, &b)?,
            Self::Factors {
                a,
                b,
                scale,
                dropout,
            } => match dropout {
                None => base.forward_low_rank(x, &a, &b, scale)?,
                Some(dropout) => base.forward_low_rank_dropped(x, &a, &b, scale, dropout)?,
            },
        })
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.update(x, pass)?.onto(base, x)
    }

    fn delta(&self, _: &FrozenLinear, x: &Tensor, _: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        Ok(match self.update(x, pass)? {
            Update::Activations { h, b } => ops::linear(&h, &b, None)?,
            Update::Factors { a, b, scale, .. } => {
                let x = self.dropped(x, &self.place.own().path, pass)?;
                ops::low_rank(&x, &a, &b, scale)?
            }
        })
    }

    fn merge(&self, weight: &Tensor, _: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let folded = match (self.res_type, self.merge) {
            (ResType::Input, MergeMode::Weights) => Some(input::in_order(self, weight, pass)?),
            (ResType::Input, _) => input::folded(self)?,
            (ResType::Block, _) => Some(block::folded(self)?),
            (ResType::Middle, _) => middle::folded(self)?,
        };
        let Some(Folded { a, b, exact }) = folded else {
            return Ok(Merge::InputDependent {
                why: "a shortcut brings another layer's input; `merge = \"bi\"` or \"bw\" folds an estimate of it, else keep \
                      the adapter apart",
            });
        };
        let merged = ops::add_scaled(weight, &b.matmul(&a)?, self.scale)?.into();
        Ok(match exact {
            true => Merge::Exact(merged),
            false => Merge::Approximate(merged),
        })
    }

    fn low_rank(&self) -> Result<Option<LowRank>> {
        let folded = match self.res_type {
            ResType::Input => input::folded(self)?,
            ResType::Block => Some(block::folded(self)?),
            ResType::Middle => middle::folded(self)?,
        };
        Ok(folded.map(|Folded { a, b, exact }| LowRank {
            a,
            b,
            scale: self.scale,
            exact,
        }))
    }
}
