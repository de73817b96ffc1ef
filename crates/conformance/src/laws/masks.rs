//! Laws about rank gates.

use super::merging::merge_all;
use crate::case::{Case, NAME, evaluated, logits, noise, share, tokens, training};
use crate::compare::{Broken, Verdict, close, differs, numbers, require, same_bits};
use crate::toy::Toy;
use crate::training::{Run, STEPS, Taken};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    Ask, Attached, Batch, Masks, Memory, Pass, RankGate, Revival, Selection, masked_losses, run,
    sweep,
};

pub(crate) fn respect_budget(case: &Case) -> Verdict {
    let (mut toy, attached) = case.trained(DType::F64)?;
    if attached.gates.is_empty() {
        return Ok(());
    }
    mean_what_they_say(&mut toy, &attached)?;
    for memory in [Memory::Keep, Memory::Recompute] {
        short_run(case, memory)?;
    }
    Ok(())
}

/// Losses under many masks at once are those of a pass for each: these two, each without one slot of each gate, and no
/// mask at all.
fn together_as_alone(toy: &Toy, batch: &Batch, attached: &Attached, masks: [&Masks; 2]) -> Verdict {
    let mut sets = vec![
        Masks::new(),
        masks[0].clone(),
        masks[1].clone(),
        masks[1].clone(),
    ];
    for (i, gate) in attached.gates.iter().enumerate() {
        let lost = i % gate.capacity();
        for masks in masks {
            let mask = numbers(&masks[gate.id()])?;
            let keep = mask.iter().enumerate();
            let keep = keep.map(|(slot, &mask)| mask != 0.0 && slot != lost);
            let mut set = masks.clone();
            set.insert(gate.id().clone(), given(gate, &[gate.capacity()], keep)?);
            sets.push(set);
        }
    }
    let selection = Selection::one(NAME);
    let together = masked_losses(toy, batch, &selection, &sets)?;
    let alone: Vec<f64> = sets
        .iter()
        .map(|set| {
            let mut pass = Pass::evaluation(selection.clone()).with_masks(set.clone());
            let losses = numbers(&run(toy, batch, &Ask::Losses, None, &mut pass)?)?;
            Ok(losses.iter().sum::<f64>() / losses.len() as f64)
        })
        .collect::<Verdict<_>>()?;
    let (together, alone) = (
        Tensor::new(together, &Device::Cpu)?,
        Tensor::new(alone, &Device::Cpu)?,
    );
    close(
        "losses under many masks, together against alone",
        &together,
        &alone,
    )
}

/// Every gate keeps about half of its slots; the first keeps none.
fn pattern(index: usize, gate: &RankGate) -> Vec<bool> {
    (0..gate.capacity())
        .map(|slot| index != 0 && slot % 2 == index % 2)
        .collect()
}

