//! Equal to PEFT after ten steps of LoRA+, LoRA-FA and SGD: losses, gradient norms, and what is saved.
#![expect(
    clippy::unwrap_used,
    reason = "a golden file that cannot be read fails the test"
)]

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use lowrank::adapter::Memory;
use lowrank::format::{Existing, PeftFolder};
use lowrank::save_adapter;
use lowrank_tests::golden::{Case, Trace, folder, read_json};
use lowrank_tests::steps::{Division, ensure_final, ensure_trace, ten_steps};
use serde::Deserialize;
use std::collections::BTreeMap;

/// `<run>.json`: the case that it starts from, what a run file says of the optimiser, and what happened.
#[derive(Deserialize)]
struct Run {
    case: String,
    train: Vec<String>,
    trainable_parameters: usize,
    f32: Trace,
    f64: Trace,
}

const RUNS: [&str; 8] = [
    "lora_fa",
    "lora_fa_biases",
    "lora_fa_patterns",
    "lora_plus",
    "lora_plus_biases",
    "lora_plus_dora",
    "lora_plus_modules",
    "sgd",
];

fn check(dtype: DType, division: Division, tolerance: f64, strictness: f64) {
    for name in RUNS {
        let run = || -> Result<()> {
            let path = folder().join("optimizers").join(name);
            let run: Run = read_json(&path.with_extension("json"))?;
            let case = Case::open(&run.case)?;
            let (base, mut attached) = case.attach(dtype)?;
            let lines = run.train.join("\n");
            let (done, trained) =
                ten_steps(&base, &mut attached, &case.examples, division, &lines)?;
            ensure!(trained == run.trainable_parameters, "{trained} train");
            let trace = match dtype {
                DType::F64 => &run.f64,
                _ => &run.f32,
            };
            ensure_trace(&done, trace, &case.steps.lr, tolerance)?;

            let dir = tempfile::tempdir()?;
            let folder = dir.path().join("adapter");
            save_adapter(&attached, &base.fingerprint()?, &folder, Existing::Refuse)?;
            let mut ours = PeftFolder::read(&folder)?.tensors;
            let theirs =
                candle_core::safetensors::load(path.with_extension("safetensors"), &Device::Cpu)?;
            let strip = |name: String| match name.strip_prefix("base_model.model.") {
                Some(name) => name.to_owned(),
                None => name,
            };
            let theirs: BTreeMap<String, Tensor> = theirs
                .into_iter()
                .map(|(name, tensor)| (strip(name), tensor))
                .collect();
            // The reference lists what trains; A is in its start, and must be what it was.
            let initial = PeftFolder::read(&case.init)?.tensors;
            for (name, start) in &initial {
                if !theirs.contains_key(name) {
                    let (was, is) = (start.flatten_all()?, ours[name].flatten_all()?);
                    ensure!(
                        was.to_vec1::<f32>()? == is.to_vec1::<f32>()?,
                        "{name} has changed"
                    );
                    ours.remove(name);
                }
            }
            ensure_final(&ours, &theirs, strictness)
        };
        run().with_context(|| name.to_owned()).unwrap();
    }
}

const WHOLE: Division = Division {
    batch_size: 3,
    accumulate: 1,
    memory: Memory::Keep,
};

#[test]
fn ten_steps_in_f32() {
    check(DType::F32, WHOLE, 1e-4, 1.0);
}

#[test]
fn ten_steps_in_f64_are_those_of_the_f64_reference() {
    check(DType::F64, WHOLE, 1e-11, 1e-3);
}

#[test]
fn ten_steps_with_accumulation_and_recomputation() {
    let divided = Division {
        batch_size: 1,
        accumulate: 3,
        memory: Memory::Recompute,
    };
    check(DType::F64, divided, 1e-11, 1e-3);
}
