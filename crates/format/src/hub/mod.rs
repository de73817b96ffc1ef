//! Models, adapters and data files from the hub, through the cache that every tool of the hub shares.
//!
//! A revision is first turned into a commit; then the files that are needed, and no others, are downloaded into the
//! cache's `blobs`, checked, and linked into `snapshots/<commit>`, weights last. A snapshot that holds its weights is
//! complete, and what is complete is not asked for again.

mod cache;
mod client;
mod id;
mod settings;

pub use id::{HubId, Location};
pub use settings::Token;

use crate::checkpoint::{INDEX, SINGLE, shards};
use crate::side_files::is_side_file;
use crate::{CONFIG_FILE, Error, Result, TENSORS_FILE, source};
use cache::{Cache, is_commit};
use client::{Client, Failure};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIG: &str = "config.json";
const DEFAULT_REVISION: &str = "main";

/// A hub, and the folder that its files are kept in.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Where it is: `https://huggingface.co`.
    pub endpoint: String,
    /// The folder that holds `models--org--name` and the like.
    pub cache: PathBuf,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<Token>,
    /// Whether it may be asked.
    pub network: Network,
    /// How long to wait for a connection, an answer, or more of a file.
    pub timeout: Duration,
}

/// Whether requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Where the cache does not do.
    Online,
    /// Never.
    Offline,
}

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    Model,
    Adapter,
    /// One file of a data set.
    File(&'a str),
}

/// A repository at a revision.
struct Repository<'a> {
    id: &'a HubId,
    wanted: Wanted<'a>,
    cache: Cache,
}

impl Repository<'_> {
    /// As it stands in addresses and names of folders.
    fn kind(&self) -> &'static str {
        kind(self.wanted)
    }

    fn revision(&self) -> &str {
        self.id.revision().unwrap_or(DEFAULT_REVISION)
    }

    /// For `map_err`: names the repository, and a file in it.
    fn error(&self, file: Option<&str>) -> impl Fn(Failure) -> Error {
        let word = match self.wanted {
            Wanted::Model => "model",
            Wanted::Adapter => "adapter",
            Wanted::File(_) => "data set",
        };
        let name = format!(
            "{word} `{}` of the hub, revision `{}`",
            self.id.name(),
            self.revision()
        );
        let file = file.map(str::to_owned);
        move |failure| Error::Hub {
            repository: name.clone(),
            file: file.clone(),
            what: failure.what,
        }
    }
}

