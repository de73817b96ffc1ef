//! Which vector instructions the loops of this crate use.
//!
//! The crate is compiled for the oldest machine of its kind, and loops are compiled once more for each newer set of
//! instructions; the best one that the machine has is chosen when the first loop runs. No loop contracts a product and
//! a sum into one instruction on its own, so the choice changes how fast a result is there, not its bits.
#![expect(
    unsafe_code,
    reason = "calling a function that was compiled for instructions that the machine may lack"
)]

use std::sync::OnceLock;

/// A set of vector instructions. Later ones contain the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every machine of this architecture has.
    Portable,
    /// x86-64-v3: AVX2 and FMA.
    Avx2,
    /// x86-64-v4: AVX-512 F, BW, CD, DQ, VL.
    Avx512,
}

/// The environment variable that holds the choice below what the machine has: `portable`, `avx2` or `avx512`.
pub const VARIABLE: &str = "LOWRANK_SIMD";

impl Level {
    /// All, with the words of [`VARIABLE`].
    pub const WORDS: [(&'static str, Self); 3] = [
        ("portable", Self::Portable),
        ("avx2", Self::Avx2),
        ("avx512", Self::Avx512),
    ];

    /// The best that this machine has.
    #[must_use]
    pub fn of_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512cd")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// What is used: the machine's best, or less if [`VARIABLE`] says so. The variable is read once, by whoever asks
    /// first; a word in it that is none of [`Level::WORDS`], or that the machine lacks, changes nothing.
    #[must_use]
    pub fn used() -> Self {
        static USED: OnceLock<Level> = OnceLock::new();
        *USED.get_or_init(|| {
            let best = Self::of_machine();
            let word = std::env::var(VARIABLE).unwrap_or_default();
            let asked = Self::WORDS.iter().find(|(known, _)| *known == word);
            asked.map_or(best, |(_, asked)| best.min(*asked))
        })
    }
}

/// Evaluates an expression compiled for the level in use: whatever is inlined into it uses those instructions. Loops that
/// call closures are to be inside, since a closure is compiled for the oldest machine unless it is inlined.
macro_rules! vectorised {
    ($body:expr) => {
        // The expression is written down once a level, so that each closure has one caller and is inlined there.
        match $crate::simd::Level::used() {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx512 => $crate::simd::with_avx512(|| $body),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => $crate::simd::with_avx2(|| $body),
            _ => $body,
        }
    };
}
pub(crate) use vectorised;

/// The caller has asked [`Level::used`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: `Level::used` never says more than the machine has.
    unsafe { avx512(Closure(work)) }
}

/// The caller has asked [`Level::used`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: `Level::used` never says more than the machine has.
    unsafe { avx2(Closure(work)) }
}

/// Work that is always inlined where it is called.
pub(crate) trait Work {
    type Output;

    /// To be marked `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

struct Closure<F>(F);

impl<R, F: FnOnce() -> R> Work for Closure<F> {
    type Output = R;

    #[inline(always)]
    fn run(self) -> R {
        (self.0)()
    }
}

/// [`vectorised`] for work with a name.
#[inline(always)]
pub(crate) fn run<W: Work>(work: W) -> W::Output {
    match Level::used() {
        // SAFETY: `used` never says more than the machine has.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(work) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(work) },
        _ => work.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
fn avx512<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<W: Work>(work: W) -> W::Output {
    work.run()
}
