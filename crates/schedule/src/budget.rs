//! How many ranks may live after each step.

/// A number of ranks over the course of a run: constant at first, then along a curve, then constant again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Ranks at the start, over all sites together.
    pub first: usize,
    /// Ranks at the end.
    pub last: usize,
    /// The curve between the two.
    pub shape: Shape,
    /// For so many steps there are as many as at the start, and nothing is decided.
    pub warmup: u64,
    /// For so many steps before the end there are as many as at the end.
    pub cooldown: u64,
    /// In between, ranks are decided upon at multiples of this many steps; 0 is never.
    pub every: u64,
}

/// The curve of a [`Budget`], over the share p of the steps that are done between warm-up and cool-down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As many as at the start until the cool-down.
    Constant,
    /// last + (first - last)(1 - p).
    Linear,
    /// last + (first - last)(1 - p)³ (AdaLoRA, Zhang et al. 2023, Eq. 12).
    Cubic,
}

/// What a [`Budget`] says of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    /// So many ranks may live.
    pub ranks: usize,
    /// Whether ranks are decided upon after this step.
    pub due: bool,
}

impl Budget {
    /// After step `step` (from 1) of `total`; 0 is before the first.
    #[must_use]
    pub fn at(&self, step: u64, total: u64) -> Allotment {
        let settled = total.saturating_sub(self.cooldown);
        if step <= self.warmup {
            return Allotment {
                ranks: self.first,
                due: false,
            };
        }
        if step > settled {
            return Allotment {
                ranks: self.last,
                due: true,
            };
        }
        // `step` lies between the two, so that the difference is at least 1.
        let left = 1.0 - (step - self.warmup) as f64 / (settled - self.warmup) as f64;
        let (first, last) = (self.first as f64, self.last as f64);
        let share = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => left,
            Shape::Cubic => left.powi(3),
        };
        Allotment {
            // Truncated, as PEFT does.
            ranks: ((first - last) * share + last) as usize,
            due: self.every != 0 && step.is_multiple_of(self.every),
        }
    }
}

/// Ranks that rise or fall evenly from the first layer to the last, rounded half up (PRILoRA, Benedek and Wolf 2024). A
/// single layer gets `first`.
#[must_use]
pub fn ramp(first: usize, last: usize, layers: usize) -> Vec<usize> {
    let (from, to) = (first as f64, last as f64);
    let between = layers.saturating_sub(1).max(1) as f64;
    let exact = |layer: usize| from + (to - from) * layer as f64 / between;
    (0..layers)
        .map(|layer| (exact(layer) + 0.5) as usize)
        .collect()
}
