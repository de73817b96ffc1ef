//! What a repository of the hub is called, and what a user's word for a model means.

use crate::{Error, Result, source};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest half of an id that the hub gives out.
const MAX_NAME: usize = 96;
/// Longer revisions fit no file name.
const MAX_REVISION: usize = 255;
/// What has one of these suffixes is meant as a file.
const FILES: [&str; 3] = ["gguf", "jsonl", "safetensors"];

/// `org/name` or `org/name@revision`: a repository of the hub, and a branch, tag or commit in it.
///
/// Whatever such a value holds is safe in a URL and in the name of a folder.
///
/// ```
/// let id: lowrank_format::HubId = "HuggingFaceTB/SmolLM2-135M@main".parse()?;
/// assert_eq!((id.name(), id.revision()), ("HuggingFaceTB/SmolLM2-135M", Some("main")));
/// assert!("org/../name".parse::<lowrank_format::HubId>().is_err());
/// # Ok::<(), lowrank_format::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    name: String,
    revision: Option<String>,
}

impl HubId {
    /// `org/name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What follows the `@`.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for HubId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map_err(|what| Error::HubId {
            text: shortened(text),
            what,
        })
    }
}

fn parse(text: &str) -> Result<HubId, String> {
    let (name, revision) = match text.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (text, None),
    };
    let parts: Vec<&str> = name.split('/').collect();
    let [organisation, repository] = parts[..] else {
        return Err(
            "expected `org/name` or `org/name@revision`, with one slash before the `@`".into(),
        );
    };
    check_part("organisation", organisation)?;
    check_part("name", repository)?;
    revision.map_or(Ok(()), check_revision)?;
    Ok(HubId {
        name: name.to_owned(),
        revision: revision.map(str::to_owned),
    })
}

fn check_part(what: &str, part: &str) -> Result<(), String> {
    let shown = shortened(part);
    if part.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if part.len() > MAX_NAME {
        return Err(format!(
            "the {what} `{shown}` has {} characters; the hub allows {MAX_NAME}",
            part.len()
        ));
    }
    refuse_others(what, part, "-_.")?;
    if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
        return Err(format!(
            "the {what} `{shown}` begins or ends with `-` or `.`"
        ));
    }
    // Two dashes stand for a slash in the names of the cache's folders.
    match ["..", "--"].iter().find(|pair| part.contains(**pair)) {
        Some(pair) => Err(format!("the {what} `{shown}` holds `{pair}`")),
        None => Ok(()),
    }
}

fn check_revision(revision: &str) -> Result<(), String> {
    let shown = shortened(revision);
    if revision.is_empty() {
        return Err("nothing follows the `@`; expected a branch, a tag or a commit".into());
    }
    if revision.len() > MAX_REVISION {
        return Err(format!(
            "the revision `{shown}` has {} characters; at most {MAX_REVISION} are allowed",
            revision.len()
        ));
    }
    refuse_others("revision", revision, "-_.+/")?;
    for part in revision.split('/') {
        if part.is_empty() {
            return Err(format!(
                "the revision `{shown}` begins, ends or goes on with an empty part"
            ));
        }
        if part.starts_with(['-', '.']) {
            return Err(format!(
                "a part of the revision `{shown}` begins with `-` or `.`"
            ));
        }
    }
    if revision.contains("..") {
        return Err(format!("the revision `{shown}` holds `..`"));
    }
    Ok(())
}

fn refuse_others(what: &str, text: &str, signs: &str) -> Result<(), String> {
    let wrong = |c: &char| !c.is_ascii_alphanumeric() && !signs.contains(*c);
    match text.chars().find(wrong) {
        Some(c) => {
            let signs: Vec<String> = signs.chars().map(|sign| format!("`{sign}`")).collect();
            let shown = shortened(text);
            Err(format!(
                "the {what} `{shown}` holds {c:?}; expected letters, digits, {}",
                signs.join(", ")
            ))
        }
        None => Ok(()),
    }
}

/// A message need not repeat a megabyte.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// Where a model or an adapter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a folder or a file of this machine.
    Path(PathBuf),
    /// In a repository of the hub.
    Hub(HubId),
}

