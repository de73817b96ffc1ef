//! The `lowrank` binary, run as a user runs it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

/// How a run of the binary ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status; -1 if a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

impl Ended {
    /// Itself, if it ended well.
    ///
    /// # Panics
    /// If it did not.
    #[must_use]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// The one JSON object that it printed.
    ///
    /// # Panics
    /// If it failed, or printed anything else.
    #[must_use]
    pub fn json(self) -> Value {
        let ended = self.ok();
        let value: Value = serde_json::from_str(&ended.stdout).expect("one JSON value");
        assert!(value.is_object() && ended.stdout.lines().count() == 1);
        value
    }
}

/// Runs the binary in `folder`, without a network.
///
/// # Panics
/// If it cannot be built or started, or does not end within two minutes.
#[must_use]
pub fn run(folder: &Path, arguments: &[&str]) -> Ended {
    run_with(folder, arguments, &[("HF_HUB_OFFLINE", "1")])
}

/// As [`run`], with environment variables; of those that lead to a hub, only the given ones are set.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn run_with(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let binary = path().unwrap_or_else(|error| panic!("{error:#}"));
    let mut command = assert_cmd::Command::new(binary);
    command
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env("HF_HOME", folder.join("hf-home"))
        .env("LOWRANK_CACHE", folder.join("lowrank-cache"))
        .env("NO_PROXY", "127.0.0.1");
    for name in [
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
    ] {
        command.env_remove(name);
    }
    let output = command
        .envs(variables.iter().copied())
        .timeout(Duration::from_secs(120))
        .output()
        .expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("the binary writes UTF-8");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The binary in the profile of this test. Tests of the whole workspace come with one; for this package's alone it may be
/// missing, or older than its sources, and cargo builds it first.
///
/// # Errors
/// If it cannot be built.
pub fn path() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = FOUND.get() {
        return Ok(path.clone());
    }
    // This is target/<profile>/deps/<test>.
    let test = env::current_exe().context("where is this test?")?;
    let profile = test.ancestors().nth(2).context("a test lies two deep")?;
    let path = profile.join(format!("lowrank{}", env::consts::EXE_SUFFIX));
    let fresh = modified(&path) >= newest_source()?;
    let path = if fresh { path } else { build()? };
    Ok(FOUND.get_or_init(|| path).clone())
}

fn build() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--package", "lowrank-cli"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo cannot build the binary");
    let messages = String::from_utf8(output.stdout)?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    executable.context("cargo names no executable")
}

/// When a source of the binary was last changed.
fn newest_source() -> Result<Option<SystemTime>> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")];
    let mut newest = None;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("tests") && !path.ends_with("conformance") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                newest = newest.max(modified(&path));
            }
        }
    }
    Ok(newest)
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}
