//! What the tests that cross crates share: where the golden files are, how they are read, and how the binary is run.

pub mod binary;
pub mod device;
pub mod golden;
pub mod hub;
pub mod numbers;
pub mod place;
pub mod steps;
