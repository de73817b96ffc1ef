//! `lowrank export`.

use crate::arguments::{ExportArguments, Target};
use crate::output::print;
use anyhow::Result;
use candle_core::DType;
use lowrank::format::Existing;
use lowrank::models::Precision;
use lowrank::{Base, Error, ExportedSite, export_lora};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the logits of two f32 runs may differ by, as for merge.
const TOLERANCE: f64 = 4e-4;

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    exact: bool,
    sites: Vec<Site>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_residual: Option<f64>,
    max_abs_logit_diff: f64,
    kl: f64,
    tokens: usize,
}

#[derive(Serialize)]
struct Site {
    site: String,
    rank: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    residual: Option<f64>,
}

impl From<ExportedSite> for Site {
    fn from(site: ExportedSite) -> Self {
        Self {
            site: site.site,
            rank: site.rank,
            residual: site.residual,
        }
    }
}

/// Writes an adapter as plain LoRA.
pub fn run(arguments: &ExportArguments) -> Result<ExitCode> {
    let not_yet = |what: &str| Err(Error::Usage(format!("{what} is not yet supported")).into());
    if arguments.to == Target::Gguf {
        return not_yet("`--to gguf`");
    }
    if arguments.rank.is_some() {
        return not_yet("`--rank`, an approximation of the update by so many ranks,");
    }
    let mut base = Base::open_for(
        &arguments.model,
        Precision::Cast(DType::F32),
        [arguments.adapter.as_path()],
    )?;
    let existing = match arguments.force {
        true => Existing::Replace,
        false => Existing::Refuse,
    };
    let plain = export_lora(&mut base, &arguments.adapter, &arguments.out, existing)?;
    let residuals = plain.sites.iter().filter_map(|site| site.residual);
    let report = Report {
        out: plain.folder,
        exact: plain.exact,
        max_residual: residuals.reduce(f64::max),
        sites: plain.sites.into_iter().map(Site::from).collect(),
        max_abs_logit_diff: plain.comparison.max_abs_logit_diff,
        kl: plain.comparison.kl,
        tokens: plain.comparison.tokens,
    };
    let mut more = String::new();
    for site in &report.sites {
        writeln!(more, "{:5}  {}", site.rank, site.site)?;
    }
    print(&report, arguments.json, &more)?;
    if !report.exact {
        tracing::warn!(
            "the plain form only comes near to the adapter: logits differ by up to {:e}",
            report.max_abs_logit_diff
        );
        return Ok(ExitCode::SUCCESS);
    }
    if report.max_abs_logit_diff > TOLERANCE {
        crate::say(&format!(
            "error: the plain adapter's logits differ by {:e}, more than the {TOLERANCE:e} that rounding explains",
            report.max_abs_logit_diff
        ));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
