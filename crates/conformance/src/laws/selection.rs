//! Laws about several adapters over one base.

use crate::case::{Case, NAME, OTHER, SEED, evaluated, outputs, randomise};
use crate::compare::{Verdict, close, differs, same_bits};
use crate::toy::{Head, Toy};
use candle_core::DType;
use lowrank_adapter::{Selection, detach};

const WEIGHTS: [f64; 2] = [0.75, -1.25];

pub(crate) fn selections(case: &Case) -> Verdict {
    let case = case.additive();
    let (mut toy, first) = case.fresh(DType::F64)?;
    let second = case.attach(&mut toy, OTHER, SEED + 1)?;
    randomise(&first.params, 1)?;
    randomise(&second.params, 2)?;
    let names = [NAME, OTHER];
    let [one, other] = names.map(Selection::one);
    let both = Selection::weighted(names.map(Into::into).into_iter().zip(WEIGHTS));

    let alone = [outputs(&mut toy, &one)?, outputs(&mut toy, &other)?];
    let together = outputs(&mut toy, &both)?;
    for (i, (path, base)) in outputs(&mut toy, &Selection::none())?.iter().enumerate() {
        let mut sum = base.clone();
        for (alone, weight) in alone.iter().zip(WEIGHTS) {
            sum = (sum + ((&alone[i].1 - base)? * weight)?)?;
        }
        close(&format!("{path}: the weighted sum"), &together[i].1, &sum)?;
    }

    let base = evaluated(&Toy::new(DType::F64, Head::Own)?, &Selection::none())?;
    let with_one = evaluated(&toy, &one)?;
    let with_both = evaluated(&toy, &both)?;
    differs("the adapter against the base", &with_one, &base)?;
    differs("both against one", &with_both, &with_one)?;
    same_bits(
        "nothing selected",
        &evaluated(&toy, &Selection::none())?,
        &base,
    )?;
    evaluated(&toy, &other)?;
    same_bits("the first again", &evaluated(&toy, &one)?, &with_one)?;
    same_bits("both again", &evaluated(&toy, &both)?, &with_both)?;

    detach(&mut toy, OTHER);
    same_bits("the second detached", &evaluated(&toy, &one)?, &with_one)?;
    detach(&mut toy, NAME);
    same_bits(
        "both detached",
        &evaluated(&toy, &Selection::none())?,
        &base,
    )?;
    same_bits("a detached name selected", &evaluated(&toy, &one)?, &base)
}
