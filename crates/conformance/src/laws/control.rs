//! Laws about controllers between steps.

use crate::case::Case;
use crate::compare::{Verdict, require, same_bits};
use crate::training::{Run, STEPS};
use candle_core::Tensor;
use lowrank_adapter::{Memory, State};

/// After how many steps the run is interrupted: not at its middle, where schedules like to turn.
const INTERRUPTED_AFTER: u64 = 5;

pub(crate) fn resumes(case: &Case) -> Verdict {
    let mut whole = Run::new(case, Memory::Keep)?;
    if whole.attached.controller.is_none() {
        return Ok(());
    }
    let mut losses = Vec::new();
    let mut saved = None;
    for index in 1..=STEPS {
        losses.push(whole.step(index)?.losses);
        if index == INTERRUPTED_AFTER {
            saved = Some(save(&whole)?);
        }
    }
    let Some((values, state)) = saved else {
        return require(false, || "nothing was saved".into());
    };

    let mut resumed = Run::new(case, Memory::Keep)?;
    for (param, value) in resumed.attached.params.iter().zip(&values) {
        param.set(value)?;
    }
    restore(&mut resumed, state)?;
    for (index, expected) in (1..).zip(&losses).skip(INTERRUPTED_AFTER as usize) {
        let got = resumed.step(index)?.losses;
        same_bits(
            &format!("losses of step {index} after resuming"),
            &got,
            expected,
        )?;
    }
    for (got, expected) in resumed.attached.params.iter().zip(&whole.attached.params) {
        let what = format!("`{}` after resuming", got.name());
        same_bits(&what, &got.value(), &expected.value())?;
    }
    let ((_, got), (_, expected)) = (save(&resumed)?, save(&whole)?);
    equal(&got, &expected)
}

/// Copies of every parameter, and the controller's state as a checkpoint holds it: values as text, tensors as numbers.
fn save(run: &Run) -> Verdict<(Vec<Tensor>, State)> {
    let params = run.attached.params.iter();
    let values = params
        .map(|param| Ok(param.snapshot()?))
        .collect::<Verdict<_>>()?;
    let mut state = match &run.attached.controller {
        Some(controller) => controller.state()?,
        None => State::default(),
    };
    for tensor in state.tensors.values_mut() {
        *tensor = tensor.copy()?;
    }
    let text = state.values.to_string();
    let read = text.parse::<serde_json::Value>();
    let same = read.as_ref().is_ok_and(|read| read == &state.values);
    require(same, || format!("the state {text} is read as {read:?}"))?;
    Ok((values, state))
}

fn restore(run: &mut Run, state: State) -> Verdict {
    let Some(controller) = &mut run.attached.controller else {
        return require(false, || "the controller is gone".into());
    };
    controller.restore(state.clone())?;
    equal(&controller.state()?, &state)
}

fn equal(got: &State, expected: &State) -> Verdict {
    require(got.values == expected.values, || {
        format!("the state is {}, expected {}", got.values, expected.values)
    })?;
    require(got.tensors.keys().eq(expected.tensors.keys()), || {
        "the state holds other tensors".into()
    })?;
    for ((name, got), expected) in got.tensors.iter().zip(expected.tensors.values()) {
        same_bits(&format!("tensor `{name}` of the state"), got, expected)?;
    }
    Ok(())
}
