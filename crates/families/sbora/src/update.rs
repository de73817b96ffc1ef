//! Updates of some columns or rows of a weight: folding them in, and taking them out again bit for bit.

use crate::config::Variant;
use candle_core::{Device, Tensor};
use lowrank_adapter::{Error, LowRank, Result};
use std::collections::BTreeSet;

/// What one adapter adds to one weight `[n_out, n_in]`: to columns (FA) or rows (FB), and to nothing else.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lowrank_sbora::{Update, Variant};
/// let weight = Tensor::new(&[[1f32, 0., 2.], [0., 1., -1.]], &Device::Cpu)?;
/// let factor = Tensor::new(&[[4f32], [-2.]], &Device::Cpu)?;
/// let update = Update::new(Variant::Fa, vec![2], factor, 0.5)?;
/// let (merged, kept) = update.fold_into(&weight)?;
/// assert_eq!(merged.to_vec2::<f32>()?, [[1., 0., 4.], [0., 1., -2.]]);
/// assert_eq!(kept.restore(&merged)?.to_vec2::<f32>()?, weight.to_vec2::<f32>()?);
/// # Ok::<(), lowrank_adapter::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Update {
    variant: Variant,
    indices: Vec<u32>,
    factor: Tensor,
    scale: f64,
}

/// The columns or rows of a weight as they were before an update was folded in.
#[derive(Debug, Clone)]
pub struct Kept {
    axis: usize,
    indices: Vec<u32>,
    /// Of the weight's shape but for the axis, along which there is one slice for each index.
    values: Tensor,
}

/// What to do with updates that change the same column or row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Their contributions add up, and a warning says where.
    Warn,
    /// An error.
    Refuse,
}

impl Update {
    /// `factor` is B `[n_out, r]` for columns and A `[r, n_in]` for rows, with one of its columns or rows for each of the
    /// `indices`; what is added is `scale` times it.
    ///
    /// # Errors
    /// If an index is there twice, or `factor` does not fit.
    pub fn new(variant: Variant, indices: Vec<u32>, factor: Tensor, scale: f64) -> Result<Self> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = indices.iter().find(|index| !seen.insert(**index)) {
            return Err(Error::Other(format!(
                "the index {twice} is there twice, expected distinct ones"
            )));
        }
        if factor.rank() != 2 || factor.dims()[variant.axis()] != indices.len() {
            return Err(Error::Other(format!(
                "a factor of shape {:?} for {} indices, expected as many {}",
                factor.dims(),
                indices.len(),
                variant.places()
            )));
        }
        Ok(Self {
            variant,
            indices,
            factor: factor.detach(),
            scale,
        })
    }

    /// The weight with the update added, and what was where it was added. Every other number stays as it is, bit for bit.
    ///
    /// # Errors
    /// If the update does not fit the weight.
    pub fn fold_into(&self, weight: &Tensor) -> Result<(Tensor, Kept)> {
        let axis = self.variant.axis();
        let weight = weight.detach().contiguous()?;
        let fits = weight.rank() == 2 && weight.dims()[1 - axis] == self.factor.dims()[1 - axis];
        let largest = self.indices.iter().max();
        if !fits || largest.is_some_and(|index| *index as usize >= weight.dims()[axis]) {
            return Err(Error::Other(format!(
                "an update of the {} {:?} with a factor of shape {:?} does not fit a weight of shape {:?}",
                self.variant.places(),
                self.indices,
                self.factor.dims(),
                weight.dims()
            )));
        }
        let indices = Tensor::new(self.indices.as_slice(), weight.device())?;
        let kept = Kept {
            axis,
            indices: self.indices.clone(),
            values: weight.index_select(&indices, axis)?,
        };
        let added = (self.factor.to_dtype(weight.dtype())? * self.scale)?;
        Ok((
            weight.index_add(&indices, &added.contiguous()?, axis)?,
            kept,
        ))
    }

    /// The update as `scale * b a`, one of the two one-hot, of a weight that has `count` columns (FA) or rows (FB).
    ///
    /// # Errors
    /// If an index is not below `count`.
    pub fn low_rank(&self, count: usize) -> Result<LowRank> {
        let rank = self.indices.len();
        let mut numbers = vec![0f32; rank * count];
        for (slot, index) in self.indices.iter().enumerate() {
            let index = *index as usize;
            if index >= count {
                return Err(Error::Other(format!(
                    "the index {index} is not below {count}"
                )));
            }
            numbers[slot * count + index] = 1.0;
        }
        let one_hot = Tensor::from_vec(numbers, (rank, count), &Device::Cpu)?;
        let one_hot = one_hot
            .to_dtype(self.factor.dtype())?
            .to_device(self.factor.device())?;
        let (a, b) = match self.variant {
            Variant::Fa => (one_hot, self.factor.clone()),
            Variant::Fb => (self.factor.clone(), one_hot.t()?.contiguous()?),
        };
        Ok(LowRank {
            a,
            b,
            scale: self.scale,
            exact: true,
        })
    }

    /// The indices that this update and another change both, ascending; none if one changes columns and the other rows.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Vec<u32> {
        if self.variant != other.variant {
            return Vec::new();
        }
        let own: BTreeSet<u32> = self.indices.iter().copied().collect();
        let others: BTreeSet<u32> = other.indices.iter().copied().collect();
        own.intersection(&others).copied().collect()
    }
}

impl Kept {
    /// Puts back what was there, bit for bit; every other number stays as it is. Of updates that overlap, the last that
    /// was folded in is taken out first.
    ///
    /// # Errors
    /// If the weight is not of the shape and dtype that it was of.
    pub fn restore(&self, weight: &Tensor) -> Result<Tensor> {
        let mut shape = self.values.dims().to_vec();
        shape[self.axis] = weight.dim(self.axis)?;
        if weight.dims() != shape || weight.dtype() != self.values.dtype() {
            return Err(Error::Other(format!(
                "what was kept belongs to a weight of shape {shape:?} and {}, this one has {:?} and {}",
                self.values.dtype().as_str(),
                weight.dims(),
                weight.dtype().as_str()
            )));
        }
        let indices = Tensor::new(self.indices.as_slice(), weight.device())?;
        let across = indices.unsqueeze(1 - self.axis)?;
        let places = across.broadcast_as(self.values.shape())?.contiguous()?;
        let weight = weight.detach().contiguous()?;
        Ok(weight.scatter(&places, &self.values, self.axis)?)
    }
}

/// Folds several updates into one weight, in order: the weight, and what each of them has changed. What several add to one
/// place adds up. Where they are disjoint each can be taken out alone.
///
/// # Errors
/// If an update does not fit the weight, or two overlap and that is refused.
pub fn fold_all(
    weight: &Tensor,
    updates: &[Update],
    overlap: Overlap,
) -> Result<(Tensor, Vec<Kept>)> {
    for (at, later) in updates.iter().enumerate() {
        for (earlier, update) in updates[..at].iter().enumerate() {
            let both = update.overlap(later);
            if both.is_empty() {
                continue;
            }
            let what = format!(
                "updates {earlier} and {at} both change the {} {both:?}",
                later.variant.places()
            );
            match overlap {
                Overlap::Warn => tracing::warn!("{what}: their contributions add up"),
                Overlap::Refuse => return Err(Error::Other(what)),
            }
        }
    }
    let (mut weight, mut kept) = (weight.clone(), Vec::new());
    for update in updates {
        let (folded, before) = update.fold_into(&weight)?;
        weight = folded;
        kept.push(before);
    }
    Ok((weight, kept))
}
