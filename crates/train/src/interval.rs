//! How far a share that was counted may lie from the true one.

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % interval of a share, of which `right` of `count` were seen: (low, high), within 0 and 1. Of nothing it is
/// everything.
///
/// ```
/// let (low, high) = lowrank_train::wilson(30, 40);
/// assert!((low - 0.5981).abs() < 1e-4 && (high - 0.8581).abs() < 1e-4);
/// ```
#[must_use]
pub fn wilson(right: u64, count: u64) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    let n = count as f64;
    let p = right as f64 / n;
    let middle = p + Z * Z / (2.0 * n);
    let width = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + Z * Z / n;
    // At the ends the two are equal, but for rounding.
    let low = if right == 0 {
        0.0
    } else {
        (middle - width) / whole
    };
    let high = if right == count {
        1.0
    } else {
        (middle + width) / whole
    };
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::wilson;

    /// Against the roots of the quadratic equation that defines the interval: (p - x)^2 = z^2 x (1 - x) / n.
    #[test]
    fn the_ends_solve_the_equation() {
        for (right, count) in [(0u64, 5u64), (5, 5), (1, 7), (50, 100), (499, 500)] {
            let (low, high) = wilson(right, count);
            let (p, n) = (right as f64 / count as f64, count as f64);
            assert!(0.0 <= low && low <= p && p <= high && high <= 1.0);
            for x in [low, high] {
                let z2 = super::Z * super::Z;
                let difference = (p - x).powi(2) - z2 * x * (1.0 - x) / n;
                assert!(difference.abs() < 1e-12, "{right} of {count}: {x}");
            }
            assert!(high - low > 0.005);
        }
        assert_eq!(wilson(0, 0), (0.0, 1.0));
        assert_eq!(wilson(0, 9).0, 0.0);
        assert_eq!(wilson(9, 9).1, 1.0);
        assert_eq!(wilson(0, 500).0, 0.0);
    }
}
