//! The block shortcut: the previous blocks see this block's input too.

use crate::chain::Block;
use crate::layer::{Folded, Layer, Update};
use candle_core::{D, Tensor};
use lowrank_adapter::{Pass, Result};

/// s Σ_k drop_k(x) Aᵀ_{n-k} Bᵀ_{n-k}: one update of rank (m + 1) r. Each block draws a mask of its own.
pub(crate) fn update(layer: &Layer, x: &Tensor, pass: &mut Pass) -> Result<Update> {
    let path = &layer.place.own().path;
    let all: Vec<&Block> = reached(layer).collect();
    let b = joined(all.iter().map(|block| block.b.get(pass)).collect(), 1)?;
    let dropout = layer.dropout(path, pass)?;
    if dropout.is_none() || all.len() == 1 {
        return Ok(Update::Factors {
            a: joined(all.iter().map(|block| block.a.get(pass)).collect(), 0)?,
            b,
            scale: layer.scale,
            dropout,
        });
    }
    let mut h = Vec::with_capacity(all.len());
    for (k, block) in all.iter().enumerate() {
        let key = match k {
            0 => path.clone(),
            _ => format!("{path}.{k}"),
        };
        h.push(layer.down(x, &block.a.get(pass), &key, pass)?);
    }
    let h = (Tensor::cat(&h, D::Minus1)? * layer.scale)?;
    Ok(Update::Activations { h, b })
}

/// [B_n … B_{n-m}] and [A_n; …; A_{n-m}].
pub(crate) fn folded(layer: &Layer) -> Result<Folded> {
    Ok(Folded {
        a: joined(reached(layer).map(|block| block.a.value()).collect(), 0)?,
        b: joined(reached(layer).map(|block| block.b.value()).collect(), 1)?,
        exact: true,
    })
}

/// The block itself and those that reach it, the nearest first.
fn reached(layer: &Layer) -> impl Iterator<Item = &Block> {
    let count = 1 + layer.pre_num.of(layer.place.earlier());
    layer.place.through().iter().rev().take(count)
}

fn joined(mut all: Vec<Tensor>, axis: usize) -> Result<Tensor> {
    Ok(match all.len() {
        1 => all.swap_remove(0),
        _ => Tensor::cat(&all, axis)?,
    })
}
