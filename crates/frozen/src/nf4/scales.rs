//! The scales of NF4's blocks, and their own quantisation to 8 bits.

use super::mean::mean;
use crate::{Error, Result};
use std::sync::{Arc, OnceLock};

/// Scales that share a scale in double quantisation.
const BLOCK: usize = 256;

/// One scale for each block of numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// In f32.
    Single(Vec<f32>),
    /// Double quantisation: a scale is `map[codes[i]] * scales[i / 256] + offset`, product and sum rounded apart.
    ///
    /// The offset is the mean of the scales, summed as torch sums on x86-64 with one thread. bitsandbytes' own offset may
    /// be an ulp away on another machine, or where more threads share the sum of more than 32,768 scales.
    Double {
        /// A code for each scale.
        codes: Vec<u8>,
        /// What the codes mean, rising, the table of bitsandbytes unless a file brought its own.
        map: Arc<[f32; 256]>,
        /// One scale for every 256 codes.
        scales: Vec<f32>,
        /// What was subtracted from all scales.
        offset: f32,
    },
}

impl Scales {
    /// Quantises scales to 8 bits; `None` if their sum is not finite.
    pub(super) fn double(scales: &[f32]) -> Option<Self> {
        let offset = match scales {
            [] => 0.0,
            _ => mean(scales),
        };
        if !offset.is_finite() {
            return None;
        }
        let mut codes = Vec::with_capacity(scales.len());
        let mut outer = Vec::with_capacity(scales.len().div_ceil(BLOCK));
        for block in scales.chunks(BLOCK) {
            let block: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
            let scale = block.iter().fold(0f32, |scale, x| scale.max(x.abs()));
            let inverse = 1.0 / scale;
            let code = |x: &f32| match scale {
                0.0 => 0,
                _ => nearest(x * inverse),
            };
            codes.extend(block.iter().map(code));
            outer.push(scale);
        }
        Some(Self::Double {
            codes,
            map: map(),
            scales: outer,
            offset,
        })
    }

    /// Some of the scales, from the `first` on.
    pub(super) fn read(&self, first: usize, into: &mut [f32]) {
        match self {
            Self::Single(scales) => into.copy_from_slice(&scales[first..first + into.len()]),
            Self::Double {
                codes,
                map,
                scales,
                offset,
            } => {
                for (at, into) in (first..).zip(into) {
                    *into = map[usize::from(codes[at])] * scales[at / BLOCK] + offset;
                }
            }
        }
    }

    /// Bytes in memory; the table of codes, which is shared, is not counted.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Single(scales) => size_of_val(scales.as_slice()),
            Self::Double { codes, scales, .. } => {
                codes.len() + size_of_val(scales.as_slice()) + size_of::<f32>()
            }
        }
    }

    /// Refuses too few or too many for so many blocks.
    pub(super) fn check(&self, blocks: usize) -> Result<()> {
        let (found, outer) = match self {
            Self::Single(scales) => (scales.len(), None),
            Self::Double { codes, scales, .. } => (codes.len(), Some(scales.len())),
        };
        let refuse = |what: &str, got: usize, expected: usize| {
            Err(Error::Nf4 {
                what: format!("{blocks} blocks have {expected} {what}, got {got}"),
            })
        };
        match outer {
            _ if found != blocks => refuse("scales", found, blocks),
            Some(outer) if outer != blocks.div_ceil(BLOCK) => {
                refuse("scales of scales", outer, blocks.div_ceil(BLOCK))
            }
            _ => Ok(()),
        }
    }
}

/// Steps between -1 and 1 that bitsandbytes tells apart when it looks for the nearest of the 256 values.
const STEPS: u16 = u16::MAX;

/// The code whose value is nearest to `x` in -1..=1. bitsandbytes rounds `x` to one of 65,536 steps first, so what lies
/// closer to 0 than a step is all the same to it; so it is here.
fn nearest(x: f32) -> u8 {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let map = map();
        let boundaries: Vec<f32> = map
            .windows(2)
            .map(|pair| f32::midpoint(pair[0], pair[1]))
            .collect();
        let step = |i: u16| -1.0 + 2.0 * f32::from(i) / f32::from(STEPS);
        let code = |x: f32| boundaries.partition_point(|boundary| *boundary < x) as u8;
        (0..=STEPS).map(|i| code(step(i))).collect()
    });
    let steps = (x.clamp(-1.0, 1.0) + 1.0) * 0.5;
    // A NaN, which an infinite inverse makes of 0, becomes step 0.
    table[usize::from(steps.mul_add(f32::from(STEPS), 0.5) as u16)]
}

/// The values of 8 bits: for each power of ten from 1e-6 to 1, twice as many as for the one before, evenly spread from
/// a tenth of it to all of it, with both signs; 0; and 1.
fn map() -> Arc<[f32; 256]> {
    static MAP: OnceLock<Arc<[f32; 256]>> = OnceLock::new();
    let map = MAP.get_or_init(|| {
        let mut values = vec![0.0, 1.0];
        for (power, size) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1f32]
            .into_iter()
            .enumerate()
        {
            let count = 1u16 << power;
            // Rounded as torch's `linspace` rounds: one rounding each, from the nearer end.
            let step = (1.0 - 0.1) / f32::from(count);
            let edge = |k: u16| match k < count.div_ceil(2) {
                true => step.mul_add(f32::from(k), 0.1),
                false => step.mul_add(-f32::from(count - k), 1.0),
            };
            for k in 0..count {
                let value = size * ((edge(k) + edge(k + 1)) / 2.0);
                values.extend([value, -value]);
            }
        }
        values.sort_by(f32::total_cmp);
        let mut map = [0.0; 256];
        map.copy_from_slice(&values);
        Arc::new(map)
    });
    Arc::clone(map)
}
