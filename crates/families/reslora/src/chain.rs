//! Which blocks shortcuts join: those of one projection, from layer to layer.

use crate::norms::Norm;
use candle_core::DType;
use lowrank_adapter::{Attach, Chain, Param, Result, SiteId};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// The A and B of one site, a block in the paper's words.
#[derive(Debug)]
pub(crate) struct Block {
    pub site: SiteId,
    /// Keys the dropout mask.
    pub path: String,
    /// `[r, n_in]`.
    pub a: Param,
    /// `[n_out, r]`.
    pub b: Param,
    /// What training measured, where a merge needs it.
    pub norm: Option<Norm>,
    pub base: FrozenLinear,
    /// ||W||², a constant of the base.
    pub square: OnceLock<f64>,
}

impl Block {
    /// ||W + scale B A||², without forming B A.
    pub fn merged_square(&self, scale: f64) -> Result<f64> {
        let square = match self.square.get() {
            Some(square) => *square,
            None => {
                let square = ops::norm_squared(&self.base.weight()?)?;
                *self.square.get_or_init(|| square)
            }
        };
        let (a, b) = (self.a.value(), self.b.value());
        let across = self.base.with_bias(None).forward(&a)?;
        let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
        let across = across.to_dtype(DType::F64)?.t()?;
        let linear = (across * &b)?.sum_all()?.to_scalar::<f64>()?;
        let grams = (a.matmul(&a.t()?)? * b.t()?.matmul(&b)?)?;
        let quadratic = grams.sum_all()?.to_scalar::<f64>()?;
        Ok((square + 2.0 * scale * linear + scale * scale * quadratic).max(0.0))
    }
}

/// Blocks that shortcuts join, in the order of the forward pass; nothing reaches the first.
#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    /// What each block leaves to later ones.
    slots: Vec<Chain>,
}

/// A block's place in its chain.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    chain: Arc<Blocks>,
    at: usize,
}

impl Place {
    /// The places of all blocks, in their order. A block joins the latest one of its role if both sides of their matrices
    /// are equal, and else begins a chain of its own.
    pub fn all(cx: &mut Attach<'_>, blocks: Vec<Block>) -> Vec<Self> {
        let mut chains: Vec<Blocks> = Vec::new();
        let mut latest: BTreeMap<String, usize> = BTreeMap::new();
        let mut places = Vec::new();
        for block in blocks {
            let role = cx.site(block.site).role.clone();
            let found = latest.get(&role).copied();
            let joined = found.filter(|&chain| {
                let last = chains[chain].blocks.last();
                last.is_some_and(|last| last.base.dims() == block.base.dims())
            });
            let chain = joined.unwrap_or(chains.len());
            if joined.is_none() {
                if found.is_some() {
                    tracing::warn!(
                        "`{}` is {:?} and the `{role}` before it is not: no shortcut joins them",
                        block.path,
                        block.base.dims()
                    );
                }
                chains.push(Blocks {
                    blocks: Vec::new(),
                    slots: Vec::new(),
                });
                latest.insert(role, chain);
            }
            places.push((chain, chains[chain].blocks.len()));
            chains[chain].blocks.push(block);
            chains[chain].slots.push(cx.chain());
        }
        let chains: Vec<Arc<Blocks>> = chains.into_iter().map(Arc::new).collect();
        let place = |(chain, at): (usize, usize)| Self {
            chain: Arc::clone(&chains[chain]),
            at,
        };
        places.into_iter().map(place).collect()
    }

    /// The block itself.
    pub fn own(&self) -> &Block {
        &self.chain.blocks[self.at]
    }

    /// How many blocks come before it.
    pub const fn earlier(&self) -> usize {
        self.at
    }

    /// The blocks of the chain up to this one, from the first.
    pub fn through(&self) -> &[Block] {
        &self.chain.blocks[..=self.at]
    }

    /// The block after it.
    pub fn next(&self) -> Option<&Block> {
        self.chain.blocks.get(self.at + 1)
    }

    /// How many blocks the chain has.
    pub fn len(&self) -> usize {
        self.chain.blocks.len()
    }

    /// The slot of what the previous block leaves to this one.
    pub fn left_by_previous(&self) -> Option<&Chain> {
        self.at.checked_sub(1).map(|at| &self.chain.slots[at])
    }

    /// The slot of what this block leaves to the next one.
    pub fn left_to_next(&self) -> &Chain {
        &self.chain.slots[self.at]
    }

    /// A slot that all blocks of the chain share.
    pub fn left_to_all(&self) -> &Chain {
        &self.chain.slots[0]
    }
}
