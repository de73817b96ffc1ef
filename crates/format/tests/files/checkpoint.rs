//! Folders in Hugging Face layout: single files, shards, and what is refused.

use crate::common::{message, ramp};
use candle_core::{DType, Device, Tensor};
use lowrank_format::{Checkpoint, PYTORCH, fingerprint, write_safetensors, write_sharded};
use lowrank_frozen::{TensorInfo, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn model() -> BTreeMap<&'static str, Tensor> {
    BTreeMap::from([
        ("embed.weight", ramp(&[7, 4], DType::F32)),
        ("layer.bias", ramp(&[5], DType::F16)),
        ("layer.weight", ramp(&[5, 4], DType::F32)),
        ("norm.weight", ramp(&[4], DType::F32)),
    ])
}

fn write(dir: &Path, max_shard_bytes: u64) {
    let model = model();
    write_sharded(
        dir,
        model.iter().map(|(name, tensor)| (*name, tensor)),
        max_shard_bytes,
    )
    .unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn check_equals_model(dir: &Path) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let weights: &dyn Weights = &checkpoint;
    let model = model();
    assert_eq!(weights.names(), model.keys().copied().collect::<Vec<_>>());
    assert_eq!(weights.origin(), dir.display().to_string());
    for (name, tensor) in &model {
        let info = TensorInfo {
            shape: tensor.dims().to_vec(),
            encoding: tensor.dtype().into(),
        };
        assert_eq!(weights.info(name), Some(info));
        let values = |tensor: &Tensor| {
            let flat = tensor
                .to_dtype(DType::F64)
                .and_then(|tensor| tensor.flatten_all());
            flat.and_then(|flat| flat.to_vec1::<f64>()).unwrap()
        };
        assert_eq!(values(&weights.tensor(name).unwrap()), values(tensor));
    }
    assert_eq!(weights.info("none"), None);
    let missing = weights.tensor("none").unwrap_err().to_string();
    assert_eq!(
        missing,
        format!("{}: tensor `none` is missing", dir.display())
    );
}

#[test]
fn one_file_or_shards_hold_the_same_model() {
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path(), 1 << 20);
    assert_eq!(names(one.path()), ["model.safetensors"]);
    check_equals_model(one.path());

    // 112 bytes fill a shard alone, then 10 + 80, then 16.
    write(many.path(), 100);
    assert_eq!(
        names(many.path()),
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json",
        ]
    );
    let index = fs::read_to_string(many.path().join("model.safetensors.index.json")).unwrap();
    assert!(index.starts_with("{\n  \"metadata\": {\n    \"total_size\": 218\n  },\n  \"weight_map\": {\n    \"embed.weight\""));
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!(
        index["weight_map"],
        json!({
            "embed.weight": "model-00001-of-00003.safetensors",
            "layer.bias": "model-00002-of-00003.safetensors",
            "layer.weight": "model-00002-of-00003.safetensors",
            "norm.weight": "model-00003-of-00003.safetensors",
        })
    );
    check_equals_model(many.path());

    let print = |dir: &Path| fingerprint(&Checkpoint::open(dir).unwrap()).unwrap();
    assert_eq!(print(one.path()), print(many.path()));
}

#[test]
fn fingerprints_see_names_shapes_dtypes_and_every_value() {
    let print = |name: &str, tensor: &Tensor| {
        let dir = tempfile::tempdir().unwrap();
        write_safetensors(
            &dir.path().join("model.safetensors"),
            [(name, tensor)],
            PYTORCH,
        )
        .unwrap();
        fingerprint(&Checkpoint::open(dir.path()).unwrap()).unwrap()
    };
    // More than one piece of 4 MiB, and the last one short.
    let values: Vec<f32> = (0..1_500_000).map(|i| i as f32).collect();
    let tensor = |values: &[f32], shape| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let base = print("w", &tensor(&values, (1500, 1000)));
    assert_eq!(base.content.len(), 64);
    assert_eq!(base, print("w", &tensor(&values, (1500, 1000))));

    let other_name = print("v", &tensor(&values, (1500, 1000)));
    assert_ne!(base.shape, other_name.shape);
    assert_ne!(base.content, other_name.content);
    let other_shape = print("w", &tensor(&values, (1000, 1500)));
    assert_ne!(base.shape, other_shape.shape);
    assert_ne!(base.content, other_shape.content);
    let integers = tensor(&values, (1500, 1000)).to_dtype(DType::U32).unwrap();
    let other_dtype = print("w", &integers);
    assert_eq!(base.shape, other_dtype.shape);
    assert_ne!(base.content, other_dtype.content);
    // Halves count as the numbers that they are.
    for dtype in [DType::F16, DType::BF16] {
        let small = (tensor(&values, (1500, 1000)) * 1e-2).unwrap();
        let half = small.to_dtype(dtype).unwrap();
        let wide = half.to_dtype(DType::F32).unwrap();
        assert_eq!(print("w", &half), print("w", &wide));
        assert_ne!(base.content, print("w", &half).content);
    }
    for place in [0, 1_048_576, 1_499_999] {
        let mut changed = values.clone();
        changed[place] += 0.5;
        let other_value = print("w", &tensor(&changed, (1500, 1000)));
        assert_eq!(base.shape, other_value.shape);
        assert_ne!(base.content, other_value.content, "element {place}");
    }
}