fn kind(wanted: Wanted<'_>) -> &'static str {
    match wanted {
        Wanted::Model | Wanted::Adapter => "models",
        Wanted::File(_) => "datasets",
    }
}

impl Hub {
    /// A folder with a model's configuration, tokenizer and safetensors weights.
    ///
    /// # Errors
    /// If the repository has none or cannot be read, a download is not what was promised, or, without a connection, the
    /// cache lacks something. Nothing that is incomplete is left under a name of the cache.
    pub fn model(&self, id: &HubId) -> Result<PathBuf> {
        self.snapshot(id, Wanted::Model)
    }

    /// An adapter folder in PEFT's layout.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn adapter(&self, id: &HubId) -> Result<PathBuf> {
        self.snapshot(id, Wanted::Adapter)
    }

    /// One file of a data set; `file` is its path in the repository, with slashes.
    ///
    /// # Errors
    /// As [`Hub::model`], and if `file` is no path that stays inside.
    pub fn file(&self, id: &HubId, file: &str) -> Result<PathBuf> {
        if !file.split('/').all(is_plain) {
            return Err(Error::HubId {
                text: format!("{id}/{file}"),
                what: "expected the path of a file in the repository, without empty parts, parts that begin with a dot, \
                       backslashes and control characters"
                    .to_owned(),
            });
        }
        Ok(self.snapshot(id, Wanted::File(file))?.join(file))
    }

    fn snapshot(&self, id: &HubId, wanted: Wanted<'_>) -> Result<PathBuf> {
        let folder = format!("{}--{}", kind(wanted), id.name().replace('/', "--"));
        let repository = Repository {
            id,
            wanted,
            cache: Cache::new(&self.cache, &folder),
        };
        // A commit never changes.
        if is_commit(repository.revision()) || self.network == Network::Offline {
            let cached = cached(&repository)?;
            if let Some(folder) = cached {
                return Ok(folder);
            }
        }
        if self.network == Network::Offline {
            let what = format!(
                "is not in the cache {} as a whole, and HF_HUB_OFFLINE forbids to ask for it; unset that, or give a folder",
                self.cache.display()
            );
            return Err(repository.error(None)(Failure::answer(what)));
        }
        let client = Client::new(self);
        let (commit, names) = match list(&client, &repository) {
            Ok(found) => found,
            Err(failure) => {
                if failure.unreachable
                    && let Some(folder) = cached(&repository)?
                {
                    tracing::warn!(
                        "{}; using what the cache holds",
                        repository.error(None)(failure)
                    );
                    return Ok(folder);
                }
                return Err(repository.error(None)(failure));
            }
        };
        let folder = repository.cache.snapshot(&commit);
        let fetch = |file: &str| fetch(&client, &repository, &commit, file);
        match wanted {
            Wanted::Model => {
                let weights = choose_weights(&names, id).map_err(repository.error(None))?;
                for name in names
                    .iter()
                    .filter(|name| is_plain(name) && is_side_file(name))
                {
                    fetch(name)?;
                }
                fetch(weights)?;
                if weights == INDEX {
                    for shard in shards(&folder.join(INDEX))? {
                        fetch(&shard)?;
                    }
                }
            }
            Wanted::Adapter => {
                check_adapter(&names).map_err(repository.error(None))?;
                for file in [CONFIG_FILE, "lowrank.json", TENSORS_FILE] {
                    if has(&names, file) {
                        fetch(file)?;
                    }
                }
            }
            Wanted::File(file) => fetch(file)?,
        }
        repository
            .cache
            .set_commit(repository.revision(), &commit)?;
        Ok(folder)
    }
}

/// Asks which commit the revision is, and which files it has.
fn list(
    client: &Client<'_>,
    repository: &Repository<'_>,
) -> Result<(String, Vec<String>), Failure> {
    let (kind, name) = (repository.kind(), repository.id.name());
    let path = format!(
        "/api/{kind}/{name}/revision/{}",
        escaped(repository.revision(), "")
    );
    let answer = client.json(&path)?;
    let commit = answer["sha"].as_str().filter(|commit| is_commit(commit));
    let commit = commit.ok_or_else(|| {
        Failure::answer(format!(
            "its commit is given as {}; expected a hash",
            answer["sha"]
        ))
    })?;
    let files = answer["siblings"].as_array().into_iter().flatten();
    let names = files.filter_map(|file| file["rfilename"].as_str());
    Ok((
        commit.to_ascii_lowercase(),
        names.map(str::to_owned).collect(),
    ))
}

/// Downloads a file into the snapshot, unless it is there.
fn fetch(client: &Client<'_>, repository: &Repository<'_>, commit: &str, file: &str) -> Result<()> {
    let error = repository.error(Some(file));
    if repository.cache.snapshot(commit).join(file).is_file() {
        return Ok(());
    }
    let prefix = match repository.wanted {
        Wanted::File(_) => "datasets/",
        Wanted::Model | Wanted::Adapter => "",
    };
    let name = repository.id.name();
    let path = format!("/{prefix}{name}/resolve/{commit}/{}", escaped(file, "/"));
    let incoming = client.open(&path).map_err(&error)?;
    let size = incoming.length.map_or(String::new(), |bytes| {
        format!(", {:.1} MB", bytes as f64 / 1e6)
    });
    tracing::info!("downloading {file} of {name}{size}");
    let stored = repository.cache.store(client, commit, file, incoming)?;
    stored.map(drop).map_err(error)
}

