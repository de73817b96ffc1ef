//! The machine's own product rate: the best that our products, and the peer's if it runs, reach on large matrices.

use crate::bench::cell::Request;
use crate::bench::report::{Cell, Line, Measure, Side};
use crate::bench::{count, object, random, word};
use anyhow::Result;
use candle_core::DType;
use lowrank_frozen::{Compute, FrozenLinear};
use lowrank_ops::gemm::{Matrix, matmul};
use serde_json::{Map, Value, json};
use std::time::Instant;

/// Rows and columns of the square product.
const SQUARE: usize = 2048;
/// Tokens, outputs and inputs of the layer.
const LAYER: (usize, usize, usize) = (1024, 1536, 1536);

/// Asks for the rate of products in a precision.
pub fn request(precision: &str, threads: usize, side: Side, repeats: usize) -> Request {
    let who = if side == Side::Ours { "ours" } else { "peer" };
    let layer = [LAYER.0, LAYER.1, LAYER.2];
    Request {
        name: format!("product rate {precision} ({who})"),
        side,
        axes: object([("kind", json!("rate")), ("precision", json!(precision))]),
        settings: object([
            ("square", json!(SQUARE)),
            ("layer", json!(layer)),
            ("repeats", json!(repeats)),
        ]),
        threads,
        once: false,
    }
}

/// The best rate among cells, in operations a second.
pub fn best(cells: &[Cell], precision: &str, threads: usize) -> Option<f64> {
    let of_precision = |cell: &&Cell| {
        cell.axis("kind") == "rate"
            && cell.axis("precision") == precision
            && cell.axes.get("threads") == Some(&threads.into())
    };
    let rates = cells
        .iter()
        .filter(of_precision)
        .filter_map(|cell| cell.max("product_rate"));
    rates.reduce(f64::max).map(|rate| rate * 1e9)
}

/// Measures it in this process.
///
/// # Errors
/// If the request is not understood.
pub fn measure(request: &Map<String, Value>) -> Result<Vec<Line>> {
    let repeats = count(request, "repeats")?;
    let bf16 = word(request, "precision")? == "bf16";
    let (tokens, n_out, n_in) = LAYER;
    let x = random(&[tokens, n_in])?;
    let weight = random(&[n_out, n_in])?;
    let (dtype, compute) = if bf16 {
        (DType::BF16, Compute::Bf16)
    } else {
        (DType::F32, Compute::F32)
    };
    let layer = FrozenLinear::new(weight.to_dtype(dtype)?, None)?.with_compute(compute);
    let mut lines = vec![line(
        "frozen layer",
        2.0 * (tokens * n_out * n_in) as f64,
        repeats,
        || {
            layer.forward(&x)?;
            Ok(())
        },
    )?];
    if !bf16 {
        let a: Vec<f32> = random(&[SQUARE * SQUARE])?.to_vec1()?;
        let mut c = vec![0f32; SQUARE * SQUARE];
        let matrix = Matrix::new(&a, SQUARE, SQUARE)?;
        lines.push(line(
            "square product",
            2.0 * (SQUARE as f64).powi(3),
            repeats,
            || Ok(matmul(matrix, matrix, &mut c)?),
        )?);
    }
    Ok(lines)
}

fn line(
    what: &str,
    flops: f64,
    repeats: usize,
    mut run: impl FnMut() -> Result<()>,
) -> Result<Line> {
    run()?;
    let mut rates = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        run()?;
        rates.push(flops / start.elapsed().as_secs_f64() / 1e9);
    }
    Ok(Line {
        axes: object([("product", json!(what))]),
        measures: vec![Measure::new("product_rate", "GFLOP/s", rates)],
        facts: Map::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_rate_is_that_of_its_precision_and_threads() -> Result<()> {
        let cell = |precision: &str, threads: usize, rates: &[f64]| {
            let request = request(precision, threads, Side::Ours, 3);
            let mut axes = request.axes;
            axes.insert("threads".to_owned(), threads.into());
            Cell {
                name: request.name,
                side: Side::Ours,
                axes,
                rounds: vec![Line {
                    measures: vec![Measure::new("product_rate", "GFLOP/s", rates.to_vec())],
                    ..Line::default()
                }],
                error: None,
            }
        };
        let cells = [
            cell("f32", 2, &[200.0, 250.0]),
            cell("f32", 2, &[225.0]),
            cell("f32", 4, &[500.0]),
            cell("bf16", 2, &[900.0]),
        ];
        assert_eq!(best(&cells, "f32", 2), Some(250e9));
        assert_eq!(best(&cells, "f32", 1), None);
        Ok(())
    }
}