#[test]
fn the_shape_fingerprint_is_the_documented_hash() {
    // SHA-256 of: 1u64, "w", 2u64, 2u64, 3u64, all little-endian; computed with Python's hashlib.
    // Content: the same, 3u64, "f32", and the SHA-256 of the values.
    let dir = tempfile::tempdir().unwrap();
    let tensor = ramp(&[2, 3], DType::F32);
    write_safetensors(
        &dir.path().join("model.safetensors"),
        [("w", &tensor)],
        PYTORCH,
    )
    .unwrap();
    let print = fingerprint(&Checkpoint::open(dir.path()).unwrap()).unwrap();
    assert_eq!(
        print.shape,
        "e9d95148555c497b4404ab56a2e29108e0e9aea7a557c2b26771d9277641b82b"
    );
    assert_eq!(
        print.content,
        "83d03b40d77f3050272e8270c08da34f698a54611f278e95480f166b834ed222"
    );
}

/// A sharded model whose index is changed by `edit`.
fn check_index(edit: impl FnOnce(&Path, &mut Value), expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 100);
    let path = dir.path().join("model.safetensors.index.json");
    let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(dir.path(), &mut index);
    fs::write(&path, index.to_string()).unwrap();
    let message = message(Checkpoint::open(dir.path()), dir.path());
    assert_eq!(
        message,
        format!("DIR/model.safetensors.index.json: {expected}")
    );
}

#[test]
fn an_index_never_leads_out_of_its_folder() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("x.safetensors");
    fs::write(&target, "x").unwrap();
    for file in [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "a\\b",
    ] {
        check_index(
            |_, index| index["weight_map"]["layer.bias"] = file.into(),
            &format!("`{file}` points outside the folder"),
        );
    }
    #[cfg(unix)]
    check_index(
        |dir, index| {
            std::os::unix::fs::symlink(&target, dir.join("link.safetensors")).unwrap();
            index["weight_map"]["layer.bias"] = "link.safetensors".into();
        },
        "`link.safetensors` points outside the folder",
    );
}

#[test]
fn an_index_that_does_not_fit_its_shards() {
    const SECOND: &str = "model-00002-of-00003.safetensors";
    check_index(
        |dir, _| fs::remove_file(dir.join(SECOND)).unwrap(),
        &format!("tensor `layer.bias` is in `{SECOND}`, which is missing"),
    );
    check_index(
        |_, index| index["weight_map"]["new.weight"] = SECOND.into(),
        &format!("tensor `new.weight` is not in `{SECOND}`"),
    );
    check_index(
        |_, index| {
            index["weight_map"]
                .as_object_mut()
                .unwrap()
                .remove("layer.weight");
        },
        &format!("tensor `layer.weight` of `{SECOND}` is not listed"),
    );
    check_index(
        |dir, _| {
            let tensors = model();
            let tensors =
                ["layer.bias", "layer.weight", "norm.weight"].map(|name| (name, &tensors[name]));
            write_safetensors(&dir.join(SECOND), tensors, PYTORCH).unwrap();
        },
        &format!(
            "tensor `norm.weight` should be in `model-00003-of-00003.safetensors` only, and is also in `{SECOND}`"
        ),
    );
    check_index(
        |_, index| index["weight_map"] = json!({}),
        "`weight_map` lists no tensor",
    );
    check_index(
        |_, index| *index = json!({"metadata": {}}),
        "missing field `weight_map` at line 1 column 15",
    );
}

#[test]
fn what_is_not_a_checkpoint_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let open = |path: &Path| message(Checkpoint::open(path), dir);
    assert_eq!(
        open(dir),
        "DIR: holds neither model.safetensors nor model.safetensors.index.json; expected a folder in Hugging Face layout"
    );
    let pickled = "pickled weights are refused, because reading them can run any code; convert them in Python: `CLASS.from_pretrained(folder).save_pretrained(other_folder, safe_serialization=True)`, where CLASS is what transformers calls the one in `architectures` of config.json";
    fs::write(dir.join("pytorch_model-00001-of-00002.bin"), "pickle").unwrap();
    assert_eq!(
        open(dir),
        format!("DIR/pytorch_model-00001-of-00002.bin: {pickled}")
    );
    for name in ["model.pt", "model.pth", "model.ckpt", "pytorch_model.BIN"] {
        assert_eq!(open(&dir.join(name)), format!("DIR/{name}: {pickled}"));
    }
    assert_eq!(
        open(&dir.join("none")),
        "DIR/none does not exist; expected a folder in Hugging Face layout"
    );
    fs::write(dir.join("file"), "x").unwrap();
    let expected = "DIR/file: is a file; expected a folder in Hugging Face layout";
    assert_eq!(open(&dir.join("file")), expected);
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = Tensor::new(&[[1f32, 2., 3.], [4., f32::NAN, 6.]], &Device::Cpu).unwrap();
    write_safetensors(
        &dir.path().join("model.safetensors"),
        [("w", &tensor)],
        PYTORCH,
    )
    .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let message = checkpoint.tensor("w").unwrap_err().to_string();
    let path = dir.path().join("model.safetensors");
    let expected = format!(
        "{}: tensor `w` holds NaN at element 4; expected finite numbers",
        path.display()
    );
    assert_eq!(message, expected);
}
