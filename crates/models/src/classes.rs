//! What a classification head is asked: labels that name a class or a value, and their losses.

use candle_core::Tensor;
use lowrank_adapter::{Error, Linear, Pass, Result};
use std::num::NonZeroUsize;

/// The loss of each of some rows: `x` [targets, hidden] is what `head` reads of them, `targets` their rows in the batch and
/// labels -> [targets]. With one label that is the squared error of a regression, else the cross-entropy.
pub(crate) fn losses(
    head: &Linear,
    num_labels: NonZeroUsize,
    x: &Tensor,
    targets: &[(u32, f64)],
    pass: &mut Pass,
) -> Result<Tensor> {
    if num_labels.get() > 1 {
        let classes: Vec<u32> = targets
            .iter()
            .map(|(row, label)| class(*row, *label, num_labels))
            .collect::<Result<_>>()?;
        return head.cross_entropy(x, &classes, pass);
    }
    if let Some((row, label)) = targets.iter().find(|(_, label)| !label.is_finite()) {
        let what = format!("row {row} of the batch: the label is {label}, expected a number");
        return Err(Error::Other(what));
    }
    let values: Vec<f64> = targets.iter().map(|(_, label)| *label).collect();
    let predicted = head.forward(x, pass)?.squeeze(1)?;
    let values = Tensor::new(values, x.device())?.to_dtype(predicted.dtype())?;
    Ok((predicted - values)?.sqr()?)
}

fn class(row: u32, label: f64, num_labels: NonZeroUsize) -> Result<u32> {
    let last = num_labels.get() - 1;
    if label.fract() == 0.0 && label >= 0.0 && label <= last as f64 {
        return Ok(label as u32);
    }
    Err(Error::Other(format!(
        "row {row} of the batch: the label is {label}, expected a class from 0 to {last}"
    )))
}
