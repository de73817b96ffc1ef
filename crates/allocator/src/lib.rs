//! The allocator of the project's programs. A program that uses this crate allocates with mimalloc; libraries do not use it.
//!
//! Training makes large results and drops them, over and over. The system's allocator gives their pages back and gets them
//! again, one fault a page.
//!
//! ```
//! lowrank_allocator::keep_freed_memory();
//! let results: Vec<Vec<u8>> = (0..4).map(|_| vec![7; 1 << 20]).collect();
//! assert_eq!(results.len(), 4);
//! ```

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// From now on freed memory is kept for the next result of its size: for work that repeats itself, such as training steps.
/// What is kept counts as used.
#[expect(
    unsafe_code,
    reason = "the allocator's options are set by a C function"
)]
pub fn keep_freed_memory() {
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const ARENA_RESERVE: libmimalloc_sys::mi_option_t = 23;
    // Addresses are reserved in pieces, from 128 MiB on, doubled by the allocator after every eight of them. In pieces of
    // 1 GiB (the default) and 8 GiB results leave gaps that others do not fit into: a step of 2048 tokens then takes 5.1 GB
    // instead of 3.5. 16 GiB and more are refused, and large results given back to the system whenever they are freed.
    const KIB: std::ffi::c_long = 128 << 10;
    // SAFETY: sets numbers that the allocator reads; both options exist in its versions 2 and 3 under these numbers.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        libmimalloc_sys::mi_option_set(ARENA_RESERVE, KIB);
    }
}
