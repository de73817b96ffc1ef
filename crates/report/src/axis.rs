//! Round numbers beside a plot.

use crate::numbers::{scientific, significant};

/// A range with round numbers in it.
pub(crate) struct Axis {
    from: f64,
    to: f64,
    step: f64,
    /// The lines of an axis whose numbers grow by factors.
    factors: Vec<f64>,
}

impl Axis {
    /// From 0 to the last step, which need not be round.
    pub fn steps(last: u64) -> Self {
        let to = last as f64;
        let step = round(to / 6.0).max(1.0);
        Self {
            from: 0.0,
            to,
            step,
            factors: Vec::new(),
        }
    }

    /// Both ends are round.
    pub fn new(least: f64, greatest: f64) -> Self {
        let (mut least, mut greatest) = (least, greatest);
        // What differs by rounding only has no shape to show.
        let size = least.abs().max(greatest.abs());
        if greatest - least <= size * 1e-9 {
            let around = if size == 0.0 { 1.0 } else { size * 0.1 };
            (least, greatest) = (least - around, greatest + around);
            if size == 0.0 {
                least = 0.0;
            }
        }
        let step = round((greatest - least) / 5.0);
        // An end that rounding has moved over a line is still on it.
        Self {
            from: (least / step + 1e-9).floor() * step,
            to: (greatest / step - 1e-9).ceil() * step,
            step,
            factors: Vec::new(),
        }
    }

    /// As [`Axis::new`], but equal factors are equally far apart. Both numbers are above 1e-300 and differ.
    pub fn factors(least: f64, greatest: f64) -> Self {
        // A line more and the axis would be crowded: only powers of ten then, and of many only some.
        const MOST: usize = 8;
        let (low, high) = (least.log10().floor() as i32, greatest.log10().ceil() as i32);
        let lines = |factors: &[f64]| -> Vec<f64> {
            let powers = (low..=high)
                .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
            let mut lines: Vec<f64> = powers.collect();
            let begin = lines.iter().rposition(|line| *line <= least).unwrap_or(0);
            let end = lines
                .iter()
                .position(|line| *line >= greatest)
                .unwrap_or(lines.len() - 1);
            lines.truncate(end + 1);
            lines.split_off(begin.min(end))
        };
        let fine = lines(&[1.0, 2.0, 5.0]);
        let ends = (fine[0], fine[fine.len() - 1]);
        let shown = match fine.len() <= MOST {
            true => fine,
            false => {
                let coarse = lines(&[1.0]);
                let inside = coarse
                    .into_iter()
                    .filter(|line| (ends.0..=ends.1).contains(line));
                let inside: Vec<f64> = inside.collect();
                let every = inside.len().div_ceil(MOST);
                inside.into_iter().step_by(every.max(1)).collect()
            }
        };
        Self {
            from: ends.0,
            to: ends.1,
            step: 1.0,
            factors: shown,
        }
    }

    pub fn share(&self, number: f64) -> f64 {
        match self.factors.is_empty() {
            true => (number - self.from) / (self.to - self.from),
            false => (number.ln() - self.from.ln()) / (self.to.ln() - self.from.ln()),
        }
    }

    pub fn lines(&self) -> Vec<f64> {
        if !self.factors.is_empty() {
            return self.factors.clone();
        }
        let count = ((self.to - self.from) / self.step * (1.0 + 1e-9)).floor() as u64;
        (0..=count.min(20))
            .map(|at| self.from + at as f64 * self.step)
            .collect()
    }

    /// With as many digits as the distance between lines needs.
    pub fn label(&self, number: f64) -> String {
        if !self.factors.is_empty() {
            return significant(number);
        }
        let size = self.from.abs().max(self.to.abs());
        if number.abs() < self.step * 1e-6 {
            return "0".to_owned();
        }
        let (unit, sign) = match size {
            size if !(1e-3..1e12).contains(&size) => return scientific(number),
            size if size >= 1e9 => (1e9, "G"),
            size if size >= 1e6 => (1e6, "M"),
            size if size >= 1e4 => (1e3, "k"),
            _ => (1.0, ""),
        };
        let digits = -((self.step / unit).log10() + 1e-9).floor();
        let places = digits.clamp(0.0, 12.0) as usize;
        format!("{:.places$}{sign}", number / unit)
    }
}

/// The first of 1, 2 and 5 times a power of ten that is not below a number.
fn round(number: f64) -> f64 {
    let size = 10f64.powf(number.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * size);
    let step = steps
        .into_iter()
        .find(|step| *step >= number * (1.0 - 1e-9));
    step.unwrap_or(10.0 * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        let labels = |axis: Axis| -> Vec<String> {
            axis.lines()
                .into_iter()
                .map(|number| axis.label(number))
                .collect()
        };
        assert_eq!(
            labels(Axis::new(0.0, 2e-3)),
            ["0", "0.0005", "0.0010", "0.0015", "0.0020"]
        );
        assert_eq!(
            labels(Axis::new(0.0, 2e-5)),
            ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]
        );
        assert_eq!(
            labels(Axis::new(-0.3, 0.62)),
            ["-0.4", "-0.2", "0", "0.2", "0.4", "0.6", "0.8"]
        );
        assert_eq!(
            labels(Axis::new(0.0, 43_000.0)),
            ["0", "10k", "20k", "30k", "40k", "50k"]
        );
        assert_eq!(
            labels(Axis::new(9.2e5, 3.1e6)),
            ["0.5M", "1.0M", "1.5M", "2.0M", "2.5M", "3.0M", "3.5M"]
        );
        assert_eq!(labels(Axis::steps(150)), ["0", "50", "100", "150"]);
        assert_eq!(labels(Axis::steps(1)), ["0", "1"]);
        assert_eq!(labels(Axis::steps(7)), ["0", "2", "4", "6"]);
        let ends: Vec<f64> = [0.7, 1.0, 1.1, 2.3, 6.0].map(round).into();
        assert_eq!(ends, [1.0, 1.0, 2.0, 5.0, 10.0]);
    }

    #[test]
    fn factors_are_equally_far_apart() {
        let axis = Axis::factors(0.13, 12.3);
        assert_eq!(axis.lines(), [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(axis.label(axis.lines()[1]), "0.2");
        assert!((axis.share(0.1), axis.share(20.0)) == (0.0, 1.0));
        let middle = (0.1f64 * 20.0).sqrt();
        assert!((axis.share(middle) - 0.5).abs() < 1e-12);
        let many = Axis::factors(3e-9, 4e7);
        assert!(many.lines().len() <= 8 && many.lines()[0] == 1e-8);
        assert!((many.from, many.to) == (2e-9, 5e7));
        for (least, greatest) in [
            (1e-300, 1e300),
            (1.0, 100.0),
            (0.999_999, 21.0),
            (2e-300, 1.0),
        ] {
            let axis = Axis::factors(least, greatest);
            let shares = [least, greatest].map(|number| axis.share(number));
            assert!(
                shares
                    .iter()
                    .all(|share| (-1e-9..=1.0 + 1e-9).contains(share)),
                "{least}: {shares:?}"
            );
        }
    }
}
