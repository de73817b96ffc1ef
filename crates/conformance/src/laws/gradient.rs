//! Laws about gradients.

use crate::case::{Case, OTHER, SEED, noise, share, tokens, training};
use crate::compare::{Broken, Verdict, numbers, require, same_bits};
use crate::toy::Toy;
use candle_core::{DType, Tensor};
use lowrank_adapter::{Ask, Attached, Batch, Memory, Param, Step, run, sweep};
use lowrank_ops::{Grads, all_finite, backward, norm_squared, sum_all};
use std::fmt;

/// Half the distance of the two points of a central difference.
const NUDGE: f64 = 2e-6;

/// A place in a run, for controllers that are asked for a penalty.
const STEP: Step = Step {
    index: 4,
    total: 12,
    per_epoch: 4,
    seed: SEED,
    learning_rate: 0.1,
};

pub(crate) fn matches_differences(case: &Case) -> Verdict {
    for gap in gaps(case)? {
        require(gap.closes(), || gap.to_string())?;
    }
    Ok(())
}

pub(crate) fn hold_constants(case: &Case) -> Verdict {
    let gaps = gaps(case)?;
    require(gaps.iter().any(|gap| !gap.closes()), || {
        format!("all {} gradients agree with differences", gaps.len())
    })
}

/// A gradient along a random direction, which no single entry escapes, beside a central difference.
struct Gap {
    name: String,
    got: f64,
    expected: f64,
}

impl Gap {
    fn closes(&self) -> bool {
        (self.got - self.expected).abs() <= 1e-8 + 1e-6 * self.expected.abs()
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            got,
            expected,
        } = self;
        write!(
            f,
            "the gradient of `{name}` along a random direction is {got:e}, differences say {expected:e}"
        )
    }
}

/// Every trained tensor has a gradient that is finite and not 0, and nothing else has one.
fn gaps(case: &Case) -> Verdict<Vec<Gap>> {
    let (mut toy, attached) = case.trained(DType::F64)?;
    // A second adapter that is attached but not selected has no gradient either.
    let idle = case.attach(&mut toy, OTHER, SEED + 1)?;
    let batch = tokens()?;
    let trained = attached.trained();
    let all: Vec<Param> = attached
        .params
        .iter()
        .chain(&idle.params)
        .cloned()
        .collect();
    let mut gaps = Vec::new();
    for memory in [Memory::Keep, Memory::Recompute] {
        let mut grads = sweep(&toy, &batch, &mut training(), &all, share(&batch), memory)?.grads;
        if let Some(penalty) = penalty(&attached)? {
            grads.merge(backward(&penalty, &all, &[])?.0)?;
        }
        if let Some((param, _)) = grads.iter().find(|(param, _)| !trained.contains(param)) {
            let (owner, name) = (&param.info().owner, param.name());
            return Err(Broken::new(format!("`{name}` of `{owner}` has a gradient")));
        }
        // What has no numbers (a module of rank 0) has no gradient.
        for param in trained.iter().filter(|param| param.elem_count() > 0) {
            gaps.push(compare(&toy, &attached, &batch, param, &grads)?);
        }
    }
    Ok(gaps)
}

fn compare(
    toy: &Toy,
    attached: &Attached,
    batch: &Batch,
    param: &Param,
    grads: &Grads,
) -> Verdict<Gap> {
    let name = param.name();
    let grad = grads
        .get(param)
        .ok_or_else(|| Broken::new(format!("`{name}` has no gradient")))?;
    require(grad.shape() == param.shape() && all_finite(grad)?, || {
        format!(
            "the gradient of `{name}` has shape {:?} or is not finite",
            grad.dims()
        )
    })?;
    require(norm_squared(grad)? > 0.0, || {
        format!("the gradient of `{name}` is 0")
    })?;
    let (start, direction) = (param.snapshot()?, noise(param, 6, 1.0)?);
    let mut losses = [0.0; 2];
    for (sign, loss) in [1.0, -1.0].into_iter().zip(&mut losses) {
        param.set(&(&start + (&direction * (sign * NUDGE))?)?)?;
        *loss = objective(toy, attached, batch)?;
    }
    param.set(&start)?;
    Ok(Gap {
        name: name.to_owned(),
        got: numbers(&(grad * &direction)?)?.iter().sum(),
        expected: (losses[0] - losses[1]) / (2.0 * NUDGE),
    })
}

/// What a step minimises, computed in one piece: no cuts, no recomputation.
fn objective(toy: &Toy, attached: &Attached, batch: &Batch) -> Verdict<f64> {
    let mut pass = training();
    let share = share(batch);
    let losses = run(toy, batch, &Ask::Losses, None, &mut pass)?;
    let mut sum = share.token * scalar(&sum_all(&losses)?)?;
    for (_, loss) in pass.take_losses() {
        sum += share.auxiliary * scalar(&loss)?;
    }
    if let Some(penalty) = penalty(attached)? {
        sum += scalar(&penalty)?;
    }
    Ok(sum)
}

fn penalty(attached: &Attached) -> Verdict<Option<Tensor>> {
    let Some(controller) = &attached.controller else {
        return Ok(None);
    };
    Ok(controller.penalty(STEP, &training())?)
}

fn scalar(tensor: &Tensor) -> Verdict<f64> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_scalar()?)
}

pub(crate) fn recompute_equals_keep(case: &Case) -> Verdict {
    for dtype in [DType::F32, DType::F64] {
        let (toy, attached) = case.trained(dtype)?;
        let batch = tokens()?;
        let trained = attached.trained();
        let run = |memory| {
            sweep(
                &toy,
                &batch,
                &mut training(),
                &trained,
                share(&batch),
                memory,
            )
        };
        let (kept, again) = (run(Memory::Keep)?, run(Memory::Recompute)?);
        same_bits("losses", &again.losses, &kept.losses)?;
        require(
            again.auxiliary.to_bits() == kept.auxiliary.to_bits(),
            || {
                format!(
                    "auxiliary loss {}, kept {}",
                    again.auxiliary, kept.auxiliary
                )
            },
        )?;
        require(again.grads.len() == kept.grads.len(), || {
            format!("{} gradients, kept {}", again.grads.len(), kept.grads.len())
        })?;
        for ((param, grad), (_, expected)) in again.grads.iter().zip(kept.grads.iter()) {
            same_bits(
                &format!("the gradient of `{}`", param.name()),
                grad,
                expected,
            )?;
        }
        require(again.records.len() == kept.records.len(), || {
            format!(
                "{} records, kept {}",
                again.records.len(),
                kept.records.len()
            )
        })?;
        for (again, kept) in again.records.iter().zip(&kept.records) {
            require((again.0, again.1) == (kept.0, kept.1), || {
                format!(
                    "record {:?} `{}`, kept {:?} `{}`",
                    again.0, again.1, kept.0, kept.1
                )
            })?;
            same_bits(&format!("record `{}`", kept.1), &again.2, &kept.2)?;
        }
    }
    Ok(())
}
