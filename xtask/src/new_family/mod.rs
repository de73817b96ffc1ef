//! `cargo xtask new-family NAME`: a crate that works, and the lines that make it known.
//!
//! Everything is prepared in memory first; then it is written, and taken back if that fails half-way.

mod edits;
#[cfg(test)]
mod walkthrough;

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of a family, with `demo` for its name.
const TEMPLATE: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    ("src/lib.rs", include_str!("template/lib.rs.txt")),
    ("src/config.rs", include_str!("template/config.rs.txt")),
    ("src/layer.rs", include_str!("template/layer.rs.txt")),
    (
        "tests/conformance.rs",
        include_str!("template/conformance.rs.txt"),
    ),
    ("tests/paper.rs", include_str!("template/paper.rs.txt")),
];

/// What no crate can be called.
const KEYWORDS: [&str; 52] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
    "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
    "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
    "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof",
    "union", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// The methods of PEFT 0.21.2, without underscores. Files of these `peft_type`s must be PEFT's.
const PEFT: [&str; 45] = [
    "adalora",
    "adamss",
    "adaptionprompt",
    "beft",
    "boft",
    "c3a",
    "cartridge",
    "cpt",
    "deft",
    "delora",
    "fourierft",
    "frod",
    "glora",
    "gralora",
    "hira",
    "hra",
    "ia3",
    "lily",
    "lntuning",
    "loha",
    "lokr",
    "lora",
    "miss",
    "multitaskprompttuning",
    "oft",
    "osf",
    "peanut",
    "poly",
    "prefixtuning",
    "prompttuning",
    "psoft",
    "ptuning",
    "pvera",
    "randlora",
    "road",
    "shadow",
    "shira",
    "supertuning",
    "tinylora",
    "trainabletokens",
    "unilora",
    "vblora",
    "vera",
    "waveft",
    "xlora",
];

/// What the name of a family means to PEFT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Nothing.
    Ours,
    /// It is PEFT's method of that name.
    AsInPeft,
}

/// A file that is made or changed.
struct Change {
    path: PathBuf,
    /// What it held; none if there is no such file.
    old: Option<String>,
    new: String,
}

/// Writes the family, and says what to do next.
pub fn run(root: &Path, name: &str, naming: Naming) -> Result<String> {
    check(root, name, naming)?;
    let folder = format!("crates/families/{name}");
    let made = TEMPLATE.iter().map(|(path, text)| Change {
        path: root.join(&folder).join(path),
        old: None,
        new: filled(text, name),
    });
    let mut changes: Vec<Change> = made.collect();
    let edits: [(&str, edits::Edit); 3] = [
        ("Cargo.toml", edits::workspace),
        ("crates/registry/Cargo.toml", edits::registry_manifest),
        ("crates/registry/src/lib.rs", edits::registry_list),
    ];
    for (path, edit) in edits {
        let file = root.join(path);
        let old = fs::read_to_string(&file).with_context(|| format!("cannot read {path}"))?;
        let new = edit(&old, name, &type_name(name))
            .with_context(|| format!("cannot edit {path}; nothing was changed"))?;
        changes.push(Change {
            path: file,
            old: Some(old),
            new,
        });
    }
    apply(&root.join(&folder), &changes)?;
    format_code(&changes);
    Ok(next_steps(name))
}

fn check(root: &Path, name: &str, naming: Naming) -> Result<()> {
    let plain = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    ensure!(
        plain && name.starts_with(|c: char| c.is_ascii_lowercase()),
        "`{name}` cannot name a family: expected lower-case letters and digits, a letter first, such as `loraxs`"
    );
    ensure!(
        !KEYWORDS.contains(&name),
        "`{name}` cannot name a family: it is a word of Rust"
    );
    ensure!(
        name != "full",
        "`full` cannot name a family: run files mean the training of all weights by it"
    );
    for taken in [
        format!("crates/families/{name}"),
        format!("crates/{name}"),
        name.to_owned(),
    ] {
        ensure!(
            !root.join(&taken).exists(),
            "`{name}` cannot name a family: there is {taken} already"
        );
    }
    if naming == Naming::Ours && PEFT.contains(&name) {
        bail!(
            "PEFT has a method `{name}`: files of its peft_type must be PEFT's. Say --as-in-peft if this is that method, \
             or choose another name"
        );
    }
    Ok(())
}

