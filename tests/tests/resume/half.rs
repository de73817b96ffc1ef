//! Training with products in bf16.

use crate::scene::{End, Scene};
use serde_json::Value;
use std::fs;

const STEPS: u64 = 24;

/// Of every step, or of every evaluation.
fn losses(end: &End, field: &str) -> Vec<f64> {
    let values = end.metrics.iter().filter_map(|line| line.get(field));
    values.map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn bf16_products_train_as_f32_ones_do_and_a_resumed_run_gives_the_same_bytes() {
    let [single, half] = ["f32", "bf16"].map(|compute| {
        let keys = format!("steps = {STEPS}\nsave_every = 9\ncompute = \"{compute}\"");
        let scene = Scene::new(&keys);
        let end = scene.finish(&scene.folder("whole"), &[]);
        (scene, end)
    });
    for field in ["loss", "eval_loss", "grad_norm"] {
        let (single, half) = (losses(&single.1, field), losses(&half.1, field));
        assert_eq!(single.len(), half.len());
        for (at, (single, half)) in single.iter().zip(&half).enumerate() {
            // Gradients differ by more than losses do.
            let tolerance = if field == "grad_norm" { 0.1 } else { 0.02 };
            assert!(half.is_finite(), "{field} {at}: {half}");
            let off = (half / single - 1.0).abs();
            assert!(off < tolerance, "{field} {at}: {half}, in f32 {single}");
        }
        assert_ne!(single, half, "{field}: nothing was rounded");
    }
    let evaluations = losses(&half.1, "eval_loss");
    let moved = evaluations[evaluations.len() - 1] - evaluations[0];
    assert!(moved.abs() > 5e-3, "nothing was trained: {evaluations:?}");

    // What the run would have left if it had been killed at step 22, and that it goes on from the checkpoint of step 18.
    let (scene, expected) = half;
    let folder = scene.folder("whole");
    fs::remove_dir_all(folder.join("adapter")).unwrap();
    fs::remove_dir_all(folder.join("checkpoints/step-000024")).unwrap();
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64();
    let lines = text.split_inclusive('\n');
    let early: String = lines.filter(|line| step(line) <= Some(22)).collect();
    fs::write(folder.join("metrics.jsonl"), early).unwrap();
    let resumed = scene.finish(&folder, &["--resume"]);
    assert!(resumed.adapter == expected.adapter, "adapter/");
    assert_eq!(resumed.metrics, expected.metrics);
    let kept = |end: &End| {
        let files = end.checkpoints.iter();
        files
            .filter(|(name, _)| name.starts_with("step-000024"))
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect::<Vec<_>>()
    };
    assert!(!kept(&expected).is_empty() && kept(&resumed) == kept(&expected));
}
