//! Equal to PEFT before the first step: logits, gradients, merged weights, files.

#![expect(
    clippy::unwrap_used,
    reason = "a golden file that cannot be read fails the test"
)]

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use lowrank::adapter::{Ask, Memory, Pass, Selection, Share, run, sweep};
use lowrank::format::{Existing, PeftFolder};
use lowrank::ops::rng::{Key, Purpose};
use lowrank::save_adapter;
use lowrank_tests::device::run_composed;
use lowrank_tests::golden::{Case, read_json};
use lowrank_tests::numbers::{max_difference, pair, relative_difference};
use std::collections::BTreeMap;

fn each_case(check: impl Fn(&Case) -> Result<()>) {
    for name in Case::names().unwrap() {
        let case = Case::open(&name).unwrap();
        check(&case).with_context(|| name.clone()).unwrap();
    }
}

/// The logits of the unpadded positions of the first batch, and PEFT's at the same ones.
fn logits(case: &Case, dtype: DType, expected: &str) -> Result<(Tensor, Tensor)> {
    let (base, _attached) = case.attach(dtype)?;
    let batch = &case.batches[0];
    let segments = &batch.tokens().segments;
    let used: Vec<u32> = (0..segments.len() as u32)
        .filter(|&at| segments[at as usize] != 0)
        .collect();
    let mut pass = Pass::evaluation(Selection::one("default"));
    let ours = run(
        base.model.as_ref(),
        batch,
        &Ask::Logits(used.clone()),
        None,
        &mut pass,
    )?;
    assert!(
        !ours.track_op(),
        "{}: an evaluation built a graph",
        case.name
    );
    let theirs = &case.expected[expected];
    let vocab = theirs.dim(2)?;
    let index = Tensor::new(used, theirs.device())?;
    Ok((ours, theirs.reshape(((), vocab))?.index_select(&index, 0)?))
}

#[test]
fn logits_are_those_of_the_f64_reference() {
    each_case(|case| {
        let (ours, reference) = logits(case, DType::F32, "logits64")?;
        let (_, theirs) = logits(case, DType::F32, "logits")?;
        let error = max_difference(&ours, &reference)?;
        let their_error = max_difference(&theirs, &reference)?;
        anyhow::ensure!(error < 2e-4, "f32 logits are off by {error:e}");
        anyhow::ensure!(
            error <= 3.0 * their_error,
            "off by {error:e}, PyTorch by {their_error:e}"
        );
        let (exact, reference) = logits(case, DType::F64, "logits64")?;
        let error = max_difference(&exact, &reference)?;
        anyhow::ensure!(error < 1e-11, "f64 logits are off by {error:e}");
        Ok(())
    });
}

#[test]
fn gradients_equal_peft() {
    each_case(|case| {
        for (dtype, prefix, tolerance) in [
            (DType::F32, "grad.base_model.model.", 2e-5),
            (DType::F64, "grad64.base_model.model.", 1e-11),
        ] {
            let (base, attached) = case.attach(dtype)?;
            let batch = &case.batches[0];
            let share = Share {
                token: 1.0 / batch.supervised() as f64,
                auxiliary: 0.0,
            };
            let mut found = Vec::new();
            for memory in [Memory::Keep, Memory::Recompute] {
                let mut pass =
                    Pass::training_pass(Selection::one("default"), Key::new(3, Purpose::Dropout));
                let swept = sweep(
                    base.model.as_ref(),
                    batch,
                    &mut pass,
                    &attached.trained(),
                    share,
                    memory,
                )?;
                let named = swept
                    .grads
                    .iter()
                    .map(|(param, grad)| (param.name().to_owned(), grad.clone()));
                found.push(named.collect::<BTreeMap<String, Tensor>>());
            }
            for (name, ours, theirs) in pair(&found[0], &case.expected_under(prefix))? {
                let error = relative_difference(ours, theirs)?;
                anyhow::ensure!(error < tolerance, "{name} in {dtype:?}: off by {error:e}");
                let again = max_difference(ours, &found[1][name])?;
                anyhow::ensure!(again == 0.0, "{name}: recomputation differs by {again:e}");
            }
        }
        Ok(())
    });
}

