//! The middle shortcut: B sees what the previous blocks' A made of their inputs.

use crate::MergeMode;
use crate::chain::Block;
use crate::layer::{Folded, Layer, Update};
use crate::norms;
use candle_core::Tensor;
use lowrank_adapter::{Pass, Result};

/// s Σ_k u_{n-k} with u = drop(x) Aᵀ, each block's own.
pub(crate) fn update(layer: &Layer, x: &Tensor, pass: &mut Pass) -> Result<Update> {
    let place = &layer.place;
    let own = place.own();
    if layer.merge == MergeMode::Weights && own.norm.is_some() {
        norms::record(pass, own.site, x)?;
    }
    let (a, b) = (own.a.get(pass), own.b.get(pass));
    let widest = layer.pre_num.of(place.len() - 1);
    if widest == 0 {
        return Ok(Update::Factors {
            a,
            b,
            scale: layer.scale,
            dropout: layer.dropout(&own.path, pass)?,
        });
    }
    let u = layer.down(x, &a, &own.path, pass)?;
    if layer.merge == MergeMode::Inputs {
        norms::record(pass, own.site, &u)?;
    }
    let mut left = std::mem::take(pass.carry(place.left_to_all()));
    let mut sum = u.clone();
    for earlier in left.iter().rev() {
        sum = (sum + earlier)?;
    }
    if place.next().is_some() {
        if widest == place.len() - 1 {
            // Where everything reaches everything, one sum stands for all.
            left = vec![sum.clone()];
        } else {
            left.push(u);
            if left.len() > widest {
                left.remove(0);
            }
        }
        *pass.carry(place.left_to_all()) = left;
    }
    let h = (sum * layer.scale)?;
    Ok(Update::Activations { h, b })
}

/// W + (1 + α) s B A with α = Σ f_{n-k} / f_n over norms of u, or W + s B (A + Σ f_{n-k} / f_n A_{n-k}) over norms of x.
pub(crate) fn folded(layer: &Layer) -> Result<Option<Folded>> {
    let place = &layer.place;
    let own = place.own();
    let count = layer.pre_num.of(place.earlier());
    if count == 0 {
        return Ok(Some(layer.alone()));
    }
    let earlier: Vec<&Block> = place.through().iter().rev().skip(1).take(count).collect();
    match layer.merge {
        MergeMode::None => Ok(None),
        MergeMode::Inputs => {
            let mut alpha = 0.0;
            for block in earlier {
                alpha += norms::ratio(block, own)?;
            }
            layer.scaled(1.0 + alpha).map(Some)
        }
        MergeMode::Weights => {
            let mut a = own.a.value();
            for block in earlier {
                a = (a + (block.a.value() * norms::ratio(block, own)?)?)?;
            }
            Ok(Some(Folded {
                a,
                exact: false,
                ..layer.alone()
            }))
        }
    }
}
