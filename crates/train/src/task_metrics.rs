//! What classifications and regressions are judged by, as scikit-learn and scipy define it, edge cases included.

use std::collections::BTreeMap;

/// The share of predictions that are right; NaN if there are none.
#[must_use]
pub fn accuracy(predictions: &[usize], answers: &[usize]) -> f64 {
    let pairs = predictions.iter().zip(answers);
    let right = pairs.filter(|(prediction, answer)| prediction == answer);
    right.count() as f64 / answers.len() as f64
}

/// The harmonic mean of precision and recall of one class; 0 if it is neither predicted nor there.
#[must_use]
pub fn f1(predictions: &[usize], answers: &[usize], class: usize) -> f64 {
    let count = |list: &[usize]| list.iter().filter(|&&found| found == class).count();
    let pairs = predictions.iter().zip(answers);
    let both = pairs.filter(|(prediction, answer)| prediction == answer && **answer == class);
    match count(predictions) + count(answers) {
        0 => 0.0,
        either => 2.0 * both.count() as f64 / either as f64,
    }
}

/// The mean [`f1`] of the classes that are predicted or there; 0 if there are none.
#[must_use]
pub fn f1_macro(predictions: &[usize], answers: &[usize]) -> f64 {
    let mut classes: Vec<usize> = predictions.iter().chain(answers).copied().collect();
    classes.sort_unstable();
    classes.dedup();
    if classes.is_empty() {
        return 0.0;
    }
    let each = classes.iter().map(|&class| f1(predictions, answers, class));
    each.sum::<f64>() / classes.len() as f64
}

/// Matthews' correlation, of any number of classes; 0 if all predictions, or all answers, are of one class.
#[must_use]
pub fn matthews(predictions: &[usize], answers: &[usize]) -> f64 {
    let mut counts: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    let (mut right, mut all) = (0.0, 0.0);
    for (&prediction, &answer) in predictions.iter().zip(answers) {
        counts.entry(prediction).or_default().0 += 1.0;
        counts.entry(answer).or_default().1 += 1.0;
        right += f64::from(u8::from(prediction == answer));
        all += 1.0;
    }
    let sum = |term: fn(&(f64, f64)) -> f64| counts.values().map(term).sum::<f64>();
    let together = right * all - sum(|(predicted, there)| predicted * there);
    let predicted = all * all - sum(|(predicted, _)| predicted * predicted);
    let there = all * all - sum(|(_, there)| there * there);
    match predicted * there {
        0.0 => 0.0,
        product => together / product.sqrt(),
    }
}

/// Pearson's correlation; NaN if there are fewer than two pairs, one side is constant, or a number is NaN.
#[must_use]
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    #[expect(clippy::float_cmp, reason = "a constant is equal values")]
    let constant = |list: &[f64]| list.windows(2).all(|pair| pair[0] == pair[1]);
    if a.len() < 2 || a.len() != b.len() || constant(a) || constant(b) {
        return f64::NAN;
    }
    let centred = |list: &[f64]| -> Vec<f64> {
        let mean = list.iter().sum::<f64>() / list.len() as f64;
        let centred: Vec<f64> = list.iter().map(|value| value - mean).collect();
        // Divided by the largest first, so that squares neither overflow nor vanish.
        let largest = centred.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let scaled: Vec<f64> = centred.iter().map(|x| x / largest).collect();
        let norm = scaled.iter().map(|x| x * x).sum::<f64>().sqrt();
        scaled.iter().map(|x| x / norm).collect()
    };
    let (a, b) = (centred(a), centred(b));
    let products = a.iter().zip(&b).map(|(a, b)| a * b);
    products.sum::<f64>().clamp(-1.0, 1.0)
}

/// Spearman's correlation: [`pearson`] of ranks, the mean rank where values are equal.
#[must_use]
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    if a.iter().chain(b).any(|value| value.is_nan()) {
        return f64::NAN;
    }
    pearson(&ranks(a), &ranks(b))
}

/// From 1, in ascending order.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0.0;
    #[expect(clippy::float_cmp, reason = "ties are equal values")]
    for equal in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let count = equal.len() as f64;
        for &i in equal {
            ranks[i] = before + (count + 1.0) / 2.0;
        }
        before += count;
    }
    ranks
}

/// The mean of the squared differences; NaN if there are none.
#[must_use]
pub fn mean_squared_error(predictions: &[f64], answers: &[f64]) -> f64 {
    let pairs = predictions.iter().zip(answers);
    let squares = pairs.map(|(prediction, answer)| (prediction - answer).powi(2));
    squares.sum::<f64>() / answers.len() as f64
}

/// The names of what a classification is judged by.
pub const OF_CLASSES: [&str; 3] = ["accuracy", "f1", "matthews"];

/// The names of what a regression is judged by.
pub const OF_VALUES: [&str; 3] = ["mse", "pearson", "spearman"];

/// Every metric of a classification: `accuracy`, `f1` (of class 1 if there are two classes, else the mean over classes) and
/// `matthews`.
#[must_use]
pub fn of_classes(
    predictions: &[usize],
    answers: &[usize],
    num_labels: usize,
) -> BTreeMap<String, f64> {
    let f1 = match num_labels {
        2 => f1(predictions, answers, 1),
        _ => f1_macro(predictions, answers),
    };
    let values = [
        accuracy(predictions, answers),
        f1,
        matthews(predictions, answers),
    ];
    named(OF_CLASSES, values)
}

/// Every metric of a regression: `mse`, `pearson` and `spearman`.
#[must_use]
pub fn of_values(predictions: &[f64], answers: &[f64]) -> BTreeMap<String, f64> {
    let values = [
        mean_squared_error(predictions, answers),
        pearson(predictions, answers),
        spearman(predictions, answers),
    ];
    named(OF_VALUES, values)
}

fn named<const N: usize>(names: [&str; N], values: [f64; N]) -> BTreeMap<String, f64> {
    let names = names.into_iter().map(str::to_owned);
    names.zip(values).collect()
}
