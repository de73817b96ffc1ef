//! Matrices that bitsandbytes saved in NF4; golden/prequantised.py made the folders.

use candle_core::{DType, Device, Tensor};
use lowrank_format::{Checkpoint, fingerprint, write_safetensors};
use lowrank_frozen::{Encoding, TensorInfo, Weights};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STATE: &str = "quant_state.bitsandbytes__nf4";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn golden(case: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/prequantised");
    folder.join(case)
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let read: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    read.into_iter().collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn numbers_are_those_of_bitsandbytes() {
    for (case, double, matrices, dims) in [
        ("double", true, 7, (72, 230)),
        ("single", false, 12, (21, 26)),
        ("storage", true, 7, (24, 26)),
    ] {
        let checkpoint = Checkpoint::open(&golden(case)).unwrap();
        let encoding = Encoding::Nf4 { double };
        let expected = TensorInfo {
            shape: vec![dims.0, dims.1],
            encoding,
        };
        assert_eq!(checkpoint.info(DOWN), Some(expected), "{case}");
        let names = checkpoint.names();
        assert!(
            !names
                .iter()
                .any(|name| name.contains("quant") || name.contains("absmax"))
        );
        let held = names.iter().filter(|name| {
            let info = checkpoint.info(name).unwrap();
            let shown = info.encoding == encoding;
            let plain = matches!(info.encoding, Encoding::Plain(DType::F32 | DType::BF16));
            assert!(shown || plain, "{case}: {name}");
            shown
        });
        assert_eq!(held.count(), matrices, "{case}");
        // What transformers was told to leave out.
        let up = checkpoint
            .info("model.layers.0.mlp.up_proj.weight")
            .unwrap();
        assert_eq!(up.encoding == encoding, case != "single");

        let mut compared = 0;
        for (name, expected) in tensors(&golden(case).join("expected.safetensors")) {
            let Some(name) = name.strip_prefix("dense.") else {
                continue;
            };
            let stored = checkpoint.stored(name).unwrap();
            assert_eq!(stored.encoding(), encoding);
            assert_eq!(bits(&stored.to_dense().unwrap()), bits(&expected), "{name}");
            assert_eq!(bits(&checkpoint.tensor(name).unwrap()), bits(&expected));
            compared += 1;
        }
        assert!(compared >= 2, "{case}");
    }
}

#[test]
fn a_folder_in_nf4_has_the_fingerprint_of_its_numbers() {
    let quantised = Checkpoint::open(&golden("single")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dense: BTreeMap<&str, Tensor> = quantised
        .names()
        .into_iter()
        .map(|name| (name, quantised.tensor(name).unwrap()))
        .collect();
    let tensors = dense.iter().map(|(name, tensor)| (*name, tensor));
    write_safetensors(&dir.path().join("model.safetensors"), tensors, &[]).unwrap();
    let dense = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        fingerprint(&dense).unwrap(),
        fingerprint(&quantised).unwrap()
    );
}

/// The message that refuses `case` after a change of its tensors.
fn refused(case: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> String {
    let dir = changed(case, change);
    crate::common::message(Checkpoint::open(dir.path()), dir.path())
}

fn changed(case: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> TempDir {
    let mut tensors = tensors(&golden(case).join("model.safetensors"));
    change(&mut tensors);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_safetensors(&path, tensors, &[]).unwrap();
    dir
}

fn bytes(text: &[u8]) -> Tensor {
    Tensor::from_slice(text, text.len(), &Device::Cpu).unwrap()
}

/// The message after a change of what the state of one matrix says.
fn refused_state(field: &str, value: &Value) -> String {
    refused("double", |tensors| {
        let state = tensors.get_mut(&format!("{DOWN}.{STATE}")).unwrap();
        let mut object: Value = serde_json::from_slice(&state.to_vec1::<u8>().unwrap()).unwrap();
        object[field] = value.clone();
        *state = bytes(object.to_string().as_bytes());
    })
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let file = "DIR/model.safetensors: tensor";
    for part in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        let name = format!("{DOWN}.{part}");
        let without = refused("double", |tensors| drop(tensors.remove(&name).unwrap()));
        assert_eq!(without, format!("{file} `{name}` is missing"));
        let short = refused("double", |tensors| {
            let tensor = tensors.get_mut(&name).unwrap();
            let count = tensor.dims()[0] - 1;
            *tensor = tensor.narrow(0, 0, count).unwrap().contiguous().unwrap();
        });
        let expected = match part {
            "absmax" => "U8 [258]; expected 259 of U8",
            "quant_map" => "F32 [15]; expected 16 of F32",
            "nested_absmax" => "F32 [1]; expected 2 of F32",
            _ => "F32 [255]; expected 256 of F32",
        };
        assert_eq!(short, format!("{file} `{name}` is {expected}"));
    }
    let without = refused("double", |tensors| drop(tensors.remove(DOWN).unwrap()));
    assert_eq!(without, format!("{file} `{DOWN}` is missing"));
    let short = refused("double", |tensors| {
        tensors.insert(DOWN.into(), bytes(&[7; 8279]));
    });
    let expected = "has 8279 bytes; expected 8280, four bits for each of 72 x 230 numbers";
    assert_eq!(short, format!("{file} `{DOWN}` {expected}"));
    let other = refused("single", |tensors| {
        let name = format!("{DOWN}.absmax");
        let doubled = tensors[&name].to_dtype(DType::F16).unwrap();
        tensors.insert(name, doubled);
    });
    assert_eq!(
        other,
        format!("{file} `{DOWN}.absmax` is F16 [9]; expected 9 of F32")
    );
    let values = refused("double", |tensors| {
        let map = tensors.get_mut(&format!("{DOWN}.quant_map")).unwrap();
        *map = (&*map * 0.5).unwrap();
    });
    assert_eq!(
        values,
        format!("{file} `{DOWN}.quant_map` holds other values than those of NF4")
    );
    let orphan = refused("double", |tensors| {
        tensors.remove(&format!("{DOWN}.{STATE}")).unwrap();
    });
    assert_eq!(
        orphan,
        format!(
            "{file} `{DOWN}.absmax` belongs to no matrix; expected `{DOWN}.{STATE}` to say that it does"
        )
    );
}

#[test]
fn states_that_make_no_sense_are_refused_by_name() {
    for (field, value, expected) in [
        ("quant_type", json!("fp4"), "fp4; expected nf4"),
        ("blocksize", json!(128), "128; expected 64"),
        (
            "shape",
            json!([72, 230, 1]),
            "[72, 230, 1]; expected the rows and columns of a matrix",
        ),
        (
            "shape",
            json!([u64::MAX, 4]),
            "[18446744073709551615, 4]; expected the rows and columns of a matrix",
        ),
        ("nested_blocksize", json!(64), "64; expected 256"),
        (
            "nested_offset",
            json!(1e300),
            "inf; expected a finite number",
        ),
    ] {
        assert_eq!(
            refused_state(field, &value),
            format!(
                "DIR/model.safetensors: tensor `{DOWN}.{STATE}` says that `{field}` is {expected}"
            )
        );
    }
    // Of another shape, the parts have other sizes.
    let wrong = refused_state("shape", &json!([72, 231]));
    let expected = "has 8280 bytes; expected 8316, four bits for each of 72 x 231 numbers";
    assert!(wrong.ends_with(expected), "{wrong}");
    // A state without an offset is that of scales that are not quantised.
    let single = refused_state("nested_offset", &Value::Null);
    assert!(
        single.ends_with("absmax` is U8 [259]; expected 259 of F32"),
        "{single}"
    );
    for text in ["", "[]", "{\"quant_type\": \"nf4\"", "{\"blocksize\": NaN}"] {
        let message = refused("single", |tensors| {
            tensors.insert(format!("{DOWN}.{STATE}"), bytes(text.as_bytes()));
        });
        let start =
            format!("DIR/model.safetensors: tensor `{DOWN}.{STATE}` is not what it should be: ");
        assert!(message.starts_with(&start), "{message}");
    }
}

#[test]
fn other_types_of_bitsandbytes_are_not_yet_supported() {
    let fp4 = refused("single", |tensors| {
        let state = tensors.remove(&format!("{DOWN}.{STATE}")).unwrap();
        tensors.insert(format!("{DOWN}.quant_state.bitsandbytes__fp4"), state);
    });
    let says = |kind: &str| {
        format!(
            "DIR/model.safetensors: tensor `{DOWN}` is stored as {kind} of bitsandbytes, which is not yet supported; \
             convert it to float32, float16 or bfloat16"
        )
    };
    assert_eq!(fp4, says("fp4"));
    let int8 = refused("single", |tensors| {
        let scales = Tensor::ones(21, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(DOWN.replace(".weight", ".SCB"), scales);
    });
    assert_eq!(int8, says("int8"));
}

#[test]
fn scales_that_are_not_finite_are_found_when_a_matrix_is_read() {
    let dir = changed("single", |tensors| {
        let name = format!("{DOWN}.absmax");
        let bad = [1.0, 2.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        tensors.insert(name, Tensor::new(&bad, &Device::Cpu).unwrap());
    });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!checkpoint.stored(DOWN).unwrap().all_finite().unwrap());
    let message = checkpoint.tensor(DOWN).unwrap_err().to_string();
    assert!(
        message.contains(&format!("tensor `{DOWN}` holds NaN at element 1")),
        "{message}"
    );
}

#[test]
fn parts_may_lie_in_several_files() {
    let all = tensors(&golden("double").join("model.safetensors"));
    let dir = tempfile::tempdir().unwrap();
    let mut map = BTreeMap::new();
    for number in 0..2 {
        let shard = format!("model-{number}.safetensors");
        let part = all.iter().enumerate();
        let part = part.filter(|(at, _)| at % 2 == number);
        let part: Vec<_> = part
            .map(|(_, (name, tensor))| (name.as_str(), tensor))
            .collect();
        map.extend(
            part.iter()
                .map(|(name, _)| ((*name).to_owned(), shard.clone())),
        );
        write_safetensors(&dir.path().join(shard), part, &[]).unwrap();
    }
    let index = json!({"weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let (sharded, whole) = (
        Checkpoint::open(dir.path()).unwrap(),
        Checkpoint::open(&golden("double")).unwrap(),
    );
    assert_eq!(sharded.names(), whole.names());
    assert_eq!(fingerprint(&sharded).unwrap(), fingerprint(&whole).unwrap());
}
