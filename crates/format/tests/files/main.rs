//! Files and folders, written and read back.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "../common/mod.rs"]
mod common;

mod checkpoint;
mod peft;
mod prequantised;
mod round_trip;