/// What the cache holds of the revision, if that is all that is wanted.
fn cached(repository: &Repository<'_>) -> Result<Option<PathBuf>> {
    let Some(commit) = repository.cache.commit(repository.revision()) else {
        return Ok(None);
    };
    let folder = repository.cache.snapshot(&commit);
    let has = |file: &str| folder.join(file).is_file();
    let complete = match repository.wanted {
        Wanted::Model if !has(CONFIG) => false,
        Wanted::Model if has(SINGLE) => true,
        Wanted::Model if has(INDEX) => shards(&folder.join(INDEX))?.iter().all(|shard| has(shard)),
        Wanted::Model => false,
        Wanted::Adapter => has(CONFIG_FILE) && has(TENSORS_FILE),
        Wanted::File(file) => has(file),
    };
    Ok(complete.then_some(folder))
}

/// The file that holds a model's weights or lists their shards.
fn choose_weights(names: &[String], id: &HubId) -> Result<&'static str, Failure> {
    if !has(names, CONFIG) {
        let hint = if has(names, CONFIG_FILE) {
            "; it is an adapter: give it as `--adapter`"
        } else {
            ""
        };
        return Err(Failure::answer(format!(
            "holds no {CONFIG}; expected a model{hint}"
        )));
    }
    if let Some(weights) = [SINGLE, INDEX].into_iter().find(|name| has(names, name)) {
        return Ok(weights);
    }
    if let Some(pickle) = names.iter().find(|name| source::is_pickle(Path::new(name))) {
        return Err(Failure::answer(format!(
            "holds its weights as pickles only ({pickle}), which are refused because reading them can run any code; \
             convert them in Python and give the folder: \
             `CLASS.from_pretrained(\"{}\").save_pretrained(\"folder\", safe_serialization=True)`, where CLASS is what transformers \
             calls the one in `architectures` of {CONFIG}",
            id.name()
        )));
    }
    let gguf = names
        .iter()
        .find(|name| name.to_ascii_lowercase().ends_with(".gguf"));
    let hint = gguf.map_or(String::new(), |name| {
        format!("; download {name} and give its path")
    });
    Err(Failure::answer(format!(
        "holds neither {SINGLE} nor {INDEX}{hint}"
    )))
}

fn check_adapter(names: &[String]) -> Result<(), Failure> {
    if let Some(missing) = [CONFIG_FILE, TENSORS_FILE]
        .into_iter()
        .find(|name| !has(names, name))
    {
        let pickle = names.iter().find(|name| source::is_pickle(Path::new(name)));
        return Err(Failure::answer(match pickle {
            Some(pickle) if missing == TENSORS_FILE => format!(
                "holds its tensors as a pickle only ({pickle}), which is refused because reading it can run any code; \
                 convert it in Python and give the folder: {}",
                source::CONVERT_ADAPTER
            ),
            _ => format!("holds no {missing}; expected an adapter in PEFT's layout"),
        }));
    }
    Ok(())
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|found| found == name)
}

/// Whether this is a name in a folder, on any system.
fn is_plain(name: &str) -> bool {
    let sound = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(sound)
}

/// The text as a part of an address; of what is not a letter or a digit, `-`, `_`, `.`, `~` and `keep` stay.
fn escaped(text: &str, keep: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || keep.contains(c) {
            escaped.push(c);
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_nothing_that_means_something_else() {
        assert_eq!(escaped("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b/ü?#%.json", "/"), "a%20b/%C3%BC%3F%23%25.json");
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_not_plain() {
        for name in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "a\\b",
            "C:x",
            "a\nb",
            &"x".repeat(256),
        ] {
            assert!(!is_plain(name), "{name}");
        }
        assert!(["model.safetensors", "a b", "ü"].into_iter().all(is_plain));
    }
}
