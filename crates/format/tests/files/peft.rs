//! Adapter folders: what is written is read back, in PEFT's names, and what is wrong is named.

use crate::common::{message, ramp};
use candle_core::{DType, Device, Tensor};
use lowrank_format::{
    AtomicFolder, Existing, Fingerprint, LowrankJson, PYTORCH, PeftFolder, Safetensors,
    write_safetensors,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const A: &str = "model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "model.layers.0.self_attn.q_proj.lora_B.weight";

fn tensors() -> BTreeMap<&'static str, Tensor> {
    BTreeMap::from([
        (A, ramp(&[3, 5], DType::F32)),
        (B, ramp(&[7, 3], DType::BF16)),
        ("score.weight", ramp(&[2, 7], DType::F16)),
    ])
}

fn config() -> Map<String, Value> {
    let config =
        json!({"r": 3, "peft_type": "LORA", "lora_alpha": 5, "base_model_name_or_path": "tiny"});
    config.as_object().unwrap().clone()
}

fn lowrank() -> LowrankJson {
    let base = Fingerprint {
        shape: "12ab".to_owned(),
        content: "34cd".to_owned(),
    };
    LowrankJson::new("lora", &base)
}

fn write(dir: &Path, tensors: &BTreeMap<&str, Tensor>) -> lowrank_format::Result<()> {
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
    PeftFolder::write(dir, &config(), tensors, &lowrank(), None)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor
        .to_dtype(DType::F32)
        .and_then(|tensor| tensor.flatten_all());
    flat.and_then(|flat| flat.to_vec1()).unwrap()
}

fn check_equal(read: &BTreeMap<String, Tensor>, expected: &BTreeMap<&str, Tensor>) {
    assert!(read.keys().eq(expected.keys()), "{:?}", read.keys());
    for (name, tensor) in expected {
        assert_eq!(read[*name].dtype(), tensor.dtype(), "{name}");
        assert_eq!(read[*name].dims(), tensor.dims(), "{name}");
        assert_eq!(values(&read[*name]), values(tensor), "{name}");
    }
}

#[test]
fn a_folder_survives_reading_and_writing_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let folder = AtomicFolder::create(&dir.path().join("adapter"), Existing::Refuse).unwrap();
    write(folder.path(), &tensors()).unwrap();
    let first = folder.commit().unwrap();

    let stored = Safetensors::open(&first.join("adapter_model.safetensors")).unwrap();
    let names: Vec<String> = tensors()
        .keys()
        .map(|name| format!("base_model.model.{name}"))
        .collect();
    assert_eq!(stored.names(), names);
    assert_eq!(stored.metadata()["format"], "pt");
    assert_eq!(
        fs::read_to_string(first.join("adapter_config.json")).unwrap(),
        "{\n  \"base_model_name_or_path\": \"tiny\",\n  \"lora_alpha\": 5,\n  \"peft_type\": \"LORA\",\n  \"r\": 3\n}"
    );
    assert_eq!(
        fs::read_to_string(first.join("lowrank.json")).unwrap(),
        "{\n  \"base_content\": \"34cd\",\n  \"base_shape\": \"12ab\",\n  \"family\": \"lora\",\n  \"version\": 1\n}\n"
    );
    let card = fs::read_to_string(first.join("README.md")).unwrap();
    assert!(card.contains("50 parameters in 3 tensors"), "{card}");

    let read = PeftFolder::read(&first).unwrap();
    assert_eq!(read.peft_type, "LORA");
    assert_eq!(read.lowrank, Some(lowrank()));
    check_equal(&read.tensors, &tensors());

    let second = dir.path().join("second");
    fs::create_dir(&second).unwrap();
    let tensors = read
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor));
    PeftFolder::write(&second, &read.config, tensors, &lowrank(), None).unwrap();
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "lowrank.json",
        "README.md",
    ] {
        assert_eq!(
            fs::read(first.join(name)).unwrap(),
            fs::read(second.join(name)).unwrap(),
            "{name}"
        );
    }
}

/// A folder whose tensors have these names.
fn folder_of(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("adapter_config.json"),
        r#"{"peft_type": "LORA"}"#,
    )
    .unwrap();
    let tensors: Vec<Tensor> = (0..names.len())
        .map(|i| ramp(&[2, 3 + i], DType::F32))
        .collect();
    let named = names.iter().copied().zip(&tensors);
    write_safetensors(
        &dir.path().join("adapter_model.safetensors"),
        named,
        PYTORCH,
    )
    .unwrap();
    dir
}

