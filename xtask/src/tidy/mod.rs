//! Rules that no compiler checks: file lengths, crate arrows, manifests, forbidden words, paths of one machine.
//!
//! Every rule is a function over text. `cargo xtask tidy` and a test of this crate apply them to the repository.

mod manifests;
mod text;

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A file of the repository.
struct Source {
    /// Relative to the root, with forward slashes.
    path: String,
    text: String,
}

/// Checks the repository at `root`; the error lists every breach, one a line.
pub fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let mut breaches = manifests::check(&sources)?;
    for source in &sources {
        breaches.extend(text::check(&source.path, &source.text));
    }
    if !breaches.is_empty() {
        bail!("{} breaches\n{}", breaches.len(), breaches.join("\n"));
    }
    Ok(())
}

/// All text files that git tracks or would add.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let listing = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(
        listing.status.success(),
        "git cannot list files: {}",
        String::from_utf8_lossy(&listing.stderr).trim()
    );
    let mut sources = Vec::new();
    for path in String::from_utf8(listing.stdout)?.split_terminator('\0') {
        // A tracked file may have been deleted, and golden tensors are no text.
        if let Ok(text) = fs::read_to_string(root.join(path)) {
            sources.push(Source {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() -> anyhow::Result<()> {
        super::run(&crate::root())
    }
}
