//! `lowrank merge`.

use crate::arguments::MergeArguments;
use crate::output::print;
use anyhow::Result;
use candle_core::DType;
use lowrank::adapter::Selection;
use lowrank::format::Existing;
use lowrank::merge::{compare, compare_classes, probe_tokens};
use lowrank::models::Precision;
use lowrank::training::Place;
use lowrank::{Base, Error, merge_into};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the logits of two f32 runs may differ by: each may be 2e-4 away from the exact ones.
const TOLERANCE: f64 = 4e-4;

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    dtype: &'static str,
    exact: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_abs_logit_diff: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
}

/// Folds adapters into their base.
pub fn run(arguments: &MergeArguments) -> Result<ExitCode> {
    let dtype = output_dtype(&arguments.dtype)?;
    if arguments.model.adapters.is_empty() {
        return Err(Error::Usage("merge needs at least one --adapter".into()).into());
    }
    // Folding in f64 when asked to write f64; else in the base's own precision.
    let precision = match dtype {
        Some(DType::F64) => Precision::Cast(DType::F64),
        Some(_) => Precision::Cast(DType::F32),
        None => Precision::AsStored,
    };
    let mut adapters = arguments.model.adapters.iter();
    if let Some(adapter) = adapters.find(|adapter| super::within(&arguments.out, &adapter.path)) {
        return Err(Error::Usage(format!(
            "the output folder {} lies inside the adapter's folder {}; choose another",
            arguments.out.display(),
            adapter.path.display()
        ))
        .into());
    }
    let (mut base, selection) = super::open(&arguments.model, precision, Place::Cpu)?;
    let existing = if arguments.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    // What was stored in half the bits is written in half the bits; blocks are not written, their numbers are.
    let dtype = dtype.or_else(|| base.stored_half());
    let written = merge_into(&mut base, &selection, dtype, &arguments.out, existing)?;
    let mut report = Report {
        out: arguments.out.clone(),
        dtype: written.dtype.as_str(),
        exact: written.exact,
        max_abs_logit_diff: None,
        kl: None,
        tokens: None,
    };
    let mut code = ExitCode::SUCCESS;
    if arguments.verify {
        let precision = match written.dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let source = report.out.to_string_lossy();
        let merged = Base::open_for(&source, Precision::Cast(precision), [])?;
        let adapted = (base.model.as_ref(), &selection);
        let merged = (merged.model.as_ref(), &Selection::none());
        let found = match base.classes {
            Some(_) => compare_classes(adapted, merged, &probes(&base)),
            None => compare(adapted, merged, &probes(&base)),
        };
        let found = found.map_err(Error::from)?;
        report.max_abs_logit_diff = Some(found.max_abs_logit_diff);
        report.kl = Some(found.kl);
        report.tokens = Some(found.tokens);
        let full = matches!(written.dtype, DType::F32 | DType::F64);
        if written.exact && full && found.max_abs_logit_diff > TOLERANCE {
            crate::say(&format!(
                "error: the merged model's logits differ by {:e}, more than the {TOLERANCE:e} that rounding explains",
                found.max_abs_logit_diff
            ));
            code = ExitCode::FAILURE;
        }
    }
    print(&report, arguments.json, "")?;
    Ok(code)
}

/// What the two models are compared on, no longer than they can read.
fn probes(base: &Base) -> Vec<Vec<u32>> {
    let mut sequences = probe_tokens(base.info.vocab_size);
    for ids in &mut sequences {
        ids.truncate(base.info.max_position_embeddings);
    }
    sequences
}

fn output_dtype(word: &str) -> lowrank::Result<Option<DType>> {
    match word {
        "as-stored" => Ok(None),
        "f32" => Ok(Some(DType::F32)),
        "f64" => Ok(Some(DType::F64)),
        "bf16" => Ok(Some(DType::BF16)),
        "f16" => Ok(Some(DType::F16)),
        "nf4" => Err(Error::Usage(
            "--dtype `nf4` is how a base is held and not how a model is written; use as-stored, f32, f64, bf16 or f16"
                .into(),
        )),
        other => Err(Error::Usage(format!(
            "unknown --dtype `{other}`, expected as-stored, f32, f64, bf16 or f16"
        ))),
    }
}
