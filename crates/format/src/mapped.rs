//! A weight file, mapped into memory.
#![expect(
    unsafe_code,
    reason = "a memory map, so that a tensor is read when it is asked for and not before"
)]

use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

/// The bytes of a file.
pub(crate) struct Mapped(Mmap);

impl Mapped {
    /// `file` is not empty, and was opened at `path`.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub(crate) fn new(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the map is read-only and private to this value. Nothing in this workspace changes a weight file in
        // place: writers make a new file and rename it. Another program that cuts the file short while it is being
        // read ends the process with SIGBUS, as it does for every reader that maps its weights.
        let map = unsafe { Mmap::map(file) }.map_err(Error::io("map", path))?;
        Ok(Self(map))
    }

    /// Gives back the memory of bytes that were read and are not needed soon. They can still be read: the system then
    /// fetches them again.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            use memmap2::UncheckedAdvice::DontNeed;
            // A system that does not heed it keeps the memory: nothing else is lost.
            // SAFETY: what is dropped are copies of the file's pages, which nobody can have changed: the map is read-only.
            let _ = unsafe { (self.0).unchecked_advise_range(DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
