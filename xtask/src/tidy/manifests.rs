//! Rules about manifests: what depends on what, and what every crate inherits.

use super::Source;
use anyhow::{Context, Result};
use toml::{Table, Value};

/// Which crates a crate may depend on, lowest first. `families/*` stands for every family.
const ARROWS: [(&str, &[&str]); 15] = [
    ("allocator", &[]),
    ("ops", &[]),
    ("report", &[]),
    ("frozen", &["ops"]),
    ("adapter", &["ops", "frozen"]),
    ("schedule", &["ops", "frozen", "adapter"]),
    ("families/*", &["ops", "frozen", "adapter", "schedule"]),
    ("models", &["ops", "frozen", "adapter"]),
    ("format", &["ops", "frozen", "adapter"]),
    ("merge", &["ops", "frozen", "adapter", "format"]),
    ("conformance", &["ops", "frozen", "adapter"]),
    ("data", &["ops", "frozen", "adapter"]),
    (
        "train",
        &[
            "ops", "frozen", "adapter", "schedule", "data", "format", "report",
        ],
    ),
    (
        "registry",
        &["ops", "frozen", "adapter", "schedule", "families/*"],
    ),
    (
        "lowrank",
        &[
            "ops",
            "frozen",
            "adapter",
            "schedule",
            "families/*",
            "models",
            "format",
            "merge",
            "conformance",
            "data",
            "train",
            "registry",
            "report",
        ],
    ),
];

/// Stand above everything and may depend on all of it.
const TOP: [&str; 3] = ["crates/cli", "tests", "xtask"];

/// Fields that every package takes from the workspace.
const INHERITED: [&str; 6] = [
    "version",
    "edition",
    "rust-version",
    "license",
    "repository",
    "publish",
];

/// A member of the workspace.
struct Member {
    /// `crates/ops`, `crates/families/lora`, `xtask`.
    folder: String,
    name: String,
    manifest: Table,
}

impl Member {
    /// The key of [`ARROWS`]: `ops`, `families/*`, `xtask`.
    fn place(&self) -> &str {
        match self.folder.strip_prefix("crates/") {
            Some(place) if place.starts_with("families/") => "families/*",
            Some(place) => place,
            None => &self.folder,
        }
    }

    fn is_family(&self) -> bool {
        self.place() == "families/*"
    }

    /// The name that the folder demands.
    fn expected_name(&self) -> String {
        let last = self.folder.rsplit('/').next().unwrap_or_default();
        match self.folder.as_str() {
            "xtask" | "crates/lowrank" => last.to_owned(),
            _ => format!("lowrank-{last}"),
        }
    }

    /// Packages under `key`, of every target.
    fn dependencies(&self, key: &str) -> Vec<(String, &Value)> {
        let targets = self.manifest.get("target").and_then(Value::as_table);
        let targets = targets
            .into_iter()
            .flat_map(Table::values)
            .filter_map(Value::as_table);
        let tables = std::iter::once(&self.manifest).chain(targets);
        let entries = tables
            .filter_map(|table| table.get(key)?.as_table())
            .flatten();
        entries
            .map(|(name, value)| {
                let package = value.get("package").and_then(Value::as_str);
                (package.unwrap_or(name).to_owned(), value)
            })
            .collect()
    }
}

/// The breaches of all manifests, and of sources that name a family which they may not know.
pub fn check(sources: &[Source]) -> Result<Vec<String>> {
    let mut members = Vec::new();
    for source in sources {
        let Some(folder) = source.path.strip_suffix("/Cargo.toml") else {
            continue;
        };
        let manifest: Table = source
            .text
            .parse()
            .with_context(|| format!("cannot read {}", source.path))?;
        let name = manifest
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(Value::as_str);
        let name = name
            .with_context(|| format!("{} names no package", source.path))?
            .to_owned();
        members.push(Member {
            folder: folder.to_owned(),
            name,
            manifest,
        });
    }
    let mut breaches = Vec::new();
    for member in &members {
        breaches.extend(inheritance(member));
        breaches.extend(arrows(member, &members));
    }
    breaches.extend(names_of_families(sources, &members));
    Ok(breaches)
}

