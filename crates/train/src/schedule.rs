//! The learning rate of every step.

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// It does not.
    Constant,
    /// In a line that would reach the least rate one step after the last.
    Linear,
    /// Along half a cosine.
    Cosine,
}

/// How long the learning rate rises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// So many steps.
    Steps(u64),
    /// This share of all steps, rounded up as transformers does.
    Ratio(f64),
}

impl Warmup {
    /// The number of warm-up steps of a run of `total` steps.
    #[must_use]
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (ratio * total as f64).ceil() as u64,
        }
    }
}

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub base: f64,
    /// How it falls.
    pub curve: Curve,
    /// For how many steps it rises.
    pub warmup: u64,
    /// How many steps there are.
    pub total: u64,
    /// What it falls to in place of 0, at most `base`.
    pub least: f64,
}

impl Schedule {
    /// The learning rate of `step`, in 1..=total. With k = step - 1 and w warm-up steps: base * k / w for k < w (the
    /// first is 0); then with p = (k - w) / max(1, total - w): base, or least + (base - least) * f with f = 1 - p or
    /// (1 + cos(pi p)) / 2, which is transformers' cosine with a minimum.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        let k = step.saturating_sub(1);
        if k < self.warmup {
            return self.base * (k as f64 / self.warmup as f64);
        }
        if k == self.warmup {
            // Where the formula is the base but for rounding.
            return self.base;
        }
        let rest = self.total.saturating_sub(self.warmup).max(1);
        let p = (k - self.warmup) as f64 / rest as f64;
        let height = self.base - self.least;
        let rate = match self.curve {
            Curve::Constant => self.base,
            Curve::Linear => self.least + height * (1.0 - p),
            Curve::Cosine => self.least + height * (1.0 + (std::f64::consts::PI * p).cos()) / 2.0,
        };
        // The sum may round to a number above the highest.
        rate.min(self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_follow_the_formulas() {
        use Curve::{Constant, Cosine, Linear};
        let half = std::f64::consts::FRAC_1_SQRT_2;
        for (curve, warmup, least, expected) in [
            (Constant, 0, 0.0, vec![3.0, 3.0, 3.0]),
            (Constant, 2, 0.0, vec![0.0, 1.5, 3.0, 3.0]),
            (Linear, 0, 0.0, vec![3.0, 2.25, 1.5, 0.75]),
            (Linear, 3, 0.0, vec![0.0, 1.0, 2.0, 3.0, 1.5]),
            (Cosine, 0, 0.0, vec![3.0, 1.5]),
            (
                Cosine,
                1,
                0.0,
                vec![0.0, 3.0, 1.5 * (1.0 + half), 1.5, 1.5 * (1.0 - half)],
            ),
            // A warm-up that is longer than the run, and one that fills it.
            (Linear, 10, 0.0, vec![0.0, 0.3]),
            (Cosine, 2, 0.0, vec![0.0, 1.5]),
            (Linear, 0, 0.0, vec![3.0]),
            // A least rate, which the warm-up does not know.
            (Linear, 1, 1.0, vec![0.0, 3.0, 2.5, 2.0, 1.5]),
            (
                Cosine,
                0,
                2.0,
                vec![3.0, 2.5 + half / 2.0, 2.5, 2.5 - half / 2.0],
            ),
            (Cosine, 0, 3.0, vec![3.0, 3.0, 3.0]),
        ] {
            let schedule = Schedule {
                base: 3.0,
                curve,
                warmup,
                total: expected.len() as u64,
                least,
            };
            for (step, expected) in (1..).zip(expected) {
                let rate = schedule.rate(step);
                assert!(
                    (rate - expected).abs() < 1e-12,
                    "{schedule:?} at {step}: {rate}"
                );
            }
        }
    }

    #[test]
    fn the_highest_rate_is_the_base_to_the_bit() {
        let base = 6.377_844_850_709_217;
        let least = 2.358_060_946_438_517_4;
        assert!(least + (base - least) < base);
        for curve in [Curve::Linear, Curve::Cosine] {
            let schedule = Schedule {
                base,
                curve,
                warmup: 0,
                total: 3,
                least,
            };
            assert_eq!(schedule.rate(1).to_bits(), base.to_bits());
        }
    }

    #[test]
    fn a_ratio_is_rounded_up() {
        for (ratio, total, expected) in [(0.0, 10, 0), (0.03, 100, 3), (0.03, 101, 4), (1.0, 7, 7)]
        {
            assert_eq!(Warmup::Ratio(ratio).steps(total), expected);
        }
        assert_eq!(Warmup::Steps(5).steps(3), 5);
    }

    proptest! {
        #[test]
        fn rates_stay_between_zero_and_the_base_and_fall_after_the_warm_up(
            base in 1e-6f64..10.0,
            curve in prop_oneof![Just(Curve::Constant), Just(Curve::Linear), Just(Curve::Cosine)],
            warmup in 0u64..40,
            total in 1u64..60,
            share in prop_oneof![Just(0.0), 0.0f64..=1.0],
        ) {
            let least = share * base;
            let schedule = Schedule { base, curve, warmup, total, least };
            let rates: Vec<f64> = (1..=total).map(|step| schedule.rate(step)).collect();
            for (k, rate) in rates.iter().enumerate() {
                prop_assert!((0.0..=base).contains(rate));
                // Not by more than rounding.
                prop_assert!((k as u64) < warmup || *rate >= least * (1.0 - 1e-12));
                let Some(next) = rates.get(k + 1) else { continue };
                if (k as u64) < warmup {
                    prop_assert!(next > rate);
                } else {
                    prop_assert!(next <= rate);
                }
            }
            if warmup < total {
                prop_assert_eq!(schedule.rate(warmup + 1), base);
            }
        }
    }
}
