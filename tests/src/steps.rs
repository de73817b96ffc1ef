//! The ten optimiser steps of the parity tests, and how far they may be from PEFT's.

use crate::golden::Trace;
use crate::numbers::{pair, relative_difference, relative_over};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use lowrank::Base;
use lowrank::adapter::{Attached, Memory};
use lowrank::data::Example;
use lowrank::training::{Done, RunFile, Trainable, Trainer};
use std::collections::BTreeMap;
use std::path::Path;

/// How the rows of a step are divided.
#[derive(Debug, Clone, Copy)]
pub struct Division {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub accumulate: usize,
    /// What is kept for the backward pass.
    pub memory: Memory,
}

/// Runs the recipe of `steps.json` (AdamW, linear schedule with warm-up, clipping) over `examples` in order. `lines` are
/// added to the run file's `[train]`. The second result is how many numbers train.
///
/// # Errors
/// Whatever the trainer refuses.
pub fn ten_steps(
    base: &Base,
    attached: &mut Attached,
    examples: &[Example],
    division: Division,
    lines: &str,
) -> Result<(Vec<Done>, usize)> {
    let Division {
        batch_size,
        accumulate,
        memory,
    } = division;
    let recompute = memory == Memory::Recompute;
    let text = format!(
        r#"
        model.source = "given"
        data = {{ train = ["given"], shuffle = false }}
        output.dir = "none"
        [train]
        steps = 10
        batch_size = {batch_size}
        accumulate = {accumulate}
        recompute = {recompute}
        learning_rate = 3e-3
        schedule = "linear"
        warmup_steps = 3
        weight_decay = 0.01
        max_grad_norm = 1.0
        {lines}
        "#
    );
    let run = RunFile::parse(&text, Path::new("parity.toml"), &[])?;
    let mut trainable = Trainable::adapter(base.model.as_ref(), attached);
    let mut trainer = Trainer::new(&mut trainable, examples, &[], &run.data, &run.train)?;
    let steps: Vec<_> = trainer.plan().steps_after(0).collect();
    let done = steps.iter().map(|rows| Ok(trainer.step(rows)?));
    Ok((done.collect::<Result<_>>()?, trainer.trainable_parameters()))
}

/// Losses and gradient norms of every step, relative to the reference's.
///
/// # Errors
/// If one is further away than `tolerance`.
pub fn ensure_trace(ours: &[Done], theirs: &Trace, rates: &[f64], tolerance: f64) -> Result<()> {
    ensure!(ours.len() == 10 && theirs.loss.len() == 10);
    for (i, done) in ours.iter().enumerate() {
        for (what, ours, theirs) in [
            ("loss", done.loss, theirs.loss[i]),
            ("gradient norm", done.grad_norm, theirs.grad_norm[i]),
        ] {
            let error = (ours - theirs).abs() / theirs.abs();
            ensure!(
                error < tolerance,
                "step {}: {what} {ours} instead of {theirs}, {error:e}",
                i + 1
            );
        }
        let error = (done.learning_rate - rates[i]).abs();
        ensure!(
            error < 1e-15,
            "step {}: rate {} instead of {}",
            i + 1,
            done.learning_rate,
            rates[i]
        );
    }
    Ok(())
}

/// Design section 6: adapters after ten steps within 1e-3 relative over all A and over all B (and over all that trains
/// beside them), 5e-3 for any one tensor.
///
/// # Errors
/// If a distance is larger, times `strictness`.
pub fn ensure_final(
    ours: &BTreeMap<String, Tensor>,
    theirs: &BTreeMap<String, Tensor>,
    strictness: f64,
) -> Result<()> {
    let pairs = pair(ours, theirs)?;
    for part in ["lora_A", "lora_B", ""] {
        let chosen = pairs.iter().filter(|(name, ..)| match part {
            "" => !name.contains("lora_A") && !name.contains("lora_B"),
            part => name.contains(part),
        });
        let error = relative_over(chosen.map(|(_, a, b)| (*a, *b)))?;
        ensure!(error < 1e-3 * strictness, "over all `{part}`: {error:e}");
    }
    for (name, ours, theirs) in pairs {
        let error = relative_difference(ours, theirs).with_context(|| name.to_owned())?;
        ensure!(error < 5e-3 * strictness, "{name}: {error:e}");
    }
    Ok(())
}
