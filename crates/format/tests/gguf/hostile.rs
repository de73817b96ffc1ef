//! Damaged files: an error or the right tensors, never a panic and never an allocation of the claimed size.

use super::watched;
use super::writer::tiny;
use lowrank_format::Gguf;
use lowrank_frozen::Weights as _;
use proptest::prelude::*;
use std::fs;

/// Opens the bytes as a GGUF file and reads whatever it says it holds.
fn check_survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.gguf");
    fs::write(&path, bytes).unwrap();
    if let Ok(file) = Gguf::open(&path) {
        for name in file.names() {
            let shape = file.info(name).unwrap().shape;
            // A flip may make a NaN.
            if let Ok(tensor) = file.tensor(name) {
                prop_assert_eq!(tensor.dims(), &shape[..]);
            }
            let _ = file.stored(name);
        }
        let _ = (file.tokenizer(), file.side_files());
    }
    let largest = watched::largest();
    prop_assert!(
        largest < watched::MUCH,
        "a block of {largest} bytes was asked for"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = tiny().bytes();
        for (index, byte) in flips {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        check_survives(&bytes)?;
    }

    #[test]
    fn cut_and_extended(cut in any::<prop::sample::Index>(), more in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = tiny().bytes();
        bytes.truncate(cut.index(bytes.len()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.gguf");
        fs::write(&path, &bytes).unwrap();
        prop_assert!(Gguf::open(&path).is_err());
        bytes.extend(more);
        check_survives(&bytes)?;
    }
}
