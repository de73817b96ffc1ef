//! Training with products in bf16.

use crate::scene::{End, Scene};

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

    let (scene, expected) = half;
    scene.check_killed(&expected, 22, STEPS);
}