/// `Loraxs`, the name of the unit struct.
fn type_name(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    first.to_uppercase() + rest
}

fn filled(text: &str, name: &str) -> String {
    text.replace("Demo", &type_name(name)).replace("demo", name)
}

/// Writes all of them, or leaves everything as it was.
fn apply(folder: &Path, changes: &[Change]) -> Result<()> {
    let mut written = Vec::new();
    let result = changes.iter().try_for_each(|change| {
        written.push(change);
        let path = &change.path;
        let parent = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(path, &change.new))
            .with_context(|| format!("cannot write {}", path.display()))
    });
    let Err(error) = result else {
        return Ok(());
    };
    let mut left = Vec::new();
    for change in written.iter().rev() {
        if let Some(old) = &change.old
            && fs::write(&change.path, old).is_err()
        {
            left.push(change.path.display().to_string());
        }
    }
    if folder.exists() && fs::remove_dir_all(folder).is_err() {
        left.push(folder.display().to_string());
    }
    match left.as_slice() {
        [] => Err(error.context("nothing was changed")),
        left => Err(error.context(format!("could not be taken back: {}", left.join(", ")))),
    }
}

/// The order of imports depends on the name. Without rustfmt the code is as good, and tidied by whoever has it.
fn format_code(changes: &[Change]) {
    let rust = changes
        .iter()
        .map(|change| &change.path)
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    drop(
        Command::new("rustfmt")
            .args(["--edition", "2024"])
            .args(rust)
            .output(),
    );
}

