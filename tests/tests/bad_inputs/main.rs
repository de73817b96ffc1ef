//! Whatever is wrong ends with a message that names the file, the key and the value: no panic, nothing on stdout, no file or
//! folder left behind. The status is 2 if the command line or the run file is wrong, and else 1.

mod adapters;
mod command_line;
mod data;
mod gguf;
mod models;
mod outputs;
mod prompts;
mod run_files;

#[path = "../storages/model.rs"]
#[expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
mod small_gguf;
