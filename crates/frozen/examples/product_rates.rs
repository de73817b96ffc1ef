//! How fast a frozen layer multiplies: `cargo run --release -p lowrank-frozen --example product_rates -- [rows ..]`.
//!
//! For every shape, precision and direction the shortest of many runs, with buffers that were used before. The level is
//! chosen with LOWRANK_SIMD, the number of threads with RAYON_NUM_THREADS.
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use candle_core::{DType, Device, Tensor};
use lowrank_frozen::{Compute, Direction, FrozenLinear};
use lowrank_ops::gemm::Before;
use lowrank_ops::simd::Level;
use std::time::{Duration, Instant};

/// (n_in, n_out) of the layers of a small model.
const SHAPES: [(usize, usize); 5] = [
    (576, 1536),
    (1536, 576),
    (576, 576),
    (576, 192),
    (576, 49152),
];

/// For how long a product is repeated.
const TIME: Duration = Duration::from_millis(400);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<usize> = std::env::args()
        .skip(1)
        .map(|word| word.parse())
        .collect::<Result<_, _>>()?;
    let rows = if rows.is_empty() { vec![1024] } else { rows };
    println!("{:?}, {} threads, GFLOP/s", Level::used(), rayon_threads());
    for rows in rows {
        for (n_in, n_out) in SHAPES {
            let weight: Vec<f32> = (0..n_out * n_in)
                .map(|i| (i % 251) as f32 / 251.0)
                .collect();
            let weight = Tensor::from_vec(weight, (n_out, n_in), &Device::Cpu)?;
            for (held, compute) in [
                (DType::F32, Compute::F32),
                (DType::BF16, Compute::F32),
                (DType::F32, Compute::Bf16),
                (DType::BF16, Compute::Bf16),
            ] {
                let layer = FrozenLinear::new(weight.to_dtype(held)?, None)?.with_compute(compute);
                print!("{rows} x ({n_in}, {n_out}) {held:?} in {compute:?}:");
                for direction in [Direction::Forward, Direction::Backward] {
                    let (inner, width) = match direction {
                        Direction::Forward => (n_in, n_out),
                        Direction::Backward => (n_out, n_in),
                    };
                    let x: Vec<f32> = (0..rows * inner).map(|i| (i % 17) as f32 - 8.0).collect();
                    let mut into = vec![1f32; rows * width];
                    let (mut best, start) = (Duration::MAX, Instant::now());
                    let mut runs = 0;
                    while runs < 3 || start.elapsed() < TIME {
                        let now = Instant::now();
                        layer.product_into(direction, &x, rows, Before::Ignored, &mut into)?;
                        best = best.min(now.elapsed());
                        runs += 1;
                    }
                    let operations = 2.0 * (rows * n_in * n_out) as f64;
                    print!(
                        " {direction:?} {:.0}",
                        operations / best.as_secs_f64() / 1e9
                    );
                }
                println!();
            }
        }
    }
    Ok(())
}

fn rayon_threads() -> usize {
    std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|word| word.parse().ok())
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
}
