//! Layers that hand something on to the next layer of the same role, across blocks.

use super::dropped;
use candle_core::Tensor;
use lowrank_adapter::{
    Adapter, Attach, Attachment, Chain, Family, Init, Merge, Param, Pass, Probability, Result, Spec,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// What a layer leaves to the next of its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carried {
    /// Its A, the carried part included: the sum can be merged.
    #[default]
    Weights,
    /// Its activations A x, the carried part included: they depend on another layer's input.
    Activations,
}

/// The keys of [`Chained`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ChainedConfig {
    /// The rank.
    pub r: NonZeroUsize,
    /// The update is multiplied by alpha / r.
    pub alpha: f64,
    /// What is handed on.
    pub carried: Carried,
    /// Dropout of the input.
    pub dropout: Probability,
}

impl Default for ChainedConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(2).expect("2 is not 0"),
            alpha: 3.0,
            carried: Carried::default(),
            dropout: Probability::default(),
        }
    }
}

/// With c what the previous layer of the role left and g a trained number, y = W x + s B (A + g c) x if weights are
/// carried, y = W x + s B (A x + g c) if activations are.
#[derive(Debug, Clone, Copy)]
pub struct Chained;

#[derive(Debug)]
struct Layer {
    path: String,
    a: Param,
    b: Param,
    chain: Chain,
    /// `[1]`; the first layer of a role receives nothing.
    gain: Option<Param>,
    scale: f64,
    config: ChainedConfig,
}

impl Family for Chained {
    type Config = ChainedConfig;
    const NAME: &'static str = "chained";

    fn attach(&self, config: &ChainedConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        // Layers of one role and size form a chain.
        let mut chains: BTreeMap<(String, (usize, usize)), Chain> = BTreeMap::new();
        Attachment::per_site(cx, |cx, site| {
            let ((n_out, n_in), rank) = (cx.site(site).dims(), config.r.get());
            let a = Spec::new("lora_A.weight", (rank, n_in)).init(Init::KaimingUniform);
            let a = cx.declare(site, a)?;
            let b = cx.declare(site, Spec::new("lora_B.weight", (n_out, rank)))?;
            let role = (cx.site(site).role.clone(), (n_out, n_in));
            let (chain, gain) = match chains.get(&role) {
                Some(chain) => {
                    let gain = Spec::new("chained_gain", 1).init(Init::Ones);
                    (chain.clone(), Some(cx.declare(site, gain)?))
                }
                None => {
                    let chain = cx.chain();
                    chains.insert(role, chain.clone());
                    (chain, None)
                }
            };
            Ok(Box::new(Layer {
                path: cx.site(site).path.clone(),
                a,
                b,
                chain,
                gain,
                scale: config.alpha / rank as f64,
                config: config.clone(),
            }))
        })
    }
}

impl Layer {
    /// `own` plus what was carried here, which is left to the next layer.
    fn chained(&self, own: Tensor, pass: &mut Pass) -> Result<Tensor> {
        let sum = match (&self.gain, pass.carry(&self.chain).pop()) {
            (Some(gain), Some(carried)) => (own + carried.broadcast_mul(&gain.get(pass))?)?,
            _ => own,
        };
        pass.carry(&self.chain).push(sum.clone());
        Ok(sum)
    }

    /// s (A + g c) x or s (A x + g c): `x` (.., n_in) -> (.., r).
    fn down(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let x = dropped(x, self.config.dropout, &self.path, pass)?;
        let a = self.a.get(pass);
        let h = match self.config.carried {
            Carried::Weights => ops::linear(&x, &self.chained(a, pass)?, None)?,
            Carried::Activations => {
                let own = ops::linear(&x, &a, None)?;
                self.chained(own, pass)?
            }
        };
        Ok((h * self.scale)?)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let h = self.down(x, pass)?;
        Ok(base.forward_plus(x, &h, &self.b.get(pass))?)
    }

    fn delta(
        &self,
        _base: &FrozenLinear,
        x: &Tensor,
        _y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let h = self.down(x, pass)?;
        Ok(ops::linear(&h, &self.b.get(pass), None)?)
    }

    fn merge(&self, weight: &Tensor, _bias: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let a = match (self.config.carried, &self.gain) {
            (Carried::Weights, _) => self.chained(self.a.get(pass), pass)?,
            (Carried::Activations, None) => self.a.get(pass),
            (Carried::Activations, Some(_)) => {
                return Ok(Merge::InputDependent {
                    why: "another layer's activations enter",
                });
            }
        };
        let update = self.b.get(pass).matmul(&a)?;
        Ok(Merge::Exact(
            ops::add_scaled(weight, &update, self.scale)?.into(),
        ))
    }
}
