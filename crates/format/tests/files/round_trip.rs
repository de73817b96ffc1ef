//! What is written is read back, and is what the reference libraries write.

use crate::common::ramp;
use candle_core::{DType, Device, Tensor};
use lowrank_format::{
    Error, PYTORCH, Planned, Safetensors, python_json, read_json_object, write_safetensors,
    write_safetensors_streaming,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn write(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.safetensors");
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_safetensors(&path, tensors, PYTORCH).unwrap();
    std::fs::read(path).unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    tensor.write_bytes(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_python_librarys_file_is_read_and_written_again_byte_for_byte() {
    let expected = BTreeMap::from([
        ("layer.10.weight", ramp(&[2, 3], DType::F32)),
        ("layer.2.weight", ramp(&[3, 2], DType::F32)),
        ("half", ramp(&[5], DType::F16)),
        ("double", ramp(&[2, 2, 2], DType::F64)),
        ("bytes", ramp(&[3], DType::U8)),
        ("index", ramp(&[4], DType::I64)),
        ("count", ramp(&[2], DType::U32)),
        ("scalar", Tensor::new(7.5f32, &Device::Cpu).unwrap()),
        ("empty", ramp(&[0, 4], DType::F32)),
        ("Größe \"x\"", ramp(&[1, 2], DType::F16)),
    ]);
    let path = golden("mixed.safetensors");
    let file = Safetensors::open(&path).unwrap();
    let names: Vec<&str> = expected.keys().copied().collect();
    assert_eq!(file.names(), names);
    assert_eq!(file.metadata()["format"], "pt");
    for (name, tensor) in &expected {
        let read = file.tensor(name).unwrap();
        assert_eq!(
            (read.dims(), read.dtype()),
            (tensor.dims(), tensor.dtype()),
            "{name}"
        );
        assert_eq!(bytes(&read), bytes(tensor), "{name}");
    }
    let owned = expected
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor));
    assert_eq!(write(&owned.collect()), std::fs::read(path).unwrap());
}

#[test]
fn a_configuration_is_written_again_byte_for_byte() {
    let path = golden("config.json");
    let mut config = read_json_object(&path).unwrap();
    config.reverse_keys();
    let text = python_json(&config.into());
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
}

trait ReverseKeys {
    fn reverse_keys(&mut self);
}

impl ReverseKeys for serde_json::Map<String, serde_json::Value> {
    fn reverse_keys(&mut self) {
        *self = std::mem::take(self).into_iter().rev().collect();
    }
}

#[test]
fn views_are_written_row_major() {
    let tensor = ramp(&[3, 5], DType::F32);
    let view = tensor.t().unwrap().narrow(0, 1, 3).unwrap();
    let copy = view.force_contiguous().unwrap();
    let write_one = |tensor: &Tensor| write(&BTreeMap::from([("w".to_owned(), tensor.clone())]));
    assert_eq!(write_one(&view), write_one(&copy));
}

#[test]
fn names_that_cannot_be_written_are_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.safetensors");
    let tensor = ramp(&[2, 3], DType::F32);
    let check = |names: [&str; 2], expected: &str| {
        let error = write_safetensors(&path, names.map(|name| (name, &tensor)), PYTORCH);
        assert_eq!(error.unwrap_err().to_string(), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    };
    check(["a", "a"], "tensor `a` is given twice");
    check(
        ["a", "__metadata__"],
        "tensor `__metadata__` has a name that safetensors files use for their own text",
    );
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![
        DType::U8,
        DType::U32,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::BF16,
        DType::F16,
        DType::F32,
        DType::F64,
    ])
}

/// A tensor of any bytes: NaNs keep their payload.
fn tensor() -> impl Strategy<Value = Tensor> {
    (dtype(), prop::collection::vec(0usize..5, 0..4)).prop_flat_map(|(dtype, shape)| {
        let size = shape.iter().product::<usize>() * dtype.size_in_bytes();
        prop::collection::vec(any::<u8>(), size).prop_map(move |bytes| {
            Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu).unwrap()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_tensors_survive(tensors in prop::collection::btree_map(".{0,12}", tensor(), 0..7)) {
        let written = write(&tensors);

        // The reference implementation reads our file, and writes the same.
        let reference = SafeTensors::deserialize(&written).unwrap();
        prop_assert_eq!(reference.len(), tensors.len());
        let metadata = PYTORCH.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let again = safetensors::serialize(reference.tensors(), Some(metadata)).unwrap();
        prop_assert_eq!(&again, &written);

        // We read it, and write the same.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.safetensors");
        std::fs::write(&path, &written).unwrap();
        let file = Safetensors::open(&path).unwrap();
        let mut read = BTreeMap::new();
        for name in file.names() {
            let tensor = file.tensor(name).unwrap();
            prop_assert_eq!(tensor.dims(), tensors[name].dims());
            prop_assert_eq!(tensor.dtype(), tensors[name].dtype());
            prop_assert_eq!(bytes(&tensor), bytes(&tensors[name]));
            read.insert(name.to_owned(), tensor);
        }
        prop_assert_eq!(read.len(), tensors.len());
        prop_assert_eq!(write(&read), written);
    }
}

#[test]
fn a_stream_of_tensors_gives_the_same_bytes_and_stops_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [
        ("logits.2", ramp(&[3, 5], DType::F32)),
        ("logits.10", ramp(&[2, 5], DType::F32)),
        ("half", ramp(&[4, 3], DType::F16)),
    ];
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|(name, tensor)| Planned {
            name: (*name).to_owned(),
            dtype: tensor.dtype(),
            shape: tensor.dims().to_vec(),
        })
        .collect();
    let path = dir.path().join("stream.safetensors");
    let mut asked = Vec::new();
    write_safetensors_streaming(&path, &planned, PYTORCH, |i| {
        asked.push(i);
        Ok::<_, Error>(tensors[i].1.clone())
    })
    .unwrap();
    assert_eq!(asked, [1, 0, 2]);
    let whole = tensors
        .iter()
        .map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
    let whole = write(&whole.collect());
    assert_eq!(std::fs::read(&path).unwrap(), whole);

    let refused = write_safetensors_streaming(&path, &planned, PYTORCH, |_| {
        Ok::<_, Error>(tensors[2].1.clone())
    });
    assert_eq!(
        refused.unwrap_err().to_string(),
        "tensor `logits.10` is not of the dtype and shape that were planned"
    );
    let left: Vec<_> = dir.path().read_dir().unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
}

#[test]
fn an_embedded_file_is_read_as_one_on_disk() {
    let tensors = BTreeMap::from([
        ("a".to_owned(), ramp(&[3, 5], DType::BF16)),
        ("b".to_owned(), ramp(&[7], DType::F32)),
    ]);
    let bytes: &'static [u8] = write(&tensors).leak();
    let file = Safetensors::embedded(bytes, "small").unwrap();
    assert_eq!(file.names(), ["a", "b"]);
    for (name, tensor) in &tensors {
        let read = file.tensor(name).unwrap();
        assert_eq!((read.dtype(), read.dims()), (tensor.dtype(), tensor.dims()));
        assert_eq!(self::bytes(&read), self::bytes(tensor));
    }
    for cut in [0, 7, 40, bytes.len() - 1] {
        let message = Safetensors::embedded(&bytes[..cut], "small")
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("small: not a valid safetensors file: "),
            "{message}"
        );
    }
}
