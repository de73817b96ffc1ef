//! What the tests that cross crates share: where the golden files are, and how they are read.

pub mod golden;
pub mod numbers;
pub mod steps;
