//! `cargo xtask ci`: everything that must hold before a change goes in.

use crate::tidy;
use anyhow::{Context, Result, bail};
use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Checks that are cargo commands, cheapest first.
const CARGO: [(&str, &[&str]); 5] = [
    ("fmt", &["fmt", "--all", "--check"]),
    (
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    ),
    // Libraries alone: the binary's pages would overwrite those of the facade, whose name it shares.
    ("rustdoc", &["doc", "--workspace", "--lib", "--no-deps"]),
    (
        "test",
        &[
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--examples",
        ],
    ),
    ("doc tests", &["test", "--workspace", "--doc"]),
];

/// Runs all checks and stops at the first that fails.
pub fn run(root: &Path) -> Result<()> {
    timed("tidy", || tidy::run(root))?;
    for (name, arguments) in CARGO {
        timed(name, || cargo(root, arguments))?;
    }
    Ok(())
}

fn timed(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let start = Instant::now();
    check().with_context(|| format!("`{name}` failed"))?;
    eprintln!("== {name} ok, {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(arguments)
        .current_dir(root)
        // Set for every command: cargo rebuilds nothing when only rustdoc reads it.
        .env("RUSTDOCFLAGS", "-D warnings")
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}
