//! The reference environment: PyTorch, transformers and PEFT in `.peer`, and what is made with it.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `.peer` holds. Golden files name these versions, so a change here regenerates them.
const PACKAGES: [(&str, &str); 5] = [
    ("torch", "2.11.0"),
    ("transformers", "5.23.0"),
    ("peft", "0.21.2"),
    ("gguf", "0.19.0"),
    ("bitsandbytes", "0.50.2"),
];

/// Prints `name version` of those packages among its arguments that are installed.
const LIST: &str = "
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name).split('+')[0])
    except PackageNotFoundError:
        pass
";

/// Makes `.peer`, or completes it. Does nothing if every package is there in its version.
pub fn environment(root: &Path) -> Result<()> {
    let folder = root.join(".peer");
    let python = python(root);
    if !python.exists() {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&folder)
            .status()
            .context("cannot run python3")?;
        ensure!(
            made.success(),
            "python3 -m venv ended with {made}: are venv and pip installed?"
        );
    }
    let missing = missing(&installed(&python)?);
    if missing.is_empty() {
        eprintln!("{} is complete", folder.display());
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    let status = Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(&missing)
        .status()?;
    ensure!(
        status.success(),
        "pip could not install {} ({status}): see its message above",
        missing.join(" ")
    );
    Ok(())
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
    let python = python(root);
    if !python.exists() {
        bail!(
            "{} is missing: run `cargo xtask peer-env` first",
            python.display()
        );
    }
    let missing = missing(&installed(&python)?);
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

fn python(root: &Path) -> PathBuf {
    root.join(".peer").join("bin").join("python")
}

/// What the environment holds, one `name version` a line.
fn installed(python: &Path) -> Result<String> {
    let listing = Command::new(python)
        .args(["-c", LIST])
        .args(PACKAGES.map(|(name, _)| name))
        .output()
        .with_context(|| format!("cannot run {}", python.display()))?;
    ensure!(
        listing.status.success(),
        "{} is broken, remove .peer and try again: {}",
        python.display(),
        String::from_utf8_lossy(&listing.stderr).trim()
    );
    Ok(String::from_utf8(listing.stdout)?)
}

/// The requirements that are not met, as pip wants them.
fn missing(installed: &str) -> Vec<String> {
    let has = |name: &str, version: &str| {
        installed
            .lines()
            .any(|line| line == format!("{name} {version}"))
    };
    PACKAGES
        .iter()
        .filter(|(name, version)| !has(name, version))
        .map(|(n, v)| format!("{n}=={v}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_missing() {
        let all: String = PACKAGES
            .iter()
            .map(|(name, version)| format!("{name} {version}\n"))
            .collect();
        assert_eq!(missing(&all), [""; 0]);
        assert_eq!(
            missing(&all.replace("peft 0.21.2", "peft 0.21.20")),
            ["peft==0.21.2"]
        );
        assert_eq!(missing("").len(), PACKAGES.len());
    }
}
