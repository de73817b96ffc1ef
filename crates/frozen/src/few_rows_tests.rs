use super::{FEW, Held, add_low_rank, forward};
use crate::BlockType;
use crate::Encoding;
use crate::blocks::Decode;
use candle_core::DType;
use half::{bf16, f16};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::simd::Level;
use rayon::ThreadPoolBuilder;
use std::sync::Arc;

fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut stream = Key::new(seed, Purpose::Init).stream();
    (0..count)
        .map(|_| stream.uniform() as f32 * 2.0 - 1.0)
        .collect()
}

/// Bytes of blocks whose halves are ordinary numbers.
fn blocks(block: BlockType, seed: u64, count: usize) -> Vec<u8> {
    let mut stream = Key::new(seed, Purpose::Init).stream();
    let mut bytes: Vec<u8> = (0..count * block.bytes())
        .map(|_| (stream.uniform() * 256.0) as u8)
        .collect();
    for one in bytes.chunks_mut(block.bytes()) {
        let mut half = |at: usize| {
            let value = f16::from_f64(stream.uniform() * 0.2 - 0.1);
            one[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        match block {
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => half(0),
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q8_1 => {
                half(0);
                half(2);
            }
            BlockType::Q4K | BlockType::Q5K => {
                half(0);
                half(2);
            }
            BlockType::Q2K => {
                half(80);
                half(82);
            }
            BlockType::Q3K => half(108),
            BlockType::Q6K => half(208),
            BlockType::Q8K => one[..4].copy_from_slice(&0.03f32.to_le_bytes()),
        }
    }
    bytes
}

/// The outputs at each level and for each number of threads, against sums in f64.
fn check(held: Held<'_>, dense: &[f32], (n_out, n_in): (usize, usize), rows: usize) {
    let x = normal(7 + rows as u64, rows * n_in);
    let all_rows = |level, threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let mut y = vec![f32::NAN; rows * n_out];
        pool.expect("a pool")
            .install(|| forward(level, held, (n_out, n_in), &x, rows, &mut y));
        y
    };
    for (_, level) in Level::WORDS {
        if level > Level::of_machine() {
            eprintln!("not run: this machine has no {level:?}");
            continue;
        }
        let y = all_rows(level, 1);
        if level > Level::Avx512 {
            // The same instructions, and not the portable loop, which sums in another order.
            assert_eq!(y, all_rows(Level::Avx512, 1), "{level:?}");
            continue;
        }
        assert_eq!(y, all_rows(level, 2), "{level:?}");
        for row in 0..rows {
            let x = &x[row * n_in..][..n_in];
            let mut alone = vec![f32::NAN; n_out];
            forward(level, held, (n_out, n_in), x, 1, &mut alone);
            assert_eq!(alone, y[row * n_out..][..n_out], "{level:?} row {row}");
            for (j, got) in alone.iter().enumerate() {
                let products = x.iter().zip(&dense[j * n_in..][..n_in]);
                let products = products.map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                let error = (f64::from(*got) - sum).abs();
                assert!(
                    error <= 1e-6 * size + 1e-30,
                    "{level:?} {n_out}x{n_in}, output {j} of row {row}: {got}, expected {sum}"
                );
            }
        }
    }
}

#[test]
fn single_and_half_weights_of_any_size() {
    for (n_out, n_in) in [(1, 1), (3, 31), (7, 33), (9, 64), (65, 577), (1030, 95)] {
        let dense = normal(3, n_out * n_in);
        let halves: Vec<bf16> = dense.iter().map(|x| bf16::from_f32(*x)).collect();
        let others: Vec<f16> = dense.iter().map(|x| f16::from_f32(*x)).collect();
        let from_bf16: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let from_f16: Vec<f32> = others.iter().map(|x| x.to_f32()).collect();
        for rows in 1..=FEW {
            check(Held::Single(&dense), &dense, (n_out, n_in), rows);
        }
        for rows in [1, 2, 3, 7] {
            let held = Held::Encoded(Encoding::Plain(DType::BF16), &halves);
            check(held, &from_bf16, (n_out, n_in), rows);
            let held = Held::Encoded(Encoding::Plain(DType::F16), &others);
            check(held, &from_f16, (n_out, n_in), rows);
        }
    }
}

#[test]
fn every_type_of_blocks() {
    for block in BlockType::ALL {
        for (n_out, blocks_in_row) in [(7, 3), (133, 1)] {
            let n_in = blocks_in_row * block.numbers();
            let bytes = blocks(block, 11, n_out * blocks_in_row);
            let numbers: Arc<dyn Decode> = block.copy(&bytes);
            let mut dense = vec![0f32; n_out * n_in];
            numbers.decode(0, &mut dense);
            assert!(dense.iter().all(|x| x.is_finite()), "{}", block.name());
            for rows in [1, 3, 8] {
                let held = Held::Encoded(Encoding::Blocks(block), &*numbers);
                check(held, &dense, (n_out, n_in), rows);
            }
        }
    }
}

#[test]
fn a_low_rank_update_of_few_rows() {
    for (rank, n_in, n_out) in [(3, 37, 5), (8, 64, 11), (21, 40, 130)] {
        let (a, b) = (normal(1, rank * n_in), normal(2, n_out * rank));
        for rows in [1, 2, 8] {
            let x = normal(5, rows * n_in);
            for (_, level) in Level::WORDS {
                let before = normal(6, rows * n_out);
                let mut y = before.clone();
                let down = add_low_rank(level, (&x, rows), (&a, &b), 1.7, &mut y);
                let dot = |x: &[f32], y: &[f32]| -> f64 {
                    let pairs = x.iter().zip(y);
                    pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
                };
                for row in 0..rows {
                    let x = &x[row * n_in..][..n_in];
                    let h: Vec<f32> = a.chunks(n_in).map(|a| dot(x, a) as f32).collect();
                    for (got, h) in down[row * rank..].iter().zip(&h) {
                        assert!((got - h).abs() < 1e-5, "{got}, expected {h}");
                    }
                    for j in 0..n_out {
                        let expected = f64::from(before[row * n_out + j])
                            + 1.7 * dot(&h, &b[j * rank..][..rank]);
                        let got = f64::from(y[row * n_out + j]);
                        assert!((got - expected).abs() < 5e-5, "{got}, expected {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_in_and_nothing_out() {
    let mut y = [1f32, 2.0];
    forward(Level::used(), Held::Single(&[]), (2, 0), &[], 1, &mut y);
    assert_eq!(y, [0.0, 0.0]);
    forward(
        Level::used(),
        Held::Single(&[]),
        (0, 3),
        &[1., 2., 3.],
        1,
        &mut [],
    );
}
