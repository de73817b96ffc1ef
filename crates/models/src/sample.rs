//! Which token comes next: the likeliest, or one drawn from the distribution that temperature, top-k and top-p leave.
//!
//! The filters and their order are those of transformers. A draw is keyed by seed and index, so a text depends on its
//! seed and on nothing that was drawn before.

use crate::{Error, Result};
use lowrank_ops::rng::{Key, Purpose};
use std::num::NonZeroUsize;
use std::str::FromStr;

/// By what logits are divided: finite, and 0 (only the likeliest token) or above.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Temperature(f64);

impl Temperature {
    /// `None` if `value` is negative, infinite or not a number.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        (value.is_finite() && value >= 0.0).then_some(Self(value))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Temperature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = text.parse().ok().and_then(Self::new);
        value.ok_or_else(|| "expected a finite number that is not below 0".to_owned())
    }
}

/// A share of the probability, in (0, 1]; 1 keeps everything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopP(f64);

impl TopP {
    /// Everything.
    pub const ALL: Self = Self(1.0);

    /// `None` if `value` is not in (0, 1].
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        (value > 0.0 && value <= 1.0).then_some(Self(value))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for TopP {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = text.parse().ok().and_then(Self::new);
        value.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; at 0 the likeliest token is taken, and nothing below matters.
    pub temperature: Temperature,
    /// Then only this many of the likeliest tokens stay, and those as likely as the last of them.
    pub top_k: Option<NonZeroUsize>,
    /// Then only the likeliest tokens stay that have this share of the probability together.
    pub top_p: TopP,
    /// What draws are keyed by.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token, the first of several.
    pub const GREEDY: Self = Self {
        temperature: Temperature(0.0),
        top_k: None,
        top_p: TopP::ALL,
        seed: 0,
    };

    /// The token that follows, given a logit of each; `index` counts the tokens chosen before, and keys the draw.
    ///
    /// # Errors
    /// If there are no logits, one is NaN or positive infinity, or none is finite.
    pub fn choose(&self, logits: &[f64], index: u64) -> Result<u32> {
        let kept = self.probabilities(logits)?;
        let place = Key::new(self.seed, Purpose::Sample).step(index);
        let total: f64 = kept.iter().map(|(_, probability)| probability).sum();
        let mut left = place.stream().uniform() * total;
        for &(token, probability) in &kept {
            left -= probability;
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave a crumb; a token that has stayed is never impossible.
        let last = kept.last().expect("the likeliest token always stays");
        Ok(last.0)
    }

    /// The tokens that stay, in order, with their probabilities, which add up to 1.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn probabilities(&self, logits: &[f64]) -> Result<Vec<(u32, f64)>> {
        let (best, highest) = likeliest(logits)?;
        if self.temperature.0 == 0.0 {
            return Ok(vec![(best, 1.0)]);
        }
        let least = match self.top_k {
            Some(k) if k.get() < logits.len() => kth_largest(logits, k),
            _ => f64::NEG_INFINITY,
        };
        // Subtracting first keeps a quotient finite however low the temperature.
        let weight = |logit: f64| ((logit - highest) / self.temperature.0).exp();
        let mut kept: Vec<(u32, f64)> = (0u32..)
            .zip(logits)
            .filter(|(_, logit)| **logit >= least)
            .map(|(token, &logit)| (token, weight(logit)))
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        normalise(&mut kept);
        if self.top_p.0 < 1.0 {
            kept = nucleus(kept, self.top_p.0);
            normalise(&mut kept);
        }
        Ok(kept)
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// The largest logit and its token, the first of several.
fn likeliest(logits: &[f64]) -> Result<(u32, f64)> {
    let mut best = (0, f64::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f64::INFINITY {
            return Err(Error::Logit {
                token,
                value: logit,
            });
        }
        if logit > best.1 {
            best = (token as u32, logit);
        }
    }
    if best.1 == f64::NEG_INFINITY {
        return Err(Error::Logit {
            token: 0,
            value: best.1,
        });
    }
    Ok(best)
}

/// The token of the largest logit, the first of several; `None` if there is none that [`Sampling::choose`] would accept.
pub(crate) fn likeliest_single(logits: &[f32]) -> Option<u32> {
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    // 0 * x is 0 for every finite number, and NaN else; minus infinity is left to the careful way, too.
    let mut odd = [0f32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] {
                chunk[lane]
            } else {
                max[lane]
            };
            odd[lane] += 0.0 * chunk[lane];
        }
    }
    for x in rest {
        max[0] = max[0].max(*x);
        odd[0] += 0.0 * x;
    }
    if odd.iter().any(|odd| odd.is_nan()) {
        return None;
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    #[expect(clippy::float_cmp, reason = "the maximum is one of them")]
    let token = logits.iter().position(|x| *x == max)?;
    Some(token as u32)
}

/// The `k`-th largest logit; `k` is at most their number.
fn kth_largest(logits: &[f64], k: NonZeroUsize) -> f64 {
    let mut logits = logits.to_vec();
    let (_, kth, _) = logits.select_nth_unstable_by(k.get() - 1, |a, b| b.total_cmp(a));
    *kth
}

/// The likeliest tokens that have at least the share `p` together; equal ones leave in reverse order. `kept` adds up to 1.
fn nucleus(kept: Vec<(u32, f64)>, p: f64) -> Vec<(u32, f64)> {
    // Whoever has less than an equal part of what leaves always leaves, so that only few are sorted.
    let part = (1.0 - p) / kept.len() as f64;
    let (mut ordered, mut left) = (Vec::new(), 0.0);
    for &entry in &kept {
        if entry.1 < part {
            left += entry.1;
        } else {
            ordered.push(entry);
        }
    }
    ordered.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    let leaves = |entry: &&(u32, f64)| {
        left += entry.1;
        left <= 1.0 - p
    };
    let gone = ordered.iter().take_while(leaves).count();
    // One always stays, whatever rounding says.
    let gone = gone.min(ordered.len().saturating_sub(1));
    let mut kept = ordered.split_off(gone);
    kept.sort_unstable_by_key(|(token, _)| *token);
    kept
}

fn normalise(kept: &mut [(u32, f64)]) {
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    for (_, weight) in kept {
        *weight /= total;
    }
}

#[cfg(test)]
mod tests {
    use super::{Sampling, likeliest_single};

    #[test]
    fn the_quick_choice_is_the_careful_one() {
        for count in [1usize, 15, 16, 17, 100] {
            for shift in 0..count {
                let logits: Vec<f32> = (0..count)
                    .map(|i| -(((i + shift) * 7 % count / 2) as f32) - 0.5)
                    .collect();
                let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
                let expected = Sampling::GREEDY.choose(&wide, 0).expect("finite logits");
                assert_eq!(likeliest_single(&logits), Some(expected));
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut logits = logits.clone();
                    logits[shift] = bad;
                    assert_eq!(likeliest_single(&logits), None);
                }
            }
        }
        assert_eq!(likeliest_single(&[]), None);
    }
}
