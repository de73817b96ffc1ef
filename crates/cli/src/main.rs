//! The `lowrank` binary: a thin layer over the `lowrank` crate that parses a command line and prints.
//!
//! Exit status: 0 ok, 2 the command line or the run file is wrong, 130 or 143 a run was stopped by SIGINT or SIGTERM, and
//! what it had done is saved; 1 everything else. Data goes to stdout, logs and
//! errors to stderr.

mod arguments;
mod output;
mod progress;
mod signals;
mod verbs;

use arguments::{Arguments, Verb};
use clap::Parser;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(arguments.verbose, arguments.quiet);
    if matches!(
        &arguments.verb,
        Verb::Train(_) | Verb::Generate(_) | Verb::Chat(_) | Verb::Eval(_)
    ) {
        lowrank_allocator::keep_freed_memory();
    }
    let result = match &arguments.verb {
        Verb::Train(verb) => verbs::train::run(verb, arguments.quiet),
        Verb::Plan(verb) => verbs::plan::run(verb),
        Verb::Embed(verb) => verbs::embed::run(verb),
        Verb::Eval(verb) => verbs::eval::run(verb),
        Verb::Generate(verb) => verbs::generate::run(verb),
        Verb::Chat(verb) => verbs::chat::run(verb, arguments.quiet),
        Verb::Merge(verb) => verbs::merge::run(verb),
        Verb::Export(verb) => verbs::export::run(verb),
        Verb::Inspect(verb) => verbs::inspect::run(verb),
        Verb::Families(verb) => verbs::families::run(verb),
        Verb::Other(words) => Err(verbs::other(words)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Messages hold those of their sources already.
            say(&format!("error: {error}"));
            let usage = error
                .downcast_ref::<lowrank::Error>()
                .is_some_and(lowrank::Error::is_usage);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// A line on stderr; `eprintln!` would panic where stderr leads to a full disk or to nobody.
pub fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn start_logging(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        // A download may take a while.
        (false, 0) => "warn,lowrank_format::hub=info",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}
