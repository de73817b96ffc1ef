//! Laws about folding an adapter into its base.

use crate::case::{Case, NAME, OTHER, SEED, input, outputs, randomise, walk};
use crate::compare::{Verdict, close, difference, require};
use crate::toy::Toy;
use candle_core::{DType, Tensor};
use lowrank_adapter::{Linear, Merge, Merged, Pass, Selection};
use lowrank_frozen::FrozenLinear;

pub(crate) fn is_exact(case: &Case) -> Verdict {
    for dtype in [DType::F32, DType::F64] {
        let (mut toy, _) = case.trained(dtype)?;
        let found = merge_all(&mut toy, &Selection::one(NAME))?;
        require(found.approximate == 0 && found.refused == 0, || {
            format!(
                "{} layers merge approximately and {} not at all; declare it",
                found.approximate, found.refused
            )
        })?;
    }
    // Changes to the weight add up like changes to the output.
    let case = case.additive();
    let (mut toy, _) = case.trained(DType::F64)?;
    let other = case.attach(&mut toy, OTHER, SEED + 1)?;
    randomise(&other.params, 2)?;
    let weighted = Selection::weighted([(NAME.into(), 0.75), (OTHER.into(), -1.25)]);
    merge_all(&mut toy, &weighted)?;
    Ok(())
}

pub(crate) fn is_approximate(case: &Case) -> Verdict {
    let (mut toy, _) = case.trained(DType::F64)?;
    let found = merge_all(&mut toy, &Selection::one(NAME))?;
    require(found.approximate > 0 && found.refused == 0, || {
        format!(
            "{} layers merge exactly, {} approximately and {} not at all",
            found.exact, found.approximate, found.refused
        )
    })
}

pub(crate) fn is_refused(case: &Case) -> Verdict {
    let (mut toy, _) = case.trained(DType::F64)?;
    let found = merge_all(&mut toy, &Selection::one(NAME))?;
    require(found.refused > 0, || {
        format!(
            "{} layers merge exactly, {} approximately: none depends on the input",
            found.exact, found.approximate
        )
    })
}

/// How many layers merged how.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub exact: usize,
    pub approximate: usize,
    pub refused: usize,
}

/// Merges every layer, in site order. Those that say they are exact must be.
pub(crate) fn merge_all(toy: &mut Toy, selection: &Selection) -> Verdict<Found> {
    let adapted = outputs(toy, selection)?;
    let mut adapted = adapted.iter();
    let mut pass = Pass::evaluation(selection.clone());
    let mut found = Found::default();
    walk(toy, &mut |linear| {
        let Some((_, expected)) = adapted.next() else {
            return require(false, || "more layers than before".into());
        };
        match linear.merge(&mut pass)? {
            Merge::Exact(merged) => {
                found.exact += 1;
                close(
                    &format!("{} merged", linear.path()),
                    &merged_output(linear, merged)?,
                    expected,
                )
            }
            Merge::Approximate(merged) => {
                found.approximate += 1;
                let (gap, size) = difference(&merged_output(linear, merged)?, expected)?;
                require(gap <= 10.0 * size.max(1.0), || {
                    format!(
                        "{} merged approximately is off by {gap}, outputs reach {size}",
                        linear.path()
                    )
                })
            }
            Merge::InputDependent { .. } => {
                found.refused += 1;
                Ok(())
            }
        }
    })?;
    Ok(found)
}

fn merged_output(linear: &Linear, merged: Merged) -> Verdict<Tensor> {
    let bias = merged.bias.or_else(|| linear.base().bias().cloned());
    Ok(FrozenLinear::new(merged.weight, bias)?.forward(&input(linear)?)?)
}
