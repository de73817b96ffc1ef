//! `cargo xtask readme`: the parts of README.md that the binary prints.

use anyhow::{Context, Result, ensure};
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

const START: &str = "<!-- families: written by `cargo xtask readme` -->\n";
const END: &str = "<!-- /families -->\n";

/// Writes the table of families anew.
pub fn run(root: &Path) -> Result<()> {
    let path = root.join("README.md");
    let text = fs::read_to_string(&path).context("cannot read README.md")?;
    let written = replaced(&text, &table(root)?)?;
    if written != text {
        fs::write(&path, written).context("cannot write README.md")?;
    }
    Ok(())
}

/// What `lowrank families` prints.
fn table(root: &Path) -> Result<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "run",
            "--quiet",
            "--package",
            "lowrank-cli",
            "--",
            "families",
        ])
        .current_dir(root)
        .output()
        .context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`lowrank families` failed: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn replaced(text: &str, table: &str) -> Result<String> {
    let parts = text.split_once(START).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) =
        parts.context("README.md has lost the markers of its table of families")?;
    Ok(format!("{before}{START}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_markers_changes() -> Result<()> {
        let text = format!("a\n{START}old\n{END}b\n");
        let expected = format!("a\n{START}new\n{END}b\n");
        assert_eq!(replaced(&text, "new\n")?, expected);
        assert_eq!(replaced(&expected, "new\n")?, expected);
        assert!(replaced(&format!("{END}{START}"), "new\n").is_err());
        Ok(())
    }
}
