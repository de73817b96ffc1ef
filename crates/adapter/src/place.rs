//! Where a model lies.

use crate::Result;
use crate::model::{Model, Part};
use candle_core::Device;
use std::collections::BTreeMap;

/// Moves a model's weights to a device, each in turn; adapters that are attached afterwards lie there too. Anywhere but on
/// the CPU weights that were held in fewer bits become f32. A tied head goes on sharing the embedding's table.
///
/// # Errors
/// If adapters are attached already, or the device has no room for a weight; what was moved before it stays there.
pub fn place(model: &mut dyn Model, device: &Device) -> Result<()> {
    let mut tables = BTreeMap::new();
    let mut failed = None;
    model.parts(&mut |part| {
        let visit = || -> Result<()> {
            match part {
                Part::Embedding(embedding) => {
                    embedding.weight.move_to(device)?;
                    tables.insert(embedding.path().to_owned(), embedding.weight.head()?);
                    Ok(())
                }
                Part::Norm(norm) => std::iter::once(&mut norm.weight)
                    .chain(&mut norm.bias)
                    .try_for_each(|weight| weight.move_to(device)),
                Part::Linear(linear) | Part::Head(linear) => {
                    let shared = linear.tied_to().and_then(|home| tables.get(home));
                    linear.move_to(device, shared)
                }
            }
        };
        if failed.is_none() {
            failed = visit().err();
        }
    });
    failed.map_or(Ok(()), Err)
}
