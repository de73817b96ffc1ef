//! Norms of activations: measured in training, averaged over a window, saved for merging.

use crate::chain::Block;
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    Attach, Controller, Error, Kind, Param, Pass, Records, Result, SiteId, Spec, State, Step,
};
use lowrank_ops as ops;
use std::collections::{BTreeMap, VecDeque};

/// The name of the saved tensor, and of the record.
const NAME: &str = "reslora_norm";

/// How many of the latest passes count.
const WINDOW: usize = 100;

/// The mean norm of a block's activation over the window; 0 before anything was measured.
#[derive(Debug, Clone)]
pub(crate) struct Norm(Param);

impl Norm {
    /// Declares the tensor.
    pub fn declare(cx: &mut Attach<'_>, site: SiteId) -> Result<Self> {
        Ok(Self(
            cx.declare(site, Spec::new(NAME, 1).kind(Kind::Saved))?,
        ))
    }

    /// The mean.
    pub fn get(&self) -> Result<f64> {
        Ok(self
            .0
            .value()
            .to_dtype(DType::F64)?
            .sum_all()?
            .to_scalar()?)
    }

    fn set(&self, mean: f64) -> Result<()> {
        let value = Tensor::new(&[mean], &Device::Cpu)?;
        Ok(self.0.set(&value.to_dtype(self.0.dtype())?)?)
    }
}

/// f_{n-k} / f_n of what training measured of two blocks; 1 where nothing was.
pub(crate) fn ratio(earlier: &Block, own: &Block) -> Result<f64> {
    match (&earlier.norm, &own.norm) {
        (Some(earlier), Some(own)) => Ok(quotient(earlier.get()?, own.get()?)),
        _ => Ok(1.0),
    }
}

/// The quotient of two norms; 1 if one of them is 0.
pub(crate) fn quotient(one: f64, other: f64) -> f64 {
    if one > 0.0 && other > 0.0 {
        one / other
    } else {
        1.0
    }
}

/// Leaves the Frobenius norm of `x` (.., n) over the tokens that are not padding to the controller. The official code
/// counts padding too, and its norms change with the longest row of a batch.
pub(crate) fn record(pass: &mut Pass, site: SiteId, x: &Tensor) -> Result<()> {
    if !pass.training() {
        return Ok(());
    }
    let squares = ops::row_norms_squared(x)?;
    let segments = pass.tokens().map(|tokens| tokens.segments.as_slice());
    let sum: f64 = match segments {
        Some(segments) if segments.len() == squares.len() => {
            let real = squares
                .iter()
                .zip(segments)
                .filter(|(_, segment)| **segment != 0);
            real.map(|(square, _)| square).sum()
        }
        // Rows that the head was asked for, or no model: nothing is padded.
        _ => squares.iter().sum(),
    };
    pass.record(site, NAME, &Tensor::new(sum.sqrt(), x.device())?);
    Ok(())
}

/// Keeps the windows of all blocks.
#[derive(Debug)]
pub(crate) struct Windows(BTreeMap<SiteId, (Norm, Window)>);

impl Windows {
    /// Empty windows: means stay what they are until something is measured.
    pub fn new(norms: impl IntoIterator<Item = (SiteId, Norm)>) -> Self {
        let empty = |(site, norm)| (site, (norm, Window::new(WINDOW)));
        Self(norms.into_iter().map(empty).collect())
    }
}

impl Controller for Windows {
    fn observe(&mut self, _step: Step, records: &Records) -> Result<()> {
        for (site, name, value) in records {
            if *name != NAME {
                continue;
            }
            if let Some((norm, window)) = self.0.get_mut(site) {
                window.push(value.to_scalar()?);
                if let Some(mean) = window.mean() {
                    norm.set(mean)?;
                }
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<State> {
        let windows = self.0.values().map(|(_, window)| &window.values);
        let lengths: Vec<usize> = windows.clone().map(VecDeque::len).collect();
        let values: Vec<f64> = windows.flatten().copied().collect();
        let mut tensors = BTreeMap::new();
        // A file of tensors has none without numbers.
        if !values.is_empty() {
            tensors.insert(NAME.to_owned(), Tensor::new(values, &Device::Cpu)?);
        }
        Ok(State {
            values: lengths.into(),
            tensors,
        })
    }

    fn restore(&mut self, state: State) -> Result<()> {
        let foreign = || Error::Other(format!("the state of `{NAME}` is not of these sites"));
        let lengths: Vec<usize> = serde_json::from_value(state.values).map_err(|_| foreign())?;
        let values: Vec<f64> = match state.tensors.get(NAME) {
            Some(values) => values.to_vec1()?,
            None => Vec::new(),
        };
        if lengths.len() != self.0.len() || lengths.iter().sum::<usize>() != values.len() {
            return Err(foreign());
        }
        let mut values = values.into_iter();
        for ((_, window), length) in self.0.values_mut().zip(lengths) {
            window.values = values.by_ref().take(length).collect();
        }
        Ok(())
    }
}

/// The latest numbers of a sequence.
#[derive(Debug)]
struct Window {
    length: usize,
    values: VecDeque<f64>,
}

impl Window {
    const fn new(length: usize) -> Self {
        Self {
            length,
            values: VecDeque::new(),
        }
    }

    /// Adds a norm; one of 0 says nothing.
    fn push(&mut self, norm: f64) {
        if norm > 0.0 {
            self.values.push_back(norm);
        }
        if self.values.len() > self.length {
            self.values.pop_front();
        }
    }

    fn mean(&self) -> Option<f64> {
        let sum: f64 = self.values.iter().sum();
        (!self.values.is_empty()).then(|| sum / self.values.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_the_latest_norms_that_are_not_0() {
        let mut windows = [Window::new(2), Window::new(2)];
        let ratio = |windows: &[Window; 2]| {
            let [one, other] = [&windows[0], &windows[1]].map(Window::mean);
            Some(one? / other?)
        };
        assert_eq!(ratio(&windows), None);
        for norms in [[3.0, 4.0], [0.0, 0.0], [5.0, 8.0]] {
            for (window, norm) in windows.iter_mut().zip(norms) {
                window.push(norm);
            }
        }
        // A ratio of means; the mean of ratios is 0.6875.
        assert_eq!(ratio(&windows), Some(4.0 / 6.0));
        windows[0].push(10.0);
        windows[1].push(20.0);
        assert_eq!(ratio(&windows), Some(7.5 / 14.0));
    }
}
