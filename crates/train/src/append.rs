//! Files that grow piece by piece.

use std::fs::File;
use std::io::{self, Write as _};

/// Adds a piece to the end of a file, whole or not at all: what a full disk had room for is cut off again.
pub(crate) fn append(file: &mut File, piece: &[u8]) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.write_all(piece).inspect_err(|_| {
        // A file that cannot even be cut is read up to its last whole piece.
        drop(file.set_len(length));
    })
}
