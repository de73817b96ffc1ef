//! How far two models are apart on the same tokens.

use crate::Result;
use candle_core::{DType, Tensor};
use lowrank_adapter::{Ask, Batch, Model, Pass, Selection, run};
use lowrank_ops::rng::{Key, Purpose};

/// What [`compare`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The largest absolute difference of two logits.
    pub max_abs_logit_diff: f64,
    /// The mean over tokens of the Kullback-Leibler divergence of the second model from the first, in nats.
    pub kl: f64,
    /// How many tokens were compared.
    pub tokens: usize,
}

/// Runs both models on `sequences` and compares their logits.
///
/// # Errors
/// If a model refuses a sequence.
pub fn compare(
    first: (&dyn Model, &Selection),
    second: (&dyn Model, &Selection),
    sequences: &[Vec<u32>],
) -> Result<Comparison> {
    let every_token = |ids: &[u32]| Ask::Logits((0..ids.len() as u32).collect());
    compare_asked(first, second, sequences, every_token)
}

/// [`compare`] of classifiers: of the logits of classes, one row of them a sequence, which counts as one token.
///
/// # Errors
/// If a model refuses a sequence.
pub fn compare_classes(
    first: (&dyn Model, &Selection),
    second: (&dyn Model, &Selection),
    sequences: &[Vec<u32>],
) -> Result<Comparison> {
    compare_asked(first, second, sequences, |_| Ask::Classes)
}

fn compare_asked(
    first: (&dyn Model, &Selection),
    second: (&dyn Model, &Selection),
    sequences: &[Vec<u32>],
    ask: impl Fn(&[u32]) -> Ask,
) -> Result<Comparison> {
    let mut found = Comparison {
        max_abs_logit_diff: 0.0,
        kl: 0.0,
        tokens: 0,
    };
    for ids in sequences {
        let first = logits(first, ids, &ask(ids))?;
        let second = logits(second, ids, &ask(ids))?;
        for (p, q) in first.iter().zip(&second) {
            let largest = p
                .iter()
                .zip(q)
                .map(|(p, q)| (p - q).abs())
                .fold(0.0, f64::max);
            found.max_abs_logit_diff = found.max_abs_logit_diff.max(largest);
            found.kl += divergence(p, q);
            found.tokens += 1;
        }
    }
    found.kl /= found.tokens.max(1) as f64;
    Ok(found)
}

/// Token sequences to compare models on when there is no text: uniform over the vocabulary, of different lengths,
/// always the same.
#[must_use]
pub fn probe_tokens(vocab: usize) -> Vec<Vec<u32>> {
    let mut stream = Key::new(0, Purpose::Test).site("merge probe").stream();
    let mut sequence = |length| {
        (0..length)
            .map(|_| stream.below(vocab as u64) as u32)
            .collect()
    };
    [5, 17, 32, 64].map(&mut sequence).to_vec()
}

fn logits(
    (model, selection): (&dyn Model, &Selection),
    ids: &[u32],
    ask: &Ask,
) -> Result<Vec<Vec<f64>>> {
    let batch = Batch::sequence(ids, 0)?;
    let mut pass = Pass::evaluation(selection.clone());
    let logits: Tensor = run(model, &batch, ask, None, &mut pass)?;
    Ok(logits.to_dtype(DType::F64)?.to_vec2()?)
}

fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let log_normaliser = |logits: &[f64]| {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + logits
            .iter()
            .map(|logit| (logit - max).exp())
            .sum::<f64>()
            .ln()
    };
    let (norm_p, norm_q) = (log_normaliser(p), log_normaliser(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (log_p, log_q) = (p - norm_p, q - norm_q);
        log_p.exp() * (log_p - log_q)
    });
    // Rounding may leave a tiny negative sum.
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        // p = (1/2, 1/2), q = (1/4, 3/4): KL = ln(2)/2 + ln(2/3)/2.
        let p = [3.0, 3.0];
        let q = [1.0, 1.0 + 3f64.ln()];
        let expected = 0.5 * 2f64.ln() + 0.5 * (2.0 / 3.0f64).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-15);
        assert_eq!(divergence(&q, &q), 0.0);
    }

    #[test]
    fn probe_tokens_are_in_the_vocabulary_and_fixed() {
        let sequences = probe_tokens(97);
        assert_eq!(
            sequences.iter().map(Vec::len).collect::<Vec<_>>(),
            [5, 17, 32, 64]
        );
        assert!(sequences.iter().flatten().all(|&id| id < 97));
        assert_eq!(sequences, probe_tokens(97));
    }
}
