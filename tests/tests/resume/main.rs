//! The binary, killed with SIGKILL at random moments: a resumed run gives the bytes and the losses of one that nothing
//! interrupted, also after SIGTERM and after a full disk, and a killed merge gives the whole model or nothing. Products in
//! bf16, and every optimiser, train to the same bytes, too.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be run or read fails the test"
)]

mod folders;
mod full_disk;
mod half;
mod kill;
mod merge;
mod optimisers;
mod orders;
mod scene;
mod stop;
mod train;
