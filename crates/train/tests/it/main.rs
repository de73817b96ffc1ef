//! The trainer on a small model of its own.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod best;
mod blur;
mod changed;
mod evaluation;
mod factors;
mod optimizer;
mod reports;
mod run_files;
mod runs;
mod steps;
mod support;
mod task_metrics;
