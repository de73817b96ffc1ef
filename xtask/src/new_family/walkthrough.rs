//! docs/new-family.md is run: the command makes its family in a copy of the workspace, the blocks of code replace the
//! files, and the suite must pass. So does that of a family which nobody has changed.

use super::{Naming, TEMPLATE, run};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything is built anew in a folder of its own: without optimisation that takes a third of the time, and the tests are
/// small.
const UNOPTIMISED: [&str; 5] = [
    "profile.dev.debug=false",
    "profile.dev.opt-level=0",
    "profile.dev.package.\"*\".opt-level=0",
    "profile.dev.package.lowrank-frozen.opt-level=0",
    "profile.dev.package.lowrank-ops.opt-level=1",
];

/// The name after `cargo xtask new-family` in the document, and its blocks of code with the files they are.
fn read(document: &str) -> Result<(&str, Vec<(&str, String)>)> {
    let command = document
        .lines()
        .find_map(|line| line.strip_prefix("cargo xtask new-family "));
    let name = command.context("the document runs no `cargo xtask new-family`")?;
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(path) = line.strip_prefix("```rust ") else {
            continue;
        };
        // Fences inside of doc comments do not begin their lines.
        let code = lines.by_ref().take_while(|line| *line != "```");
        blocks.push((path, code.flat_map(|line| [line, "\n"]).collect()));
    }
    Ok((name, blocks))
}

/// Makes `to` hold the files of the workspace that cargo needs. Those that are the same stay untouched, so that cargo
/// builds only what has changed since the last time.
fn copy_workspace(from: &Path, to: &Path) -> Result<()> {
    let mut wanted = BTreeSet::new();
    for name in ["Cargo.toml", "Cargo.lock"] {
        wanted.insert(PathBuf::from(name));
    }
    for folder in ["crates", "xtask", "tests"] {
        sources(from, Path::new(folder), &mut wanted)?;
    }
    for name in &wanted {
        let (source, target) = (fs::read(from.join(name))?, to.join(name));
        if fs::read(&target).ok().as_ref() != Some(&source) {
            fs::create_dir_all(target.parent().context("a file lies in a folder")?)?;
            fs::write(&target, source)?;
        }
    }
    let mut found = BTreeSet::new();
    for folder in ["crates", "xtask", "tests"] {
        sources(to, Path::new(folder), &mut found)?;
    }
    for name in found.difference(&wanted) {
        fs::remove_file(to.join(name))?;
        // Folders too, up to the first that is not empty.
        for folder in name.ancestors().skip(1) {
            if fs::remove_dir(to.join(folder)).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn sources(root: &Path, folder: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let name = folder.join(entry?.file_name());
        let path = root.join(&name);
        if path.is_dir() {
            sources(root, &name, found)?;
        } else if ["rs", "toml", "txt"]
            .map(OsStr::new)
            .map(Some)
            .contains(&name.extension())
        {
            found.insert(name);
        }
    }
    Ok(())
}

/// Below the target folder of this checkout: nothing is shared with another one, and nothing with the build whose test this
/// is, but for the time that a second run saves.
fn place() -> Result<PathBuf> {
    // This is target/<profile>/deps/<test>.
    let test = env::current_exe()?;
    let target = test.ancestors().nth(3).context("a test lies three deep")?;
    Ok(target.join("walkthrough"))
}

fn run_tool(tool: &str, arguments: &[&str], place: &Path) -> Result<()> {
    let output = Command::new(tool)
        .args(arguments)
        .current_dir(place.join("workspace"))
        .env("CARGO_TARGET_DIR", place.join("target"))
        .env("CARGO_INCREMENTAL", "0")
        .output()
        .with_context(|| format!("cannot run {tool}"))?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(
        output.status.success(),
        "{tool} {arguments:?}\n{}\n{}",
        said[0],
        said[1]
    );
    Ok(())
}

#[test]
fn the_walkthrough_makes_a_family() -> Result<()> {
    let root = crate::root();
    let document = fs::read_to_string(root.join("docs/new-family.md"))?;
    let (name, blocks) = read(&document)?;
    let place = place()?;
    let workspace = place.join("workspace");
    fs::create_dir_all(&workspace)?;
    let lock = File::create(place.join("lock"))?;
    lock.lock()?;
    copy_workspace(&root, &workspace)?;

    run(&workspace, "demo", Naming::Ours)?;
    run(&workspace, name, Naming::Ours)?;
    let folder = format!("crates/families/{name}");
    let mut replaced = BTreeSet::new();
    for (path, code) in blocks {
        let file = workspace.join(path);
        ensure!(
            path.starts_with(&folder) && file.exists(),
            "{path} was not made by the command"
        );
        fs::write(file, code)?;
        replaced.insert(path.to_owned());
    }
    let made = TEMPLATE.iter().filter(|(path, _)| path.ends_with(".rs"));
    let made: BTreeSet<String> = made.map(|(path, _)| format!("{folder}/{path}")).collect();
    assert_eq!(replaced, made, "files of the document, and files to change");

    let files: Vec<&str> = made.iter().map(String::as_str).collect();
    run_tool(
        "rustfmt",
        &[&["--check", "--edition", "2024"], &files[..]].concat(),
        &place,
    )?;
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut arguments = vec!["test", "--offline"];
    arguments.extend(UNOPTIMISED.iter().flat_map(|setting| ["--config", setting]));
    let package = format!("lowrank-{name}");
    arguments.extend(["-p", "lowrank-demo", "-p", &package]);
    run_tool(&cargo, &arguments, &place)
}
