//! Equal to PEFT after ten AdamW steps: losses, gradient norms, and the adapter that is saved.
#![expect(
    clippy::unwrap_used,
    reason = "a golden file that cannot be read fails the test"
)]

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use lowrank::adapter::Memory;
use lowrank::format::{Existing, PeftFolder};
use lowrank::save_adapter;
use lowrank_tests::device::run_composed;
use lowrank_tests::golden::Case;
use lowrank_tests::steps::{Division, ensure_final, ensure_trace, ten_steps};
use std::collections::BTreeMap;

const WHOLE: Division = Division {
    batch_size: 3,
    accumulate: 1,
    memory: Memory::Keep,
};

fn check(dtype: DType, division: Division, tolerance: f64, strictness: f64) {
    for name in Case::names().unwrap() {
        let case = Case::open(&name).unwrap();
        let run = || -> Result<()> {
            let (base, mut attached) = case.attach(dtype)?;
            let (done, _) = ten_steps(&base, &mut attached, &case.examples, division, "")?;
            let trace = if dtype == DType::F64 {
                &case.steps.f64
            } else {
                &case.steps.f32
            };
            ensure_trace(&done, trace, &case.steps.lr, tolerance)?;

            // Through the files: what is compared is what was saved.
            let dir = tempfile::tempdir()?;
            let folder = dir.path().join("adapter");
            save_adapter(&attached, &base.fingerprint()?, &folder, Existing::Refuse)?;
            let (mut ours, theirs) = (PeftFolder::read(&folder)?, PeftFolder::read(&case.last)?);
            if case.converted.is_some() {
                trained_half(&mut ours.tensors)?;
            }
            ensure_final(&ours.tensors, &theirs.tensors, strictness)
        };
        run().with_context(|| name.clone()).unwrap();
    }
}

/// What a converted adapter has trained is the first half of its ranks; the rest is the start that it subtracts.
fn trained_half(tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    for (name, tensor) in tensors {
        let axis = if name.ends_with("lora_A.weight") {
            0
        } else {
            1
        };
        let rank = tensor.dims()[axis] / 2;
        *tensor = tensor.narrow(axis, 0, rank)?.contiguous()?;
    }
    Ok(())
}

#[test]
fn ten_steps_in_f32() {
    check(DType::F32, WHOLE, 1e-4, 1.0);
}

#[test]
fn ten_steps_in_f64_are_those_of_the_f64_reference() {
    // The saved adapter is the reference's f32 run, whose own error is about 1e-5.
    check(DType::F64, WHOLE, 1e-11, 0.1);
}

#[test]
fn ten_steps_with_accumulation_and_recomputation() {
    let divided = Division {
        batch_size: 1,
        accumulate: 3,
        memory: Memory::Recompute,
    };
    check(DType::F64, divided, 1e-11, 0.1);
    check(DType::F32, divided, 1e-4, 1.0);
}

#[test]
fn ten_steps_of_composed_functions() {
    let names = [
        "ten_steps_in_f32",
        "ten_steps_in_f64_are_those_of_the_f64_reference",
        "ten_steps_with_accumulation_and_recomputation",
    ];
    run_composed(&names).unwrap();
}
