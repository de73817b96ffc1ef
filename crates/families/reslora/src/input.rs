//! The input shortcut: A sees the previous block's input beside its own.

use crate::MergeMode;
use crate::layer::{Folded, Layer, Update};
use crate::norms;
use candle_core::{D, Device, Tensor};
use lowrank_adapter::{Error, Pass, Result};
use lowrank_ops as ops;

/// s drop(x + p) Aᵀ with p the previous block's input, or x itself where there is none.
///
/// drop(p) Aᵀ is made where p is at hand, by the previous block with this block's A and mask: what crosses layers is
/// (.., r), not an activation of the model's width, and p is read once for both blocks.
pub(crate) fn update(layer: &Layer, x: &Tensor, pass: &mut Pass) -> Result<Update> {
    let place = &layer.place;
    let own = place.own();
    if layer.merge == MergeMode::Inputs {
        norms::record(pass, own.site, x)?;
    }
    let slot = place.left_by_previous();
    let before = slot.and_then(|slot| pass.carry(slot).pop());
    let (a, b) = (own.a.get(pass), own.b.get(pass));
    let Some(next) = place.next() else {
        let Some(before) = before else {
            return Ok(Update::Factors {
                a,
                b,
                scale: 2.0 * layer.scale,
                dropout: layer.dropout(&own.path, pass)?,
            });
        };
        let h = layer.down(x, &a, &own.path, pass)?;
        let h = ((h + before)? * layer.scale)?;
        return Ok(Update::Activations { h, b });
    };
    let (u, left) = if layer.dropout > 0.0 && pass.training() {
        let u = layer.down(x, &a, &own.path, pass)?;
        (u, layer.down(x, &next.a.get(pass), &next.path, pass)?)
    } else {
        let rank = a.dim(0)?;
        let both = ops::linear(x, &Tensor::cat(&[&a, &next.a.get(pass)], 0)?, None)?;
        let half =
            |first| -> Result<Tensor> { Ok(both.narrow(D::Minus1, first, rank)?.contiguous()?) };
        (half(0)?, half(rank)?)
    };
    pass.carry(place.left_to_next()).push(left);
    let h = match before {
        Some(before) => ((u + before)? * layer.scale)?,
        None => (u * (2.0 * layer.scale))?,
    };
    Ok(Update::Activations { h, b })
}

/// W + (1 + α) s B A: exact where x is doubled, near where x stands for the previous input, which is taken as α x.
pub(crate) fn folded(layer: &Layer) -> Result<Option<Folded>> {
    let place = &layer.place;
    if place.earlier() == 0 {
        return doubled(layer).map(Some);
    }
    let alpha = match layer.merge {
        MergeMode::None => None,
        MergeMode::Inputs => {
            let [.., before, own] = place.through() else {
                return Ok(None);
            };
            Some(norms::ratio(before, own)?)
        }
        MergeMode::Weights => by_weights(layer)?,
    };
    let alpha = alpha.map(|alpha| layer.scaled(1.0 + alpha));
    alpha.transpose()
}

/// Exact: at the head of a chain x is its own shortcut.
fn doubled(layer: &Layer) -> Result<Folded> {
    Ok(Folded {
        exact: true,
        ..layer.scaled(2.0)?
    })
}

/// α from the norms of the weights merged so far: the quotient of the last two before this block, from the head upwards;
/// 1 for the first two of a chain. Nothing if the base is not at hand.
fn by_weights(layer: &Layer) -> Result<Option<f64>> {
    let blocks = layer.place.through();
    if blocks.iter().any(|block| block.base.encoding().is_none()) {
        return Ok(None);
    }
    let mut merged: Vec<f64> = Vec::new();
    for block in &blocks[..blocks.len() - 1] {
        let scale = layer.scale * (1.0 + quotient(&merged));
        merged.push(block.merged_square(scale)?.sqrt());
    }
    Ok(Some(quotient(&merged)))
}

fn quotient(merged: &[f64]) -> f64 {
    match merged {
        [.., before, last] => norms::quotient(*before, *last),
        _ => 1.0,
    }
}

/// The same where weights are merged one by one: each leaves its norm, and the one before it, to the next.
pub(crate) fn in_order(layer: &Layer, weight: &Tensor, pass: &mut Pass) -> Result<Folded> {
    let place = &layer.place;
    let mut merged: Vec<f64> = Vec::new();
    if let Some(slot) = place.left_by_previous() {
        for norm in pass.carry(slot).drain(..) {
            merged.push(norm.to_scalar()?);
        }
        if merged.is_empty() {
            return Err(Error::Other(
                "`merge = \"bw\"` needs the merged weights of the layers before, and they were not merged in this pass"
                    .into(),
            ));
        }
    }
    let folded = match place.earlier() {
        0 => doubled(layer)?,
        _ => layer.scaled(1.0 + quotient(&merged))?,
    };
    let update = folded.b.matmul(&folded.a)?;
    let norm = ops::norm_squared(&ops::add_scaled(weight, &update, layer.scale)?)?.sqrt();
    merged.push(norm);
    for norm in merged.iter().rev().take(2).rev() {
        pass.carry(place.left_to_next())
            .push(Tensor::new(*norm, &Device::Cpu)?);
    }
    Ok(folded)
}