impl Location {
    /// What exists is a path, and so is what names a file of weights; else `org/name[@revision]` is a repository of the hub.
    ///
    /// # Errors
    /// If `text` is neither.
    pub fn find(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        let is_file = suffix
            .is_some_and(|suffix| FILES.iter().any(|known| suffix.eq_ignore_ascii_case(known)));
        if path.exists() || is_file || source::is_pickle(path) {
            return Ok(Self::Path(path.to_path_buf()));
        }
        let name = match text.split_once('@') {
            Some((name, revision)) if Path::new(name).exists() => {
                let what = format!(
                    "is on this machine, where nothing has revisions; leave `@{}` out",
                    shortened(revision)
                );
                return Err(Error::content(Path::new(name), what));
            }
            Some((name, _)) => name,
            None => text,
        };
        let slashes = name.matches('/').count();
        if slashes != 1 || name.starts_with(['/', '.', '~']) {
            return Err(Error::NotFound {
                path: shortened(text).into(),
                expected: "a path, or a hub id: `org/name` or `org/name@revision`",
            });
        }
        text.parse().map(Self::Hub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_revisions_are_taken_apart() {
        for (text, name, revision) in [
            ("org/name", "org/name", None),
            ("a/b", "a/b", None),
            (
                "HuggingFaceTB/SmolLM2-135M.v1_x",
                "HuggingFaceTB/SmolLM2-135M.v1_x",
                None,
            ),
            ("_a/1b@main", "_a/1b", Some("main")),
            ("org/name@refs/pr/17", "org/name", Some("refs/pr/17")),
            ("org/name@v1.0+cpu_x-y", "org/name", Some("v1.0+cpu_x-y")),
        ] {
            let id: HubId = text.parse().unwrap();
            assert_eq!((id.name(), id.revision()), (name, revision));
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_id_is_refused_with_the_reason() {
        let shape = "expected `org/name` or `org/name@revision`, with one slash before the `@`";
        let signs = "expected letters, digits, `-`, `_`, `.`";
        let long = "x".repeat(97);
        let longer = "r".repeat(256);
        for (text, what) in [
            ("", shape.to_owned()),
            ("name", shape.to_owned()),
            ("a/b/c", shape.to_owned()),
            ("@main", shape.to_owned()),
            ("/name", "the organisation is empty".to_owned()),
            ("org/", "the name is empty".to_owned()),
            (
                "../name",
                "the organisation `..` begins or ends with `-` or `.`".to_owned(),
            ),
            (
                "org/..",
                "the name `..` begins or ends with `-` or `.`".to_owned(),
            ),
            (
                "org/-name",
                "the name `-name` begins or ends with `-` or `.`".to_owned(),
            ),
            ("org/a..b", "the name `a..b` holds `..`".to_owned()),
            (
                "o--rg/name",
                "the organisation `o--rg` holds `--`".to_owned(),
            ),
            ("org/na me", format!("the name `na me` holds ' '; {signs}")),
            (
                "org/na\0me",
                format!("the name `na\0me` holds '\\0'; {signs}"),
            ),
            (
                "org\\x/name",
                format!("the organisation `org\\x` holds '\\\\'; {signs}"),
            ),
            ("org/näme", format!("the name `näme` holds 'ä'; {signs}")),
            (
                "org/name?x=1",
                format!("the name `name?x=1` holds '?'; {signs}"),
            ),
            (
                &format!("org/{long}"),
                format!("the name `{long}` has 97 characters; the hub allows 96"),
            ),
            (
                "org/name@",
                "nothing follows the `@`; expected a branch, a tag or a commit".to_owned(),
            ),
            (
                "org/name@../x",
                "a part of the revision `../x` begins with `-` or `.`".to_owned(),
            ),
            (
                "org/name@-x",
                "a part of the revision `-x` begins with `-` or `.`".to_owned(),
            ),
            (
                "org/name@/x",
                "the revision `/x` begins, ends or goes on with an empty part".to_owned(),
            ),
            (
                "org/name@a//b",
                "the revision `a//b` begins, ends or goes on with an empty part".to_owned(),
            ),
            ("org/name@a..b", "the revision `a..b` holds `..`".to_owned()),
            (
                "org/name@a b",
                format!("the revision `a b` holds ' '; {signs}, `+`, `/`"),
            ),
            (
                "org/name@a@b",
                format!("the revision `a@b` holds '@'; {signs}, `+`, `/`"),
            ),
            (
                "org/name@a%2Fb",
                format!("the revision `a%2Fb` holds '%'; {signs}, `+`, `/`"),
            ),
            (
                &format!("org/name@{longer}"),
                format!(
                    "the revision `{}..` has 256 characters; at most 255 are allowed",
                    "r".repeat(120)
                ),
            ),
        ] {
            let message = text.parse::<HubId>().unwrap_err().to_string();
            let shown = shortened(text);
            assert_eq!(message, format!("`{shown}` is not a hub id: {what}"));
        }
    }

    #[test]
    fn what_exists_is_a_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        let base = dir.path().display();
        let existing = format!("{base}/model");
        assert_eq!(
            Location::find(&existing).unwrap(),
            Location::Path(existing.clone().into())
        );
        assert_eq!(
            Location::find("org/name@v2").unwrap(),
            Location::Hub("org/name@v2".parse().unwrap())
        );
        for file in [
            "org/name.gguf",
            "org/name.GGUF",
            "org/name.bin",
            "org/x.safetensors",
        ] {
            assert_eq!(Location::find(file).unwrap(), Location::Path(file.into()));
        }
        let refused = |text: &str| Location::find(text).unwrap_err().to_string();
        assert_eq!(
            refused(&format!("{existing}@main")),
            format!(
                "{existing}: is on this machine, where nothing has revisions; leave `@main` out"
            )
        );
        let expected =
            "does not exist; expected a path, or a hub id: `org/name` or `org/name@revision`";
        for text in [
            "name", "a/b/c", "./name", "../name", "~/name", "/name", "name@x/y", "",
        ] {
            assert_eq!(refused(text), format!("{text} {expected}"));
        }
        assert_eq!(
            refused("org/na me"),
            "`org/na me` is not a hub id: the name `na me` holds ' '; expected letters, digits, `-`, `_`, `.`"
        );
    }
}
