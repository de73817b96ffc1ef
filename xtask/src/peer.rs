//! The reference environment: PyTorch, transformers and PEFT in `.peer`, and what is made with it.

use crate::python::{self, Packages};
use anyhow::{Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment's folder, below the root.
const FOLDER: &str = ".peer";

/// What `.peer` holds. Golden files name these versions, so a change here regenerates them.
const PACKAGES: &Packages = &[
    ("torch", "2.11.0"),
    ("transformers", "5.23.0"),
    ("peft", "0.21.2"),
    ("gguf", "0.19.0"),
    ("bitsandbytes", "0.50.2"),
];

/// Makes `.peer`, or completes it. Does nothing if every package is there in its version.
pub fn environment(root: &Path) -> Result<()> {
    python::complete(&root.join(FOLDER), PACKAGES)
}

/// Regenerates the golden files of the parity tests, or compares them with what would be generated.
pub fn parity(root: &Path, mode: Mode) -> Result<()> {
    let python = ready(root)?;
    let mut command = Command::new(&python);
    command.arg("tests/parity/generate.py").current_dir(root);
    if mode == Mode::Check {
        command.arg("--check");
    }
    let status = command.status()?;
    ensure!(
        status.success(),
        "tests/parity/generate.py ended with {status}"
    );
    Ok(())
}

/// The interpreter of `.peer`.
///
/// # Errors
/// If it is missing or lacks a package.
pub fn ready(root: &Path) -> Result<PathBuf> {
    let folder = root.join(FOLDER);
    let python = python::interpreter(&folder);
    if !python.exists() {
        bail!(
            "{} is missing: run `cargo xtask peer-env` first",
            python.display()
        );
    }
    let missing = python::missing(&folder, PACKAGES)?;
    ensure!(
        missing.is_empty(),
        ".peer lacks {}: run `cargo xtask peer-env` first",
        missing.join(" ")
    );
    Ok(python)
}

/// What becomes of the golden files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are replaced.
    Write,
    /// They are compared with fresh ones.
    Check,
}
