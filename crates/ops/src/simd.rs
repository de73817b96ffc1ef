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
    /// AVX-512 with products of bf16 pairs that are summed in f32.
    Avx512Bf16,
    /// Tile registers with products of bf16 tiles that are summed in f32; on Linux only, which has to be asked for them.
    Amx,
}

/// The environment variable that holds the choice below what the machine has: `portable`, `avx2`, `avx512`,
/// `avx512_bf16` or `amx`. The last two differ from `avx512` in products that are computed in bf16 only.
pub const VARIABLE: &str = "LOWRANK_SIMD";

impl Level {
    /// All, with the words of [`VARIABLE`].
    pub const WORDS: [(&'static str, Self); 5] = [
        ("portable", Self::Portable),
        ("avx2", Self::Avx2),
        ("avx512", Self::Avx512),
        ("avx512_bf16", Self::Avx512Bf16),
        ("amx", Self::Amx),
    ];

    /// The best that this machine has. Found once per process.
    #[must_use]
    pub fn of_machine() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(detect)
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
            level if level >= $crate::simd::Level::Avx512 => $crate::simd::with_avx512(|| $body),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => $crate::simd::with_avx2(|| $body),
            _ => $body,
        }
    };
}
pub(crate) use vectorised;

/// Defines a function whose body is compiled for AVX-512, for AVX2 and FMA, and for every machine, and that calls the
/// one of the level that its first argument is, or of the machine's best level if that is less. It may have a type
/// parameter. The body may ask `FUSED` whether a product and a sum are one instruction. A closure that is handed to a
/// function with target features would not do: nothing makes the compiler inline a large one there.
#[doc(hidden)]
#[macro_export]
macro_rules! leveled {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident $(<$generic:ident: $bound:path>)?
        ($($argument:ident: $type:ty),* $(,)?) $body:block
    ) => {
        $(#[$attribute])*
        #[expect(unsafe_code, reason = "calls what was compiled for instructions that machines may lack")]
        $visibility fn $name$(<$generic: $bound>)?(level: $crate::simd::Level, $($argument: $type),*) {
            #[inline(always)]
            fn work<$($generic: $bound,)? const FUSED: bool>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            fn avx512$(<$generic: $bound>)?($($argument: $type),*) {
                work::<$($generic,)? true>($($argument),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2$(<$generic: $bound>)?($($argument: $type),*) {
                work::<$($generic,)? true>($($argument),*);
            }

            use $crate::simd::Level;
            match level.min(Level::of_machine()) {
                // SAFETY: no more than the machine has.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($argument),*) },
                _ => work::<$($generic,)? false>($($argument),*),
            }
        }
    };
}

/// Asks for the cache line of an address, which may lie anywhere, so that it is near when it is read. Other machines than
/// x86-64 ignore it.
#[inline(always)]
pub fn ask<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The caller has asked [`Level::used`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: `Level::used` never says more than the machine has.
    unsafe { avx512(work) }
}

/// The caller has asked [`Level::used`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: `Level::used` never says more than the machine has.
    unsafe { avx2(work) }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return Level::Portable;
    }
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if !avx512 {
        return Level::Avx2;
    }
    if !is_x86_feature_detected!("avx512bf16") {
        return Level::Avx512;
    }
    if !tiles() {
        return Level::Avx512Bf16;
    }
    Level::Amx
}

/// True if the processor multiplies tiles of bf16 and the system lets this process use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles() -> bool {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    // Leaf 7: bit 22 are products of bf16 tiles, bit 24 are tiles.
    const BITS: u32 = 1 << 22 | 1 << 24;
    let features = __cpuid_count(7, 0);
    if features.edx & BITS != BITS {
        return false;
    }
    // The tile registers are larger than all else that Linux saves of a thread, so it is asked for them once per
    // process: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). It refuses if it does not know them.
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: the call reads and writes no memory of this process; registers that it changes are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
fn avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}
