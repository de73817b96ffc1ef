//! The GGUF file of SmolLM2 and its dequantised folder are one model, if `cargo xtask fetch` has brought them.

use candle_core::Tensor;
use lowrank::Base;
use lowrank::adapter::{Ask, Batch, Pass, Selection, run};
use lowrank::format::Gguf;
use lowrank::models::Precision;
use lowrank_tests::numbers::max_difference;
use lowrank_tests::place::Place;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The file and the folder, if both are there.
#[expect(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn models() -> Option<(PathBuf, PathBuf)> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let (file, folder) = (
        models.join("SmolLM2-135M-Instruct.gguf"),
        models.join("SmolLM2-135M-Instruct"),
    );
    if !file.exists() || !folder.join("config.json").exists() {
        eprintln!("not run: SmolLM2 is missing, `cargo xtask fetch` brings it");
        return None;
    }
    Some((file, folder))
}

fn open(path: &Path) -> Base {
    Base::open(&path.to_string_lossy(), Precision::AsStored).unwrap()
}

fn logits(base: &Base, ids: &[u32]) -> Tensor {
    let batch = Batch::sequence(ids, 0).unwrap();
    let ask = Ask::Logits((0..ids.len() as u32).collect());
    let mut pass = Pass::evaluation(Selection::none());
    run(base.model.as_ref(), &batch, &ask, None, &mut pass).unwrap()
}

#[test]
fn the_file_is_the_folder() {
    let Some((file, folder)) = models() else {
        return;
    };
    let gguf = Gguf::open(&file).unwrap();
    for (name, value) in gguf.side_files().unwrap() {
        let text = std::fs::read(folder.join(name)).unwrap();
        let expected: Value = serde_json::from_slice(&text).unwrap();
        assert!(value == expected, "{name} differs");
    }

    let (packed, dense) = (open(&file), open(&folder));
    assert_eq!(packed.info, dense.info);
    let text = "The capital of France is Paris, and 1234567 people's dogs don't bark.\n\tÜbung macht den Meister!";
    let special = lowrank::data::Special::Omit;
    let ids = dense.tokenizer().unwrap().encode(text, special).unwrap();
    assert_eq!(
        packed.tokenizer().unwrap().encode(text, special).unwrap(),
        ids
    );
    for ids in [&ids[..], &[1, 504, 3575, 282, 4649, 314][..]] {
        let off = max_difference(&logits(&packed, ids), &logits(&dense, ids)).unwrap();
        assert!(off <= 2e-4, "the logits differ by {off:e}");
    }
}

#[test]
fn the_file_takes_a_fraction_of_the_folders_memory() {
    let Some((file, folder)) = models() else {
        return;
    };
    let place = Place::new();
    place.write(
        "rows.jsonl",
        r#"{"input_ids": [1, 504, 3575, 282], "labels": [1, 504, 3575, 282]}"#,
    );
    let peak = |path: &Path| {
        let path = path.to_string_lossy();
        let arguments = ["eval", "--json", "--data", "rows.jsonl", "--model", &path];
        place.run(&arguments).json()["peak_rss_mb"].as_f64()
    };
    // Where the system says nothing of memory, there is nothing to compare.
    if let (Some(packed), Some(dense)) = (peak(&file), peak(&folder)) {
        assert!(packed < 0.5 * dense, "{packed} MB against {dense} MB");
    }
}
