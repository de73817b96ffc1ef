//! `cargo xtask readme`: what README.md and docs/run-file.md take from the program.

use anyhow::{Context, Result, ensure};
use lowrank::training::reference;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A part of a file that is written by this task, and stands between marks that name it.
const FAMILIES: &str = "families";
const KEYS: &str = "keys";

/// Writes the table of families and the keys of run files anew.
pub fn run(root: &Path) -> Result<()> {
    write(root, "README.md", FAMILIES, &table(root)?)?;
    write(root, RUN_FILE, KEYS, &reference())
}

/// The page of all keys.
pub const RUN_FILE: &str = "docs/run-file.md";

fn write(root: &Path, file: &str, part: &str, content: &str) -> Result<()> {
    let path = root.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
    let written = replaced(&text, part, content).with_context(|| file.to_owned())?;
    if written != text {
        fs::write(&path, written).with_context(|| format!("cannot write {file}"))?;
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

fn replaced(text: &str, part: &str, content: &str) -> Result<String> {
    let start = format!("<!-- {part}: written by `cargo xtask readme` -->\n");
    let end = format!("<!-- /{part} -->\n");
    let parts = text.split_once(&start).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.with_context(|| format!("the marks of `{part}` are lost"))?;
    Ok(format!("{before}{start}{content}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_markers_changes() -> Result<()> {
        let (start, end) = (
            "<!-- x: written by `cargo xtask readme` -->\n",
            "<!-- /x -->\n",
        );
        let text = format!("a\n{start}old\n{end}b\n");
        let expected = format!("a\n{start}new\n{end}b\n");
        assert_eq!(replaced(&text, "x", "new\n")?, expected);
        assert_eq!(replaced(&expected, "x", "new\n")?, expected);
        assert!(replaced(&format!("{end}{start}"), "x", "new\n").is_err());
        assert!(replaced(&text, "y", "new\n").is_err());
        Ok(())
    }

    #[test]
    fn the_page_of_keys_is_what_the_program_reads() -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = fs::read_to_string(root.join(RUN_FILE))?;
        assert_eq!(replaced(&text, KEYS, &reference())?, text);
        Ok(())
    }
}