/// Everything that the workspace states once is taken from there.
fn inheritance(member: &Member) -> Vec<String> {
    let folder = &member.folder;
    let inherits = |value: Option<&Value>| {
        value.and_then(|value| value.get("workspace")?.as_bool()) == Some(true)
    };
    let mut breaches = Vec::new();
    if member.name != member.expected_name() {
        breaches.push(format!(
            "{folder}: the package is `{}`, expected `{}`",
            member.name,
            member.expected_name()
        ));
    }
    let package = member.manifest.get("package");
    for field in INHERITED {
        if !inherits(package.and_then(|package| package.get(field))) {
            breaches.push(format!(
                "{folder}: `{field}.workspace = true` is missing from [package]"
            ));
        }
    }
    if !inherits(member.manifest.get("lints")) {
        breaches.push(format!(
            "{folder}: `workspace = true` is missing from [lints]"
        ));
    }
    for key in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in member.dependencies(key) {
            if !inherits(Some(value)) {
                breaches.push(format!(
                    "{folder}: the version of `{name}` belongs into the workspace's table"
                ));
            }
        }
    }
    breaches
}

/// Dependencies point downwards, and never from family to family.
fn arrows(member: &Member, members: &[Member]) -> Vec<String> {
    if TOP.contains(&member.folder.as_str()) {
        return Vec::new();
    }
    let folder = &member.folder;
    let Some((_, allowed)) = ARROWS.iter().find(|(place, _)| *place == member.place()) else {
        return vec![format!(
            "{folder}: has no place in the table of arrows (xtask/src/tidy/manifests.rs)"
        )];
    };
    let mut breaches = Vec::new();
    for key in ["dependencies", "build-dependencies", "dev-dependencies"] {
        for (name, _) in member.dependencies(key) {
            let Some(other) = members.iter().find(|other| other.name == name) else {
                continue;
            };
            if member.is_family() && other.is_family() {
                breaches.push(format!("{folder}: a family may not depend on another, `{name}`: move what both need down"));
            } else if key != "dev-dependencies" && !allowed.contains(&other.place()) {
                breaches.push(format!("{folder}: may not depend on `{name}`"));
            }
        }
    }
    breaches
}

/// Sources below the registry do not name a family's crate, and a family names none but itself.
fn names_of_families(sources: &[Source], members: &[Member]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|source| source.path.ends_with(".rs")) {
        let of = |member: &&Member| {
            source
                .path
                .strip_prefix(&member.folder)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let Some(member) = members.iter().find(of) else {
            continue;
        };
        if TOP.contains(&member.folder.as_str())
            || ["registry", "lowrank"].contains(&member.place())
        {
            continue;
        }
        for family in members
            .iter()
            .filter(|family| family.is_family() && family.name != member.name)
        {
            let path = family.name.replace('-', "_");
            if [&family.name, &path]
                .iter()
                .any(|name| has_word(&source.text, name))
            {
                breaches.push(format!(
                    "{}: may not name the family `{}`",
                    source.path, family.name
                ));
            }
        }
    }
    breaches
}

