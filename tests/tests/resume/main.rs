//! The binary, killed with SIGKILL at random moments: a resumed run gives the bytes and the losses of one that nothing
//! interrupted, and a killed merge gives the whole model or nothing. Products in bf16, too, train to the same bytes.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be run or read fails the test"
)]

mod folders;
mod half;
mod kill;
mod merge;
mod orders;
mod scene;
mod train;
