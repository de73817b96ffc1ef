//! Damaged and lying files: an error or the right tensors, never a panic and never an allocation of the claimed size.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;
#[path = "common/watched.rs"]
mod watched;

use candle_core::{DType, Tensor};
use common::{message, ramp};
use lowrank_format::{Checkpoint, PYTORCH, PeftFolder, Safetensors, write_safetensors};
use lowrank_frozen::Weights;
use proptest::prelude::*;
use std::fs;
use std::path::Path;

fn valid(dir: &Path) -> Vec<u8> {
    let path = dir.join("valid.safetensors");
    let tensors = [
        ("model.layer.lora_A.weight", ramp(&[2, 3], DType::F32)),
        ("model.layer.lora_B.weight", ramp(&[5, 2], DType::BF16)),
        ("model.score.weight", ramp(&[3], DType::F64)),
        ("positions", ramp(&[4], DType::I64)),
    ];
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
    write_safetensors(&path, tensors, PYTORCH).unwrap();
    fs::read(path).unwrap()
}

/// The header and data of a file, joined without any check.
fn raw_file(path: &Path, json: &str, data: &[u8]) {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

/// Opens the bytes as a file and reads whatever it says it holds.
fn read_all(path: &Path, bytes: &[u8]) -> lowrank_format::Result<Vec<Tensor>> {
    fs::write(path, bytes).unwrap();
    let file = Safetensors::open(path)?;
    file.names()
        .into_iter()
        .map(|name| file.tensor(name))
        .collect()
}

fn check_survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.safetensors");
    if let Ok(tensors) = read_all(&path, bytes) {
        let size = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        prop_assert!(tensors.iter().map(size).sum::<usize>() <= bytes.len());
    }
    let largest = watched::largest();
    prop_assert!(
        largest < watched::MUCH,
        "a block of {largest} bytes was asked for"
    );
    Ok(())
}

/// A model that bitsandbytes saved, with other bytes: what can be opened can be read.
fn check_prequantised(bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
        for name in checkpoint.names() {
            let shape = checkpoint.info(name).map(|info| info.shape);
            if let Ok(tensor) = checkpoint.tensor(name) {
                prop_assert_eq!(Some(tensor.dims()), shape.as_deref());
            }
            if let Ok(stored) = checkpoint.stored(name) {
                let (rows, columns) = stored.dims();
                prop_assert_eq!(Some(vec![rows, columns]), shape);
            }
        }
    }
    let largest = watched::largest();
    prop_assert!(
        largest < watched::MUCH,
        "a block of {largest} bytes was asked for"
    );
    Ok(())
}

/// Where the digits of the header and of the states are.
fn digits_of_states(bytes: &[u8]) -> Vec<usize> {
    let states = bytes.windows(14).enumerate();
    let states = states.filter(|(_, window)| window == b"{\"quant_type\":");
    let near: Vec<usize> = states.flat_map(|(at, _)| at..at + 160).collect();
    let digits = near
        .into_iter()
        .filter(|&at| bytes.get(at).is_some_and(u8::is_ascii_digit));
    digits.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn quantised_matrices_with_other_bytes(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        swaps in prop::collection::vec((any::<prop::sample::Index>(), "[0-9{}\\[\\]:,\"]"), 0..4),
    ) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/prequantised/storage/model.safetensors");
        let mut bytes = fs::read(path).unwrap();
        let digits = digits_of_states(&bytes);
        prop_assert!(digits.len() > 100);
        for (index, text) in swaps {
            bytes[digits[index.index(digits.len())]] = text.as_bytes()[0];
        }
        for (index, byte) in flips {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        check_prequantised(&bytes)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = valid(dir.path());
        for (index, byte) in flips {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        check_survives(&bytes)?;
    }

    #[test]
    fn other_digits_and_punctuation(
        swaps in prop::collection::vec((any::<prop::sample::Index>(), "[0-9{}\\[\\]:,\"]"), 1..4),
    ) {
        // Most flips make the JSON invalid; these reach what lies behind the parser.
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = valid(dir.path());
        let digits: Vec<usize> = (8..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for (index, text) in swaps {
            bytes[digits[index.index(digits.len())]] = text.as_bytes()[0];
        }
        check_survives(&bytes)?;
    }

    #[test]
    fn cut_and_extended(cut in any::<prop::sample::Index>(), more in prop::collection::vec(any::<u8>(), 0..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = valid(dir.path());
        bytes.truncate(cut.index(bytes.len()));
        let truncated = read_all(&dir.path().join("cut.safetensors"), &bytes);
        prop_assert!(truncated.is_err());
        bytes.extend(more);
        check_survives(&bytes)?;
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..300), header in "\\{.{0,80}\\}") {
        check_survives(&bytes)?;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(bytes);
        check_survives(&file)?;
    }
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("file.safetensors");
    let open = || message(Safetensors::open(&path), dir);
    let prefix = "DIR/file.safetensors: not a valid safetensors file:";

    fs::write(&path, "").unwrap();
    let expected = "it is 0 bytes long, and the header's length alone takes 8";
    assert_eq!(open(), format!("{prefix} {expected}"));

    let whole = valid(dir);
    fs::write(&path, &whole[..100]).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let expected =
        format!("it claims a header of {header} bytes, and only 92 follow: is it truncated?");
    assert_eq!(open(), format!("{prefix} {expected}"));

    let entry = r#"{"w":{"dtype":"F32","shape":[274877906944],"data_offsets":[0,1099511627776]}}"#;
    raw_file(&path, entry, &[0; 24]);
    let expected = "tensor `w` ends at byte 1099511627776 of the data, which is 24 bytes long: is the file truncated?";
    assert_eq!(open(), format!("{prefix} {expected}"));

    fs::remove_file(&path).unwrap();
    assert!(open().starts_with("cannot read DIR/file.safetensors: No such file"));
    fs::create_dir(&path).unwrap();
    assert_eq!(open(), "DIR/file.safetensors: is not a regular file");
    let pickle = message(Safetensors::open(&dir.join("pytorch_model.bin")), dir);
    assert!(
        pickle.starts_with("DIR/pytorch_model.bin: pickled weights are refused"),
        "{pickle}"
    );
}

#[test]
fn a_dtype_that_cannot_be_loaded_is_an_error_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.safetensors");
    let header = concat!(
        r#"{"bool":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},"#,
        r#""eight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[3,5]}}"#
    );
    // The data starts at an odd place, too.
    raw_file(&path, header, &[1, 0, 1, 7, 7]);
    let file = Safetensors::open(&path).unwrap();
    assert_eq!(
        file.tensor("bool").unwrap().to_vec1::<u8>().unwrap(),
        [1, 0, 1]
    );
    assert_eq!(file.info("bool").unwrap().encoding, DType::U8.into());
    assert_eq!(file.info("eight"), None);
    assert_eq!(
        message(file.tensor("eight"), dir.path()),
        "DIR/file.safetensors: tensor `eight` is stored as F8_E4M3, which is not yet supported; convert it to float32, float16 or bfloat16"
    );
    assert_eq!(
        message(file.tensor("nine"), dir.path()),
        "DIR/file.safetensors: tensor `nine` is missing"
    );
}

#[test]
fn an_adapter_folder_of_noise_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("adapter_config.json"),
        r#"{"peft_type": "LORA"}"#,
    )
    .unwrap();
    fs::write(
        dir.path().join("adapter_model.safetensors"),
        "not tensors at all",
    )
    .unwrap();
    assert!(message(PeftFolder::read(dir.path()), dir.path()).contains("it claims a header of"));
}
