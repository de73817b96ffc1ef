//! The guides in `docs/guides` say what they do: every `sh` block of a guide is run, in order, in a folder of its own that has
//! the repository's `docs` and `models`. A block marked `sh needs=MODEL` is left out where `cargo xtask fetch` has not
//! brought that model.
#![expect(clippy::print_stderr, reason = "a block that is not run says so")]

use lowrank_tests::binary;
use lowrank_tests::place::Place;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the repository")
}

/// A block of shell commands, and the model that it needs.
struct Block {
    line: usize,
    needs: Option<String>,
    commands: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((line, fence)) = lines.next() {
        let Some(info) = fence.strip_prefix("```sh") else {
            continue;
        };
        let body = lines.by_ref().map(|(_, line)| line);
        let commands: Vec<&str> = body.take_while(|line| *line != "```").collect();
        blocks.push(Block {
            line: line + 2,
            needs: info.trim().strip_prefix("needs=").map(str::to_owned),
            commands: commands.join("\n"),
        });
    }
    blocks
}

/// Runs a guide's blocks, at least one of them with each of `verbs`.
fn check(guide: &str, verbs: &[&str]) {
    let root = root();
    let name = format!("docs/guides/{guide}.md");
    let text = fs::read_to_string(root.join(&name)).expect("the guide");
    let blocks = blocks(&text);
    for verb in verbs {
        let command = format!("lowrank {verb} ");
        let found = blocks.iter().any(|block| block.commands.contains(&command));
        assert!(found, "{name} has no `{command}`");
    }
    let place = Place::new();
    for shared in ["docs", "models"] {
        if root.join(shared).exists() {
            symlink(root.join(shared), place.path(shared)).expect("a link");
        }
    }
    let bin = place.path("bin");
    fs::create_dir(&bin).expect("a folder");
    symlink(binary::path().expect("the binary"), bin.join("lowrank")).expect("a link");
    let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap_or_default());
    for block in blocks {
        if let Some(model) = &block.needs
            && !root.join("models").join(model).exists()
        {
            eprintln!(
                "{name}:{}: not run: {model} is missing, `cargo xtask fetch` brings it",
                block.line
            );
            continue;
        }
        let ended = Command::new("sh")
            .args(["-eu", "-c", &block.commands])
            .current_dir(place.path(""))
            .env("PATH", &path)
            .env("HF_HUB_OFFLINE", "1")
            .env("LOWRANK_CACHE", place.path("cache"))
            .env_remove("RUST_LOG")
            .output()
            .expect("a shell");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.success(),
            "{name}:{}:\n{}\n{said}",
            block.line,
            block.commands
        );
    }
}

#[test]
fn every_guide_is_run() {
    let guides = fs::read_dir(root().join("docs/guides")).expect("the guides");
    let mut found: Vec<String> = guides
        .map(|entry| entry.expect("a guide").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "README")
        .collect();
    found.sort();
    let source = include_str!("guides.rs");
    for name in &found {
        assert!(
            source.contains(&format!("check(\"{name}\"")),
            "no test runs {name}.md"
        );
    }
}

#[test]
fn texts_and_completions() {
    check("text", &["plan", "train", "eval", "generate"]);
}

#[test]
fn multiple_choice() {
    check("multiple-choice", &["train", "eval", "merge"]);
}

#[test]
fn classification() {
    check("classification", &["plan", "train", "eval", "merge"]);
}

#[test]
fn conversations() {
    check("chat", &["plan", "train", "generate", "chat", "eval"]);
}

#[test]
fn written_answers() {
    check("generation", &["train", "eval"]);
}

#[test]
fn embeddings() {
    check("embeddings", &["embed"]);
}

#[test]
fn data() {
    check("data", &["plan", "train"]);
}

#[test]
fn training() {
    check("training", &["plan", "train"]);
}