/// True if `word` stands alone somewhere: `lowrank_lora` does not occur in `lowrank_lora_plus`.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(inside) && !text[at + word.len()..].starts_with(inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sound manifest with these lines after `[package]`'s fields.
    fn manifest(folder: &str, rest: &str) -> Source {
        let name = match folder {
            "xtask" | "crates/lowrank" => folder.trim_start_matches("crates/").to_owned(),
            _ => format!("lowrank-{}", folder.rsplit('/').next().unwrap_or_default()),
        };
        let fields = INHERITED
            .map(|field| format!("{field}.workspace = true\n"))
            .concat();
        let text =
            format!("[package]\nname = \"{name}\"\n{fields}\n{rest}\n[lints]\nworkspace = true\n");
        Source {
            path: format!("{folder}/Cargo.toml"),
            text,
        }
    }

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Checks these beside sound manifests of `ops`, `registry` and the families `lora` and `mor`.
    fn check_with(extra: Vec<Source>) -> Result<Vec<String>> {
        let mut sources = extra;
        for folder in [
            "crates/ops",
            "crates/registry",
            "crates/families/lora",
            "crates/families/mor",
        ] {
            let sound = manifest(folder, "");
            if sources.iter().all(|source| source.path != sound.path) {
                sources.push(sound);
            }
        }
        check(&sources)
    }

    #[test]
    fn dependencies_point_downwards() -> Result<()> {
        let check = |folder: &str, rest: &str| check_with(vec![manifest(folder, rest)]);
        let none: [&str; 0] = [];
        assert_eq!(
            check(
                "crates/frozen",
                "[dependencies]\nlowrank-ops.workspace = true"
            )?,
            none
        );
        assert_eq!(
            check(
                "crates/lowrank",
                "[dependencies]\nlowrank-lora.workspace = true"
            )?,
            none
        );
        assert_eq!(
            check("crates/cli", "[dependencies]\nlowrank-mor.workspace = true")?,
            none
        );
        assert_eq!(
            check(
                "crates/frozen",
                "[dev-dependencies]\nlowrank-registry.workspace = true"
            )?,
            none
        );
        for key in [
            "dependencies",
            "build-dependencies",
            "target.'cfg(unix)'.dependencies",
        ] {
            assert_eq!(
                check(
                    "crates/frozen",
                    &format!("[{key}]\nlowrank-registry.workspace = true")
                )?,
                ["crates/frozen: may not depend on `lowrank-registry`"]
            );
        }
        assert_eq!(
            check(
                "crates/train",
                "[dependencies]\nrenamed = { workspace = true, package = \"lowrank-lora\" }"
            )?,
            ["crates/train: may not depend on `lowrank-lora`"]
        );
        assert_eq!(
            check("crates/other", "")?,
            ["crates/other: has no place in the table of arrows (xtask/src/tidy/manifests.rs)"]
        );
        Ok(())
    }

    #[test]
    fn families_do_not_depend_on_one_another() -> Result<()> {
        for key in ["dependencies", "dev-dependencies"] {
            let rest = format!("[{key}]\nlowrank-lora.workspace = true");
            assert_eq!(
                check_with(vec![manifest("crates/families/mor", &rest)])?,
                [
                    "crates/families/mor: a family may not depend on another, `lowrank-lora`: move what both need down"
                ]
            );
        }
        Ok(())
    }

    #[test]
    fn families_are_not_named_below_the_registry() -> Result<()> {
        let named = "use lowrank_lora::Lora;";
        for path in [
            "crates/ops/src/lib.rs",
            "crates/families/mor/tests/paper.rs",
        ] {
            assert_eq!(
                check_with(vec![source(path, named)])?,
                [format!("{path}: may not name the family `lowrank-lora`")]
            );
        }
        for (path, text) in [
            ("crates/registry/src/lib.rs", named),
            ("crates/families/lora/src/lib.rs", named),
            ("crates/ops/src/lib.rs", "use lowrank_lora_plus::X;"),
        ] {
            assert_eq!(check_with(vec![source(path, text)])?, [""; 0], "{path}");
        }
        Ok(())
    }

    #[test]
    fn packages_inherit() -> Result<()> {
        let sound = manifest("crates/ops", "[dependencies]\nrayon.workspace = true").text;
        let check = |from: &str, to: &str| {
            assert!(sound.contains(from), "{from}");
            check_with(vec![source(
                "crates/ops/Cargo.toml",
                &sound.replace(from, to),
            )])
        };
        assert_eq!(
            check("rayon.workspace = true", "rayon.workspace = true")?,
            [""; 0]
        );
        for field in INHERITED {
            assert_eq!(
                check(
                    &format!("\n{field}.workspace = true"),
                    &format!("\n{field} = \"1\"")
                )?,
                [format!(
                    "crates/ops: `{field}.workspace = true` is missing from [package]"
                )]
            );
        }
        let missing = "crates/ops: `workspace = true` is missing from [lints]";
        assert_eq!(check("[lints]\nworkspace = true", "")?, [missing]);
        assert_eq!(
            check(
                "[lints]\nworkspace = true",
                "[lints.rust]\nmissing_docs = \"allow\""
            )?,
            [missing]
        );
        assert_eq!(
            check("rayon.workspace = true", "rayon = \"1\"")?,
            ["crates/ops: the version of `rayon` belongs into the workspace's table"]
        );
        assert_eq!(
            check("\"lowrank-ops\"", "\"lowrank-kernels\"")?,
            ["crates/ops: the package is `lowrank-kernels`, expected `lowrank-ops`"]
        );
        Ok(())
    }
}