fn next_steps(name: &str) -> String {
    format!(
        "crates/families/{name} is a plain low-rank update that passes its tests: cargo test -p lowrank-{name}\n\
         Now make it yours; the places are marked CHANGE, and docs/new-family.md walks through a real one:\n\
         1. put the paper, its equations and your departures in the //! of src/lib.rs\n\
         2. write src/config.rs, then src/layer.rs\n\
         3. turn two worked examples of the paper into tests/paper.rs\n\
         4. list configurations in tests/conformance.rs\n\
         5. record golden values if a reference implementation exists: cargo xtask parity\n\
         6. cargo xtask readme, then cargo xtask ci\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const WORKSPACE: &str = "[workspace.dependencies]\nlowrank-adapter = { path = \"crates/adapter\" }\n\
        lowrank-lora = { path = \"crates/families/lora\" }\nlowrank-ops = { path = \"crates/ops\" }\n\nanyhow = \"1\"\n";
    const MANIFEST: &str = "[dependencies]\nlowrank-adapter.workspace = true\nlowrank-lora.workspace = true\n\n\
        [lints]\nworkspace = true\n";
    const LIST: &str = "pub static FAMILIES: &[&dyn AnyFamily] = &[&lowrank_lora::Lora];\n\n\
        const PLANNED: &[&str] = &[\"adalora\", \"mor\", \"salora\"];\n";

    fn workspace() -> Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        for (path, text) in [
            ("Cargo.toml", WORKSPACE),
            ("crates/registry/Cargo.toml", MANIFEST),
            ("crates/registry/src/lib.rs", LIST),
            ("crates/families/lora/Cargo.toml", ""),
            ("crates/ops/Cargo.toml", ""),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        Ok(dir)
    }

    /// Every file and its text.
    fn contents(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                found.extend(contents(&path)?);
                found.insert(path, String::new());
            } else {
                found.insert(path.clone(), fs::read_to_string(path)?);
            }
        }
        Ok(found)
    }

    #[test]
    fn a_family_is_written_and_listed() -> Result<()> {
        let dir = workspace()?;
        let before = contents(dir.path())?;
        let said = run(dir.path(), "mor", Naming::Ours)?;
        assert!(said.contains("cargo test -p lowrank-mor"), "{said}");
        let after = contents(dir.path())?;
        let text = |path: &str| after[&dir.path().join(path)].as_str();
        let line = "lowrank-mor = { path = \"crates/families/mor\" }\n";
        let expected = WORKSPACE.replace("lowrank-ops", &format!("{line}lowrank-ops"));
        assert_eq!(text("Cargo.toml"), expected);
        let expected = MANIFEST.replace("\n\n[lints]", "\nlowrank-mor.workspace = true\n\n[lints]");
        assert_eq!(text("crates/registry/Cargo.toml"), expected);
        // What was planned is no longer.
        assert_eq!(
            text("crates/registry/src/lib.rs"),
            LIST.replace("Lora]", "Lora, &lowrank_mor::Mor]")
                .replace(" \"mor\",", "")
        );
        assert_eq!(after.len(), before.len() + 9);
        let layer = text("crates/families/mor/src/layer.rs");
        assert!(
            layer.contains("impl Family for Mor {")
                && layer.contains("NAME: &'static str = \"mor\"")
        );
        for (path, text) in &after {
            assert!(!text.to_lowercase().contains("demo"), "{}", path.display());
        }
        Ok(())
    }

    #[test]
    fn bad_names_are_refused_and_nothing_is_changed() -> Result<()> {
        let dir = workspace()?;
        let before = contents(dir.path())?;
        for (name, expected) in [
            ("", "expected lower-case letters and digits"),
            ("LoRA", "expected lower-case letters and digits"),
            ("my-lora", "expected lower-case letters and digits"),
            ("my_lora", "expected lower-case letters and digits"),
            ("3lora", "a letter first"),
            ("../up", "expected lower-case letters and digits"),
            ("lör", "expected lower-case letters and digits"),
            ("match", "it is a word of Rust"),
            ("full", "the training of all weights"),
            ("lora", "there is crates/families/lora already"),
            ("ops", "there is crates/ops already"),
            ("vera", "PEFT has a method `vera`"),
        ] {
            let error = run(dir.path(), name, Naming::Ours).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert_eq!(contents(dir.path())?, before);
        run(dir.path(), "vera", Naming::AsInPeft)?;
        let again = run(dir.path(), "vera", Naming::AsInPeft).unwrap_err();
        assert!(
            again
                .to_string()
                .contains("there is crates/families/vera already")
        );
        Ok(())
    }

    #[test]
    fn a_workspace_that_cannot_be_edited_stays_as_it_was() -> Result<()> {
        for (path, text) in [
            ("Cargo.toml", "[workspace]\n"),
            ("crates/registry/Cargo.toml", "[dependencies]\n"),
            ("crates/registry/src/lib.rs", "static LIST: [u8; 0] = [];\n"),
        ] {
            let dir = workspace()?;
            fs::write(dir.path().join(path), text)?;
            let before = contents(dir.path())?;
            let error = run(dir.path(), "mor", Naming::Ours).unwrap_err();
            assert!(format!("{error:#}").contains(path), "{error:#}");
            assert_eq!(contents(dir.path())?, before);
        }
        // What is written first is taken back when a later file cannot be.
        let dir = workspace()?;
        let file = |name: &str| dir.path().join(name);
        let before = contents(dir.path())?;
        let change = |path: PathBuf, old: Option<&str>| Change {
            path,
            old: old.map(str::to_owned),
            new: "new".into(),
        };
        let changes = [
            change(file("crates/families/mor/src/lib.rs"), None),
            change(file("Cargo.toml"), Some(WORKSPACE)),
            // A folder, which cannot be written to.
            change(file("crates/ops"), None),
        ];
        let error = apply(&file("crates/families/mor"), &changes).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("nothing was changed: cannot write"),
            "{error:#}"
        );
        assert_eq!(contents(dir.path())?, before);
        Ok(())
    }
}
