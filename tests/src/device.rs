//! Where the parity tests compute, and how.

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use lowrank::ops::composed;
use std::env;
use std::process::Command;

/// The environment variable that says what the parity tests run on: `cpu` (as without it) or `cuda`.
pub const VARIABLE: &str = "LOWRANK_TEST_DEVICE";

/// The device that [`VARIABLE`] names.
///
/// # Errors
/// If it is an unknown word, or there is no such device.
pub fn device() -> Result<Device> {
    let word = env::var(VARIABLE).unwrap_or_else(|_| "cpu".into());
    let place = word.parse().map_err(anyhow::Error::msg);
    Ok(lowrank::device(place.context(VARIABLE)?)?)
}

/// Runs tests of this binary once more, by their whole names, with every function computed by its composed twin, as on a
/// GPU.
///
/// # Errors
/// If one fails, or there is none of a name.
pub fn run_composed(names: &[&str]) -> Result<()> {
    let mut tests = Command::new(env::current_exe()?);
    let output = tests
        .env(composed::VARIABLE, "composed")
        .arg("--exact")
        .args(names)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = format!(" {} passed", names.len());
    ensure!(output.status.success() && said.contains(&passed), "{said}");
    Ok(())
}
