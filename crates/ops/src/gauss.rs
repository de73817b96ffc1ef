//! The normal distribution: the share of it below a number, and its density there.

use crate::Float;

/// Of a standard normal distribution.
pub(crate) trait Gauss: Float {
    /// (the share below x, the density at x). In f32 a share is off by no more than 1e-7 of itself above 0, and below by
    /// 4e-7 of itself and what the rounding of x^2 makes of it. Without branches or calls there, so that loops over it
    /// become SIMD.
    fn share(self) -> (Self, Self);
}

/// The density at 0: 1 / sqrt(2 pi).
const PEAK: f64 = 0.398_942_280_401_432_7;

impl Gauss for f32 {
    #[inline(always)]
    fn share(self) -> (Self, Self) {
        let square = self * self;
        let power = Float::exp(-0.5 * square);

        // In the middle 1/2 + x sum((-x^2 / 2)^n / n! / (2n + 1)) / sqrt(2 pi): eight terms leave 4e-10.
        let s = -0.5 * square;
        let series = 1.0 / (720.0 * 13.0) + s * (1.0 / (5040.0 * 15.0));
        let series = 1.0 / (24.0 * 9.0) + s * (1.0 / (120.0 * 11.0) + s * series);
        let series = 1.0 / 3.0 + s * (1.0 / (2.0 * 5.0) + s * (1.0 / (6.0 * 7.0) + s * series));
        let middle = 0.5 + self * (PEAK as Self * (1.0 + s * series));

        // What lies beyond |x| is exp(-x^2 / 2) times a function of x that falls slowly, here a polynomial of
        // 1 / (1 + 0.3 |x|): fitted from 0.85 to 14.5, where it is off by 8e-9 of itself. Further out the power is 0.
        let size = self.abs();
        let t = 1.0 / (1.0 + 0.3 * size);
        let fit = -6.004_287_7e-2 + t * 2.294_789_3e-2;
        let fit = 3.991_912_3e-2 + t * (1.246_604_2e-2 + t * fit);
        let fit = 9.262_951e-2 + t * (4.483_422_6e-2 + t * fit);
        let fit = 1.196_767_5e-1 + t * (1.198_103_2e-1 + t * (1.077_802_9e-1 + t * fit));
        let beyond = power * (t * fit);
        let outside = if self < 0.0 { beyond } else { 1.0 - beyond };

        // A NaN is no middle number and stays one.
        let share = if size < 0.9 { middle } else { outside };
        (share, PEAK as Self * power)
    }
}

impl Gauss for f64 {
    /// Exact but for the last digits and slow: f64 is for oracles.
    fn share(self) -> (Self, Self) {
        let density = PEAK * (-0.5 * self * self).exp();
        let size = self.abs();
        if size < 3.0 {
            // 1/2 + density * (x + x^3 / 3 + x^5 / (3 * 5) + ..), whose terms are all of one sign.
            let (mut term, mut sum, mut n) = (self, self, 1.0);
            while term.abs() > Self::EPSILON / 16.0 * sum.abs() {
                n += 2.0;
                term *= self * self / n;
                sum += term;
            }
            return (0.5 + density * sum, density);
        }
        // What lies beyond is density / (x + 1 / (x + 2 / (x + 3 / ..))); from 3 on, 60 of these leave less than 1e-16.
        let mut tail = size;
        for k in (1..=60).rev() {
            tail = size + Self::from(k) / tail;
        }
        let beyond = density / tail;
        let share = if self < 0.0 { beyond } else { 1.0 - beyond };
        // The fraction of a NaN is one, and so is this; at infinity the density is 0.
        (share, density)
    }
}

#[cfg(test)]
mod tests {
    use super::Gauss;

