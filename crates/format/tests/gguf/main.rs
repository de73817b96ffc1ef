//! GGUF files: what is read out of them, and what is refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "../common/watched.rs"]
mod watched;

mod hostile;
mod reading;
mod refusals;
mod tokenizers;
mod writer;

use lowrank_format::{Gguf, Result};
use std::fs;

/// A file of these bytes, opened.
fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    // The map outlives the name.
    Gguf::open(&path)
}

/// What is wrong with these bytes, without the file's name.
fn refused(bytes: &[u8]) -> String {
    let message = open(bytes).unwrap_err().to_string();
    let (_, what) = message.split_once("model.gguf: ").unwrap();
    what.to_owned()
}
