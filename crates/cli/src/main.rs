//! The `lowrank` binary.
fn main() {}
