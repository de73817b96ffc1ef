//! Every kernel at every level against sums in f64.

use super::{Compute, Direction, Numbers, Operand, Update, Weights, product};
use crate::BlockType;
use half::{bf16, f16};
use lowrank_ops::gemm::{Before, Matrix};
use lowrank_ops::simd::Level;

/// Numbers in (-1, 1) that depend on nothing but the seed.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn levels() -> impl Iterator<Item = Level> {
    let levels = Level::WORDS.into_iter().map(|(_, level)| level);
    levels.filter(|level| *level <= Level::of_machine())
}

/// A product in f64, and the sum of its terms' sizes.
#[derive(Clone, Copy)]
struct Case<'a> {
    direction: Direction,
    compute: Compute,
    n_out: usize,
    n_in: usize,
    weight: &'a [f32],
    x: &'a [f32],
    rows: usize,
    update: Option<(&'a [f32], &'a [f32], usize)>,
    before: Option<&'a [f32]>,
}

impl Case<'_> {
    fn dims(&self) -> (usize, usize) {
        match self.direction {
            Direction::Forward => (self.n_in, self.n_out),
            Direction::Backward => (self.n_out, self.n_in),
        }
    }

    fn reference(&self) -> Vec<(f64, f64)> {
        let (inner, width) = self.dims();
        let seen = |x: f32| match self.compute {
            Compute::F32 => f64::from(x),
            Compute::Bf16 => bf16::from_f32(x).to_f64(),
        };
        let weight: Vec<f64> = self.weight.iter().map(|w| seen(*w)).collect();
        let mut all = Vec::new();
        for row in 0..self.rows {
            for column in 0..width {
                let mut sums = (0f64, 0f64);
                let mut add = |term: f64| {
                    sums.0 += term;
                    sums.1 += term.abs();
                };
                for k in 0..inner {
                    let w = match self.direction {
                        Direction::Forward => weight[column * self.n_in + k],
                        Direction::Backward => weight[k * self.n_in + column],
                    };
                    add(seen(self.x[row * inner + k]) * w);
                }
                if let Some((h, v, rank)) = self.update {
                    for j in 0..rank {
                        // v is given as its transpose `[columns, rank]`.
                        add(f64::from(h[row * rank + j]) * f64::from(v[column * rank + j]));
                    }
                }
                if let Some(before) = self.before {
                    add(f64::from(before[row * width + column]));
                }
                all.push(sums);
            }
        }
        all
    }

    fn ours(&self, level: Level, numbers: Numbers<'_>) -> Vec<f32> {
        let (_, width) = self.dims();
        let operand = Operand {
            weights: Weights::new(numbers, (self.n_out, self.n_in)),
            direction: self.direction,
            compute: self.compute,
            level,
        };
        // What is ignored may be anything.
        let mut into = vec![f32::NAN; self.rows * width];
        let mut before = Before::Ignored;
        if let Some(numbers) = self.before {
            into.copy_from_slice(numbers);
            before = Before::Added;
        }
        let update = self.update.map(|(h, v, rank)| Update {
            h: Matrix::new(h, self.rows, rank).unwrap(),
            v: Matrix::new(v, width, rank).unwrap().transposed(),
        });
        product(operand, self.x, self.rows, update, before, &mut into).unwrap();
        into
    }

    fn check(&self, reference: &[(f64, f64)], level: Level, numbers: Numbers<'_>) {
        let ours = self.ours(level, numbers);
        let (inner, width) = self.dims();
        for (i, (ours, (sum, size))) in ours.iter().zip(reference).enumerate() {
            let error = (f64::from(*ours) - sum).abs();
            assert!(
                error <= 2e-6 * size + 1e-30,
                "{level:?} {:?} {:?}: row {} column {} of {} x {inner} x {width}: {ours}, expected {sum} of {size}",
                self.compute,
                self.direction,
                i / width,
                i % width,
                self.rows,
            );
        }
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];
const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// Calls `check` with products of odd sizes, with and without update and what was there before.
fn cases(sizes: &[(usize, usize, usize)], weight: &[f32], check: impl Fn(Case<'_>)) {
    for (i, (rows, n_out, n_in)) in sizes.iter().copied().enumerate() {
        for direction in DIRECTIONS {
            let (inner, width) = match direction {
                Direction::Forward => (n_in, n_out),
                Direction::Backward => (n_out, n_in),
            };
            let rank = 5;
            let x = random(2 + i as u64, rows * inner);
            let (h, v) = (random(3, rows * rank), random(4, width * rank));
            let before = random(5, rows * width);
            for compute in COMPUTES {
                for (with_update, with_before) in [(false, false), (true, false), (true, true)] {
                    check(Case {
                        direction,
                        compute,
                        n_out,
                        n_in,
                        weight: &weight[..n_out * n_in],
                        x: &x,
                        rows,
                        update: with_update.then_some((&h, &v, rank)),
                        before: with_before.then_some(&before),
                    });
                }
            }
        }
    }
}

#[test]
fn every_level_computes_odd_sizes() {
    let sizes = [
        (1, 3, 7),
        (3, 33, 17),
        (17, 50, 65),
        (33, 97, 31),
        (65, 16, 129),
        (9, 1, 1),
        (2, 130, 2),
        (5, 48, 32),
        (0, 4, 3),
        (40, 7, 3),
    ];
    let weight = random(1, 20_000);
    cases(&sizes, &weight, |case| {
        let reference = case.reference();
        for level in levels() {
            case.check(&reference, level, Numbers::F32(case.weight));
        }
    });
}

#[test]
fn long_inner_dimensions_are_computed_in_several_runs() {
    let weight = random(6, 40 * 1701);
    cases(&[(19, 35, 1701), (11, 1701, 35)], &weight, |case| {
        let reference = case.reference();
        for level in levels() {
            case.check(&reference, level, Numbers::F32(case.weight));
        }
    });
}

#[test]
fn every_encoding_is_its_numbers() {
    let drawn = random(7, 96 * 64);
    let bf16s: Vec<bf16> = drawn.iter().map(|x| bf16::from_f32(*x)).collect();
    let f16s: Vec<f16> = drawn.iter().map(|x| f16::from_f32(*x)).collect();
    let weight: Vec<f32> = bf16s.iter().map(|x| x.to_f32()).collect();
    cases(&[(18, 37, 64), (4, 95, 33)], &weight, |case| {
        let reference = case.reference();
        for level in levels() {
            case.check(
                &reference,
                level,
                Numbers::Bf16(&bf16s[..case.weight.len()]),
            );
        }
    });
    let weight: Vec<f32> = f16s.iter().map(|x| x.to_f32()).collect();
    cases(&[(18, 37, 64), (4, 95, 33)], &weight, |case| {
        let reference = case.reference();
        for level in levels() {
            case.check(&reference, level, Numbers::Coded(&f16s));
        }
    });
}

#[test]
fn blocks_are_never_split() {
    // Two bytes of scale, small enough to be finite, and 32 of numbers.
    let bytes: Vec<u8> = random(8, 70 * 96 / 32 * 34)
        .chunks(34)
        .flat_map(|block| {
            let scale = f16::from_f32(block[0] / 64.0).to_le_bytes();
            let numbers = block[2..].iter().map(|x| (x * 120.0) as i8 as u8);
            scale.into_iter().chain(numbers)
        })
        .collect();
    let blocks = BlockType::Q8_0.copy(&bytes);
    let mut weight = vec![0f32; 70 * 96];
    blocks.decode(0, &mut weight);
    cases(&[(21, 70, 96), (35, 9, 64)], &weight, |case| {
        let reference = case.reference();
        for level in levels() {
            case.check(&reference, level, Numbers::Coded(&*blocks));
        }
    });
    // Blocks of 256 numbers, wider than a panel.
    let bytes: Vec<u8> = (0..3 * 2 * BlockType::Q8K.bytes())
        .map(|i| match i % BlockType::Q8K.bytes() {
            // The scale 2^-8 as f32.
            3 => 0x3b,
            2 => 0x80,
            0 | 1 => 0,
            at => (at * 37 + i / 7) as u8,
        })
        .collect();
    let blocks = BlockType::Q8K.copy(&bytes);
    let mut weight = vec![0f32; 3 * 512];
    blocks.decode(0, &mut weight);
    cases(&[(7, 3, 512)], &weight, |case| {
        let reference = case.reference();
        for level in levels() {
            case.check(&reference, level, Numbers::Coded(&*blocks));
        }
    });
}

#[test]
fn the_number_of_threads_does_not_change_the_bits() {
    let pools = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    let weight = random(9, 300 * 700);
    // Divided by columns, and by rows: because threads would get different numbers of panels, and because packing costs
    // less than reading, with panels of 48 columns and of 16.
    let sizes = [
        (70, 130, 700),
        (300, 33, 70),
        (900, 820, 40),
        (300, 272, 40),
    ];
    cases(&sizes, &weight, |case| {
        for level in levels() {
            let [one, more @ ..] = pools
                .each_ref()
                .map(|pool| pool.install(|| case.ours(level, Numbers::F32(case.weight))));
            for more in more {
                assert!(
                    one.iter()
                        .zip(&more)
                        .all(|(a, b)| a.to_bits() == b.to_bits())
                );
            }
        }
    });
}

#[test]
fn numbers_that_are_not_finite_stay_so() {
    let (rows, n_out, n_in) = (35, 50, 70);
    let weight = random(10, n_out * n_in);
    let mut x = random(11, rows * n_in);
    x[3 * n_in + 5] = f32::NAN;
    x[4 * n_in + 69] = f32::INFINITY;
    for compute in COMPUTES {
        let case = Case {
            direction: Direction::Forward,
            compute,
            n_out,
            n_in,
            weight: &weight,
            x: &x,
            rows,
            update: None,
            before: None,
        };
        for level in levels() {
            let y = case.ours(level, Numbers::F32(&weight));
            for (i, y) in y.iter().enumerate() {
                let expected = match i / n_out {
                    3 => y.is_nan(),
                    4 => y.is_infinite() && (*y > 0.0) == (weight[i % n_out * n_in + 69] > 0.0),
                    _ => y.is_finite(),
                };
                assert!(expected, "{level:?} {compute:?}: {y} at {i}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let operand = Operand {
        weights: Weights::new(Numbers::F32(&[1.0; 6]), (2, 3)),
        direction: Direction::Forward,
        compute: Compute::F32,
        level: Level::Portable,
    };
    let refused = |x: &[f32], update, into: &mut [f32]| {
        let error = product(operand, x, 2, update, Before::Ignored, into).unwrap_err();
        error.to_string()
    };
    let message = refused(&[0.0; 5], None, &mut [0.0; 4]);
    assert_eq!(
        message,
        "FrozenLinear: x has shape [5], expected 2 * 3 numbers"
    );
    let message = refused(&[0.0; 6], None, &mut [0.0; 5]);
    assert!(
        message.contains("the destination has shape [5]"),
        "{message}"
    );
    let h = Matrix::new(&[0f32; 6], 2, 3).unwrap();
    let v = Matrix::new(&[0f32; 4], 2, 2).unwrap();
    let message = refused(&[0.0; 6], Some(Update { h, v }), &mut [0.0; 4]);
    assert!(
        message.contains("the update has shape [2, 3, 2, 2]"),
        "{message}"
    );
}