fn given(gate: &RankGate, shape: &[usize], keep: impl Iterator<Item = bool>) -> Verdict<Tensor> {
    let mask: Vec<f64> = keep.map(|keep| f64::from(u8::from(keep))).collect();
    let dtype = gate
        .gated()
        .next()
        .map_or(DType::F64, |param| param.dtype());
    Ok(Tensor::from_vec(mask, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

fn mean_what_they_say(toy: &mut Toy, attached: &Attached) -> Verdict {
    let batch = tokens()?;
    let (rows, selection) = (batch.tokens().rows, Selection::one(NAME));
    let (mut ones, mut halves, mut mixed) = (Masks::new(), Masks::new(), Masks::new());
    for (i, gate) in attached.gates.iter().enumerate() {
        let (keep, rank) = (pattern(i, gate), gate.capacity());
        // A gate may have slots that do not live yet.
        let full = gate.live()?;
        let all = given(gate, &[rank], full.iter().copied())?;
        ones.insert(gate.id().clone(), all);
        halves.insert(
            gate.id().clone(),
            given(gate, &[rank], keep.iter().copied())?,
        );
        // The second row alone is asked about the pattern.
        let by_row = (0..rows).flat_map(|row| if row == 1 { &keep } else { &full });
        mixed.insert(
            gate.id().clone(),
            given(gate, &[rows, 1, rank], by_row.copied())?,
        );
    }
    let asked = |toy: &Toy, masks: &Masks| {
        let mut pass = Pass::evaluation(selection.clone()).with_masks(masks.clone());
        logits(toy, &batch, &mut pass)
    };
    together_as_alone(toy, &batch, attached, [&ones, &halves])?;
    let all = evaluated(toy, &selection)?;
    close(
        "a mask of what lives against no mask",
        &asked(toy, &ones)?,
        &all,
    )?;
    let half = asked(toy, &halves)?;
    differs("a mask of zeros and ones against no mask", &half, &all)?;
    let mut expected = Vec::new();
    let mut start = 0;
    for (row, segments) in batch
        .tokens()
        .segments
        .chunks(batch.tokens().length)
        .enumerate()
    {
        let length = segments.iter().filter(|&&segment| segment != 0).count();
        let from = if row == 1 { &half } else { &all };
        expected.push(from.narrow(0, start, length)?);
        start += length;
    }
    let expected = Tensor::cat(&expected, 0)?;
    close("a mask a row", &asked(toy, &mixed)?, &expected)?;

    for (i, gate) in attached.gates.iter().enumerate() {
        gate.keep(&pattern(i, gate))?;
    }
    let live = evaluated(toy, &selection)?;
    close("live slots against a given mask", &live, &half)?;
    close("no mask against a given one", &asked(toy, &ones)?, &all)?;
    merge_all(toy, &selection)?;
    masked_has_no_gradient(toy, attached)?;
    for (i, gate) in attached.gates.iter().enumerate() {
        for param in gate.gated() {
            let noise = (noise(param, 9, 100.0)?
                * masked(param.value(), axis(param)?, &pattern(i, gate))?)?;
            param.set(&(param.snapshot()? + noise)?)?;
        }
    }
    same_bits(
        "other values in masked slots",
        &evaluated(toy, &selection)?,
        &live,
    )
}

fn axis(param: &lowrank_adapter::Param) -> Verdict<usize> {
    let axis = param.info().rank_axis;
    require(axis.is_some(), || {
        format!("`{}` has no rank axis", param.name())
    })?;
    Ok(axis.unwrap_or_default())
}

/// 1 where a slot does not live, 0 elsewhere, in the shape of `like`.
fn masked(like: Tensor, axis: usize, keep: &[bool]) -> Verdict<Tensor> {
    let mask: Vec<f64> = keep
        .iter()
        .map(|&keep| f64::from(u8::from(!keep)))
        .collect();
    let mut shape = vec![1; like.rank()];
    shape[axis] = keep.len();
    let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?.to_dtype(like.dtype())?;
    Ok(mask.broadcast_as(like.shape())?.contiguous()?)
}

fn masked_has_no_gradient(toy: &Toy, attached: &Attached) -> Verdict {
    let batch = tokens()?;
    let params = attached.trained();
    for memory in [Memory::Keep, Memory::Recompute] {
        let grads = sweep(toy, &batch, &mut training(), &params, share(&batch), memory)?.grads;
        for gate in &attached.gates {
            for param in gate.gated() {
                let Some(grad) = grads.get(param) else {
                    continue;
                };
                let masked = masked(grad.clone(), axis(param)?, &gate.live()?)?;
                let lost = numbers(&(grad * masked)?)?;
                require(lost.iter().all(|&grad| grad == 0.0), || {
                    format!("masked slots of `{}` have a gradient", param.name())
                })?;
            }
        }
    }
    Ok(())
}

fn short_run(case: &Case, memory: Memory) -> Verdict {
    let mut run = Run::new(case, memory)?;
    let mut live = run.live()?;
    let mut changed = false;
    for index in 1..=STEPS {
        let taken = run.step(index)?;
        let now = run.live()?;
        let count = now.iter().flatten().filter(|&&live| live).count();
        let budget = run.budget()?;
        require(count == budget, || {
            format!("{count} slots live after step {index}, the budget is {budget}")
        })?;
        let mut known = 0;
        for (gate, was_live) in run.attached.gates.iter().zip(&live) {
            known += revived(gate, was_live, &taken)
                .map_err(|broken| Broken::new(format!("step {index}: {broken}")))?;
        }
        require(known == taken.revivals.len(), || {
            let all = taken.revivals.len();
            format!("{known} of {all} revivals after step {index} are of gated tensors")
        })?;
        changed |= now != live;
        live = now;
    }
    require(changed, || {
        format!("no mask changed in {STEPS} steps; choose a schedule that does")
    })
}

/// All tensors of a gate are revived together; what was revived lives and is new, and what lives again and is new was
/// reported. Returns how many revivals were this gate's.
fn revived(gate: &RankGate, was_live: &[bool], taken: &Taken) -> Verdict<usize> {
    let of_gate: Vec<&Revival> = taken
        .revivals
        .iter()
        .filter(|revival| gate.gated().any(|param| *param == revival.param))
        .collect();
    let slots = of_gate.first().map_or(&[][..], |revival| &revival.slots);
    for param in gate.gated().filter(|_| !of_gate.is_empty()) {
        let found = of_gate.iter().any(|revival| {
            revival.param == *param
                && revival.slots == slots
                && Some(revival.axis) == param.info().rank_axis
        });
        require(found, || {
            format!("`{}` was not revived with its gate", param.name())
        })?;
    }
    for (slot, live) in gate.live()?.into_iter().enumerate() {
        let (mut fresh, mut name) = (false, "");
        for param in gate.gated() {
            let old = taken.updated[param.info().index].narrow(axis(param)?, slot, 1)?;
            let now = param.value().narrow(axis(param)?, slot, 1)?;
            fresh |= numbers(&now)? != numbers(&old)?;
            name = param.name();
        }
        let reported = slots.contains(&slot);
        require(live || !reported, || {
            format!("slot {slot} of `{name}` was revived and does not live")
        })?;
        require(fresh || !reported, || {
            format!("slot {slot} of `{name}` was revived with its old values")
        })?;
        require(reported || !(live && !was_live[slot] && fresh), || {
            format!("slot {slot} of `{name}` lives again with new values and was not reported")
        })?;
    }
    Ok(of_gate.len())
}
