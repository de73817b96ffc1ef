//! f32 to bf16, the nearest with ties to even, and back.

use half::bf16;
use lowrank_ops::leveled;

/// The bits of the nearest bf16. A NaN stays one.
#[inline(always)]
pub(super) const fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    // Rounding could carry a NaN's bits over into an infinity or a zero, so it is cut and made quiet instead.
    let nan = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        nan
    } else {
        nearest
    }
}

/// The number that bits of bf16 stand for.
#[inline(always)]
pub(super) const fn widened(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

leveled! {
    /// Rounds numbers to bf16.
    pub(super) fn round(from: &[f32], into: &mut [u16]) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = rounded(*from);
        }
    }
}

leveled! {
    /// Rounds numbers to those that bf16 has.
    pub(super) fn round_wide(from: &[f32], into: &mut [f32]) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = widened(rounded(*from));
        }
    }
}

leveled! {
    /// As `round_wide`, in place.
    pub(super) fn round_in_place(numbers: &mut [f32]) {
        for number in numbers {
            *number = widened(rounded(*number));
        }
    }
}

leveled! {
    /// Widens bf16 to f32.
    pub(super) fn widen(from: &[bf16], into: &mut [f32]) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = widened(from.to_bits());
        }
    }
}

/// Three bf16 whose sum is the f32, to its last bits. What is not finite is its own first piece.
#[inline(always)]
pub(super) const fn pieces(x: f32) -> [u16; 3] {
    let first = rounded(x);
    let rest = if widened(first).is_finite() {
        x - widened(first)
    } else {
        0.0
    };
    let second = rounded(rest);
    [first, second, rounded(rest - widened(second))]
}

leveled! {
    /// The [`pieces`] of numbers: all first ones, all second ones, all third ones.
    pub(super) fn split(from: &[f32], into: [&mut [u16]; 3]) {
        let [first, second, third] = into;
        let into = first.iter_mut().zip(second).zip(third);
        for (from, ((first, second), third)) in from.iter().zip(into) {
            [*first, *second, *third] = pieces(*from);
        }
    }
}
