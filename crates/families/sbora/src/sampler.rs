//! Which columns or rows a task owns: a generator of its own, so that any program can repeat the draw.

use lowrank_adapter::{Error, Result};

/// The indices below `count` that a task owns of the module at `path`, ascending: slots `task * rank` to
/// `(task + 1) * rank` of a permutation that depends on the seed and the path alone.
///
/// # Errors
/// If so many slots do not exist.
pub fn region(seed: u64, path: &str, count: usize, rank: usize, task: usize) -> Result<Vec<u32>> {
    let end = task.saturating_add(1).saturating_mul(rank);
    if end > count || u32::try_from(count).is_err() {
        return Err(Error::Config {
            what: format!(
                "task {task} with r = {rank} needs {end} of the {count} columns or rows of `{path}`; {} tasks of that rank \
                 fit",
                count / rank.max(1)
            ),
        });
    }
    let mut slots: Vec<u32> = (0..count as u32).collect();
    let mut random = SplitMix64(seed ^ fnv1a(path));
    // The slots of earlier tasks are drawn first, whoever draws.
    for at in 0..end {
        let left = (count - at) as u64;
        slots.swap(at, at + (random.next() % left) as usize);
    }
    let mut own = slots[task * rank..end].to_vec();
    own.sort_unstable();
    Ok(own)
}

/// FNV-1a of 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_and_generator_are_the_known_ones() {
        assert_eq!(fnv1a("layers.0.self_attn.q_proj"), 0xc87f_1c52_f985_e468);
        assert_eq!(SplitMix64(0).next(), 0xe220_a839_7b1d_cdaf);
    }
}
