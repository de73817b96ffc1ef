//! Functions that are compiled once for every level.

/// Defines a function whose body is compiled for AVX-512, for AVX2 and FMA, and for every machine, and that calls the
/// one of the level that its first argument is, or of the machine's best level if that is less. The body may ask `FUSED`
/// whether a product and a sum are one instruction. A closure that is handed to a function with target features would
/// not do: nothing makes the compiler inline it there.
macro_rules! leveled {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block
    ) => {
        $(#[$attribute])*
        #[expect(unsafe_code, reason = "calls what was compiled for instructions that machines may lack")]
        $visibility fn $name(level: lowrank_ops::simd::Level, $($argument: $type),*) {
            #[inline(always)]
            fn work<const FUSED: bool>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            fn avx512($($argument: $type),*) {
                work::<true>($($argument),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) {
                work::<true>($($argument),*);
            }

            use lowrank_ops::simd::Level;
            match level.min(Level::of_machine()) {
                // SAFETY: no more than the machine has.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($argument),*) },
                _ => work::<false>($($argument),*),
            }
        }
    };
}
