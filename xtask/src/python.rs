//! Virtual environments of Python, with packages in pinned versions.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names and versions.
pub type Packages = [(&'static str, &'static str)];

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

/// Makes the environment `folder`, or completes it. Does nothing if every package is there in its version.
///
/// # Errors
/// If python3 or pip is missing, or fails.
pub fn complete(folder: &Path, packages: &Packages) -> Result<()> {
    let python = interpreter(folder);
    if !python.exists() {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(folder)
            .status()
            .context("cannot run python3")?;
        ensure!(
            made.success(),
            "python3 -m venv ended with {made}: are venv and pip installed?"
        );
    }
    let missing = missing(folder, packages)?;
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

/// The environment's python, whether it is there or not.
pub fn interpreter(folder: &Path) -> PathBuf {
    folder.join("bin").join("python")
}

/// The requirements that an environment does not meet, as pip wants them.
///
/// # Errors
/// If its python does not run.
pub fn missing(folder: &Path, packages: &Packages) -> Result<Vec<String>> {
    let python = interpreter(folder);
    let listing = Command::new(&python)
        .args(["-c", LIST])
        .args(packages.iter().map(|(name, _)| name))
        .output()
        .with_context(|| format!("cannot run {}", python.display()))?;
    ensure!(
        listing.status.success(),
        "{} is broken, remove {} and try again: {}",
        python.display(),
        folder.display(),
        String::from_utf8_lossy(&listing.stderr).trim()
    );
    Ok(unmet(packages, &String::from_utf8(listing.stdout)?))
}

fn unmet(packages: &Packages, installed: &str) -> Vec<String> {
    let has = |name: &str, version: &str| {
        installed
            .lines()
            .any(|line| line == format!("{name} {version}"))
    };
    packages
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
        let packages = [("torch", "2.11.0"), ("peft", "0.21.2"), ("gguf", "0.19.0")];
        let all = "torch 2.11.0\npeft 0.21.2\ngguf 0.19.0\n";
        assert_eq!(unmet(&packages, all), [""; 0]);
        assert_eq!(
            unmet(&packages, &all.replace("peft 0.21.2", "peft 0.21.20")),
            ["peft==0.21.2"]
        );
        assert_eq!(unmet(&packages, "").len(), packages.len());
    }
}
