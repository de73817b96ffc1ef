//! Random numbers without state: what is drawn depends on what it is for, and on nothing that was drawn before.
//!
//! A [`Key`] names a place in a run: seed, purpose, step, micro-batch, site. Its [`Stream`] is ChaCha8 keyed by
//! exactly those, so resuming, recomputing or reordering work draws the same numbers.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// What numbers are drawn for. The values are part of the contract: changing one changes every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of parameters.
    Init = 1,
    /// Dropout masks.
    Dropout = 2,
    /// The order of rows in an epoch (the step is the epoch).
    Shuffle = 3,
    /// Gates and routers.
    Gate = 4,
    /// Values of revived components.
    Revive = 5,
    /// Tests and laws.
    Test = 6,
    /// Tokens of a text that a model writes (the step is the index of the token).
    Sample = 7,
    /// Noise on embedded tokens.
    Noise = 8,
}

/// Where in a run a draw belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    seed: u64,
    purpose: Purpose,
    step: u64,
    micro: u32,
    site: u64,
}

impl Key {
    /// Step 0, micro-batch 0, no site.
    #[must_use]
    pub const fn new(seed: u64, purpose: Purpose) -> Self {
        Self {
            seed,
            purpose,
            step: 0,
            micro: 0,
            site: 0,
        }
    }

    /// For another purpose.
    #[must_use]
    pub const fn purpose(self, purpose: Purpose) -> Self {
        Self { purpose, ..self }
    }

    /// At this optimiser step (or epoch).
    #[must_use]
    pub const fn step(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// In this micro-batch of the step.
    #[must_use]
    pub const fn micro(self, micro: u32) -> Self {
        Self { micro, ..self }
    }

    /// At the place with this path; any string, hashed with FNV-1a (stable across builds).
    #[must_use]
    pub fn site(self, path: &str) -> Self {
        let site = path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { site, ..self }
    }

    /// The numbers of this place, from the beginning.
    #[must_use]
    pub fn stream(self) -> Stream {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..12].copy_from_slice(&(self.purpose as u32).to_le_bytes());
        key[12..16].copy_from_slice(&self.micro.to_le_bytes());
        key[16..24].copy_from_slice(&self.step.to_le_bytes());
        key[24..].copy_from_slice(&self.site.to_le_bytes());
        Stream {
            rng: ChaCha8Rng::from_seed(key),
            spare: None,
        }
    }
}

/// An endless sequence of numbers.
#[derive(Debug, Clone)]
pub struct Stream {
    rng: ChaCha8Rng,
    spare: Option<f64>,
}

impl Stream {
    /// Jumps to the 64 bits that a fresh stream hands out after `position` others.
    pub(crate) fn seek(&mut self, position: u64) {
        // The generator counts words of 32 bits.
        self.rng.set_word_pos(2 * u128::from(position));
        self.spare = None;
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n without bias (`n` > 0).
    pub fn below(&mut self, n: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let bits = self.bits();
            if bits < limit {
                return bits % n;
            }
        }
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// A random permutation of 0..n (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let j = self.below(i as u64 + 1) as usize;
            order.swap(i, j);
        }
        order
    }
}
