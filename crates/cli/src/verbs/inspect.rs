//! `lowrank inspect`.

use crate::arguments::InspectArguments;
use crate::output::print;
use anyhow::Result;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Says what a folder is.
pub fn run(arguments: &InspectArguments) -> Result<ExitCode> {
    let found = lowrank::inspect(&arguments.path)?;
    let mut sites = String::new();
    for site in &found.sites {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
        let rank = site.rank.map_or("-".into(), |rank| rank.to_string());
        let (scale, norm) = (number(site.scale), number(site.delta_norm));
        writeln!(
            sites,
            "  {}  rank {rank}  scale {scale}  norm of the update {norm}",
            site.site
        )?;
    }
    print(&found, arguments.json, &sites)?;
    Ok(ExitCode::SUCCESS)
}