    /// x, the share below it and the density there, computed with 40 digits and rounded.
    const KNOWN: [(f64, f64, f64); 18] = [
        (
            -12.0,
            1.776_482_112_077_679e-33,
            2.146_383_735_663_060_3e-32,
        ),
        (-9.5, 1.049_451_507_536_260_7e-21, 1.007_793_539_430_001e-20),
        (-6.0, 9.865_876_450_376_98e-10, 6.075_882_849_823_286e-9),
        (-4.0, 3.167_124_183_311_992e-5, 1.338_302_257_648_853_5e-4),
        (-3.0, 1.349_898_031_630_094_5e-3, 4.431_848_411_938_007e-3),
        (-2.5, 6.209_665_325_776_135e-3, 1.752_830_049_356_854e-2),
        (-1.75, 4.005_915_686_381_709e-2, 8.627_731_882_651_15e-2),
        (-1.0, 0.158_655_253_931_457_05, 0.241_970_724_519_143_35),
        (-0.5, 0.308_537_538_725_986_9, 0.352_065_326_764_299_5),
        (-0.125, 0.450_261_775_169_887_1, 0.395_837_686_944_749_5),
        (0.25, 0.598_706_325_682_923_7, 0.386_668_116_802_849_2),
        (0.75, 0.773_372_647_623_131_8, 0.301_137_432_154_804_4),
        (1.0, 0.841_344_746_068_542_9, 0.241_970_724_519_143_35),
        (1.5, 0.933_192_798_731_141_9, 0.129_517_595_665_891_73),
        (2.25, 0.987_775_527_344_955_3, 3.173_965_183_566_742e-2),
        (3.5, 0.999_767_370_920_964_5, 8.726_826_950_457_601e-4),
        (5.0, 0.999_999_713_348_428_1, 1.486_719_514_734_297_7e-6),
        (8.0, 0.999_999_999_999_999_4, 5.052_271_083_536_893e-15),
    ];

    #[test]
    fn known_numbers_in_f64() {
        for (x, share, density) in KNOWN {
            let got = x.share();
            for (got, expected) in [(got.0, share), (got.1, density)] {
                // Between -3 and 0 the share is what is left of 1/2.
                let tolerance = if (-3.0..0.0).contains(&x) { 2e-16 } else { 0.0 };
                let off = (got - expected).abs();
                assert!(off <= tolerance + 2e-15 * expected, "{x}: {got} {expected}");
            }
        }
    }

    #[test]
    fn f32_follows_f64() {
        let mut worst = [0f64; 2];
        for step in -130_000..130_000 {
            let x = step as f32 * 1e-4;
            let (share, density) = x.share();
            let (exact, exact_density) = f64::from(x).share();
            let off = (f64::from(share) / exact - 1.0).abs();
            let square = f64::from(x) * f64::from(x);
            let tolerance = if x < 0.0 { 4e-7 + 3e-8 * square } else { 1e-7 };
            let side = usize::from(x < 0.0);
            worst[side] = worst[side].max(off / tolerance);
            assert!(
                off <= tolerance,
                "share below {x}: {share} is off by {off:e}"
            );
            let off = (f64::from(density) / exact_density - 1.0).abs();
            assert!(
                off <= 2e-7 + 3e-8 * square,
                "density at {x}: off by {off:e}"
            );
        }
    }

    /// erf(z) = 2 share(z sqrt(2)) - 1, which is what the usual formula of GELU has inside.
    #[test]
    fn the_error_function_is_off_by_less_than_its_rounding() {
        for step in 0..60_000 {
            let z = f64::from(step) * 1e-4;
            let x = (z * std::f64::consts::SQRT_2) as f32;
            let exact = 2.0 * f64::from(x).share().0 - 1.0;
            let got = 2.0 * f64::from(x.share().0) - 1.0;
            assert!((got - exact).abs() < 1.6e-7, "erf({z}): {got} {exact}");
        }
    }

    #[test]
    fn edges() {
        assert_eq!((0f32.share().0, 0f64.share().0), (0.5, 0.5));
        for x in [f32::INFINITY, 1e30, 20.0] {
            assert_eq!((x.share(), (-x).share()), ((1.0, 0.0), (0.0, 0.0)));
            let x = f64::from(x) * 10.0;
            assert_eq!((x.share(), (-x).share()), ((1.0, 0.0), (0.0, 0.0)));
        }
        assert!(f32::NAN.share().0.is_nan() && f32::NAN.share().1.is_nan());
        assert!(f64::NAN.share().0.is_nan() && f64::NAN.share().1.is_nan());
        // The two formulas meet.
        let (below, above) = (0.9f32.next_down().share().0, 0.9f32.share().0);
        assert!((below - above).abs() < 2e-7, "{below} {above}");
    }
}