#[test]
fn merged_weights_equal_peft() {
    each_case(|case| {
        let (mut base, _attached) = case.attach(DType::F32)?;
        let folded = lowrank::merge::fold(base.model.as_mut(), &Selection::one("default"), None)?;
        anyhow::ensure!(folded.exact);
        let ours: BTreeMap<String, Tensor> = folded.tensors.into_iter().collect();
        let theirs = case.expected_under("merged.");
        anyhow::ensure!(!theirs.is_empty());
        for (name, theirs) in &theirs {
            let ours = ours
                .get(name)
                .with_context(|| format!("{name} was not written"))?;
            let error = relative_difference(ours, theirs)?;
            // What is subtracted was decomposed in f32 there.
            let tolerance = if case.converted.is_some() { 1e-5 } else { 1e-6 };
            anyhow::ensure!(error < tolerance, "{name}: off by {error:e}");
        }
        Ok(())
    });
}

#[test]
fn a_file_of_peft_is_written_back_tensor_by_tensor() {
    each_case(|case| {
        let (base, attached) = case.attach(DType::F32)?;
        let dir = tempfile::tempdir()?;
        let folder = save_adapter(
            &attached,
            &base.fingerprint()?,
            &dir.path().join("adapter"),
            Existing::Refuse,
        )?;
        let written = case.converted.as_ref().unwrap_or(&case.init);
        let (ours, theirs) = (PeftFolder::read(&folder)?, PeftFolder::read(written)?);
        for (name, our, their) in pair(&ours.tensors, &theirs.tensors)? {
            anyhow::ensure!(our.dtype() == their.dtype(), "{name} changed its dtype");
            if case.converted.is_none() {
                anyhow::ensure!(max_difference(our, their)? == 0.0, "{name} changed");
            }
        }
        if case.converted.is_some() {
            converted_alike(&ours.tensors, &theirs.tensors)?;
        }
        // The configuration is PEFT's, key by key; a set has no order.
        let (mut ours, mut theirs): (serde_json::Value, serde_json::Value) = (
            read_json(&folder.join("adapter_config.json"))?,
            read_json(&written.join("adapter_config.json"))?,
        );
        for config in [&mut ours, &mut theirs] {
            for key in ["target_modules", "exclude_modules"] {
                if let Some(list) = config[key].as_array_mut() {
                    list.sort_by_key(ToString::to_string);
                }
            }
        }
        anyhow::ensure!(ours == theirs, "ours {ours:#}\ntheirs {theirs:#}");
        Ok(())
    });
}

/// The first half of the ranks is what was trained, bit by bit. The second is what was subtracted, whose signs are
/// arbitrary: only its product means anything.
fn converted_alike(
    ours: &BTreeMap<String, Tensor>,
    theirs: &BTreeMap<String, Tensor>,
) -> Result<()> {
    for (name, a) in ours {
        let Some(path) = name.strip_suffix(".lora_A.weight") else {
            continue;
        };
        let b = format!("{path}.lora_B.weight");
        let rank = a.dims()[0] / 2;
        let (b, their_a, their_b) = (&ours[&b], &theirs[name], &theirs[&b]);
        for (our, their, axis) in [(a, their_a, 0), (b, their_b, 1)] {
            let [our, their] = [our, their].map(|tensor| tensor.narrow(axis, 0, rank));
            anyhow::ensure!(max_difference(&our?, &their?)? == 0.0, "{path} changed");
        }
        let product = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            let (a, b) = (a.narrow(0, rank, rank)?, b.narrow(1, rank, rank)?);
            Ok(b.contiguous()?.matmul(&a)?)
        };
        let error = relative_difference(&product(a, b)?, &product(their_a, their_b)?)?;
        anyhow::ensure!(
            error < 1e-5,
            "{path}: what is subtracted differs by {error:e}"
        );
    }
    Ok(())
}

#[test]
fn composed_functions_give_the_same() {
    let names = [
        "logits_are_those_of_the_f64_reference",
        "gradients_equal_peft",
    ];
    run_composed(&names).unwrap();
}