#[test]
fn other_spellings_of_the_names_are_read() {
    let check = |names: &[&str], expected: &[&str]| {
        let dir = folder_of(names);
        let read = PeftFolder::read(dir.path()).unwrap();
        assert_eq!(read.lowrank, None);
        assert!(
            read.tensors.keys().eq(expected),
            "{:?}",
            read.tensors.keys()
        );
        for (i, name) in expected.iter().enumerate() {
            assert_eq!(read.tensors[*name].dims(), [2, 3 + i], "{name}");
        }
    };
    check(
        &["m.q.lora_A.weight", "m.q.lora_B.weight"],
        &["m.q.lora_A.weight", "m.q.lora_B.weight"],
    );
    check(
        &[
            "base_model.model.m.q.lora_A.q.weight",
            "base_model.model.m.q.lora_B.q.weight",
        ],
        &["m.q.lora_A.weight", "m.q.lora_B.weight"],
    );
    check(
        &[
            "base_model.model.m.lora_A.default.weight",
            "base_model.model.m.lora_magnitude_vector.default.weight",
            "base_model.model.score.modules_to_save.default.weight",
        ],
        &["m.lora_A.weight", "m.lora_magnitude_vector", "score.weight"],
    );
}

#[test]
fn names_that_collide_or_disagree_are_refused() {
    let check = |names: &[&str], expected: &str| {
        let dir = folder_of(names);
        let message = message(PeftFolder::read(dir.path()), dir.path());
        assert_eq!(
            message,
            format!("DIR/adapter_model.safetensors: {expected}")
        );
    };
    check(
        &["m.lora_A.weight", "base_model.model.m.lora_A.weight"],
        "two tensors are named `m.lora_A.weight`, one of them `m.lora_A.weight`",
    );
    check(
        &["m.lora_A.one.weight", "m.lora_B.two.weight"],
        "`m.lora_A.one.weight` and `m.lora_B.two.weight` name different adapters; expected one",
    );
}

#[test]
fn folders_that_are_not_adapters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let read = || message(PeftFolder::read(dir), dir);
    let config = |text: &str| fs::write(dir.join("adapter_config.json"), text).unwrap();

    assert_eq!(
        read(),
        "DIR: holds no adapter_config.json; expected an adapter folder in PEFT's layout"
    );
    config("{\n  \"r\": 8,\n  \"peft_type\" \"LORA\"\n}");
    assert_eq!(
        read(),
        "DIR/adapter_config.json: expected `:` at line 3 column 15"
    );
    config("[8]");
    assert_eq!(
        read(),
        "DIR/adapter_config.json: expected a JSON object, found an array"
    );
    config("{\"r\": 8}");
    assert_eq!(
        read(),
        "DIR/adapter_config.json: `peft_type` is missing; expected a string such as \"LORA\""
    );
    config("{\"peft_type\": 7}");
    assert_eq!(
        read(),
        "DIR/adapter_config.json: `peft_type` is 7; expected a string such as \"LORA\""
    );
    config("{\"peft_type\": \"LORA\"}");
    assert_eq!(
        read(),
        "DIR: holds no adapter_model.safetensors; expected an adapter folder in PEFT's layout"
    );
    let pickled = "pickled weights are refused, because reading them can run any code; convert them in Python: `PeftModel.from_pretrained(base, folder).save_pretrained(folder, safe_serialization=True)`";
    fs::write(dir.join("adapter_model.bin"), "pickle").unwrap();
    assert_eq!(read(), format!("DIR/adapter_model.bin: {pickled}"));
    assert_eq!(
        message(PeftFolder::read(&dir.join("none")), dir),
        "DIR/none does not exist; expected an adapter folder in PEFT's layout"
    );
}

#[test]
fn numbers_that_are_not_finite_are_neither_read_nor_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("adapter_config.json"),
        r#"{"peft_type": "LORA"}"#,
    )
    .unwrap();
    let bad = Tensor::new(&[[1f32, 2.], [f32::INFINITY, 4.], [5., 6.]], &Device::Cpu).unwrap();
    let stored = format!("base_model.model.{A}");
    let path = dir.path().join("adapter_model.safetensors");
    write_safetensors(&path, [(stored.as_str(), &bad)], PYTORCH).unwrap();
    assert_eq!(
        message(PeftFolder::read(dir.path()), dir.path()),
        format!(
            "DIR/adapter_model.safetensors: tensor `{stored}` holds inf at element 2; expected finite numbers"
        )
    );

    let empty = tempfile::tempdir().unwrap();
    let mut tensors = tensors();
    tensors.insert(B, bad);
    assert_eq!(
        message(write(empty.path(), &tensors), empty.path()),
        format!("DIR: tensor `{B}` holds inf at element 2; expected finite numbers")
    );
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn a_later_version_of_lowrank_json_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lowrank.json");
    let read = || message(LowrankJson::read(dir.path()), dir.path());
    fs::write(&path, r#"{"version": 2, "novelty": true}"#).unwrap();
    assert_eq!(
        read(),
        "DIR/lowrank.json: `version` is 2, and this release knows 1 only"
    );
    fs::write(&path, "{}").unwrap();
    assert_eq!(
        read(),
        "DIR/lowrank.json: `version` is null, and this release knows 1 only"
    );
    fs::write(
        &path,
        r#"{"version": 1, "family": "lora", "base_shape": "x"}"#,
    )
    .unwrap();
    assert_eq!(read(), "DIR/lowrank.json: missing field `base_content`");
}
