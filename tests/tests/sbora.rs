//! SBoRA by the binary: a merge leaves what no index names as it was, in the file, and QSBoRA trains beside four bits.

use candle_core::{DType, Tensor};
use lowrank_tests::binary;
use lowrank_tests::place::Place;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Four steps of an example, and the adapter's folder.
fn train(place: &Place, name: &str, more: &[&str]) -> String {
    let run = format!("docs/examples/{name}.toml");
    let output = format!("output.dir={}", place.path("run").display());
    let set = [
        &output,
        "data.eval=[]",
        "train.steps=4",
        "train.batch_size=2",
    ];
    let set = set.iter().chain(more).flat_map(|key| ["--set", key]);
    let arguments: Vec<&str> = ["train", &run].into_iter().chain(set).collect();
    drop(binary::run(&root(), &arguments).ok());
    place.path("run/adapter").display().to_string()
}

/// The bits of every number; f32 holds those of bf16.
fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor
        .flatten_all()
        .and_then(|flat| flat.to_dtype(DType::F32));
    let numbers = flat.and_then(|flat| flat.to_vec1::<f32>());
    let numbers = numbers.expect("a tensor of numbers");
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_merged_file_differs_where_indices_say_alone() {
    for (variant, axis) in [("fa", 1), ("fb", 0)] {
        let place = Place::new();
        let variant = format!("adapter.variant={variant}");
        let adapter = train(&place, "sbora", &[&variant, "train.learning_rate=0.5"]);
        let out = place.path("merged").display().to_string();
        let merge = ["merge", "--model", "tiny", "--adapter", &adapter, "--out"];
        let merge: Vec<&str> = merge.into_iter().chain([&*out, "--json"]).collect();
        assert_eq!(binary::run(&root(), &merge).json()["exact"], true);

        let base = root().join("crates/models/tiny/model.safetensors");
        let base = place.tensors(&base.display().to_string());
        let merged = place.tensors("merged/model.safetensors");
        let saved = place.tensors("run/adapter/adapter_model.safetensors");
        assert_eq!(base.len(), merged.len());
        let mut adapted = 0;
        for (name, before) in &base {
            let path = name.trim_end_matches(".weight");
            let indices = saved.get(&format!("base_model.model.{path}.sbora_idx"));
            let after = &merged[name];
            assert_eq!(
                (before.dims(), before.dtype()),
                (after.dims(), after.dtype())
            );
            let Some(indices) = indices else {
                assert!(bits(before) == bits(after), "{name}");
                continue;
            };
            adapted += 1;
            let indices: Vec<u32> = indices.to_vec1().expect("indices");
            assert_eq!(indices.len(), 16);
            let columns = before.dims()[1];
            let mut changed = 0;
            for (at, (before, after)) in bits(before).iter().zip(bits(after)).enumerate() {
                let place = [at / columns, at % columns][axis] as u32;
                assert!(indices.contains(&place) || *before == after, "{name}, {at}");
                changed += usize::from(*before != after);
            }
            assert!(changed > 0, "{name}");
        }
        assert_eq!(adapted, 28);
    }
}

/// Sixteen indices a module are in the file, and are not trained; the base is held in four bits.
#[test]
fn indices_are_no_trained_parameters() {
    let place = Place::new();
    let adapter = train(&place, "qsbora", &[]);
    let found = binary::run(&root(), &["inspect", &adapter, "--json"]).json();
    let number = |key: &str| found[key].as_u64().unwrap_or_default();
    let sites = found["sites"].as_array().map_or(0, Vec::len);
    let indices = number("file_parameters") - number("trainable_parameters");
    assert_eq!((sites, indices), (28, 16 * 28));
    let plan = ["plan", "docs/examples/qsbora.toml", "--json"];
    let plan = binary::run(&root(), &plan).json();
    assert_eq!(plan["trainable_parameters"], found["trainable_parameters"]);
    let losses = place.json_lines("run/metrics.jsonl");
    assert!(
        losses
            .iter()
            .all(|line| line["loss"].as_f64().is_some_and(f64::is_finite))
    );
}
