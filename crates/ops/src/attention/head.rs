//! One head of attention: its scores, block by block, in scratch memory.

use super::{Attention, Sizes};
use crate::attention_mask::Block;
use crate::gemm::Before::{Added, Ignored};
use crate::gemm::{Matrix, matmul_here};
use crate::rows::{exp_and_sum, max};
use crate::simd::Level;
use crate::{Float, Result, leveled, unwritten};
use std::ops::Range;

/// The numbers of one head of a sequence where they lie: those of a token together, those of the next a step further.
#[derive(Clone, Copy)]
pub(super) struct Lying<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) first: usize,
    pub(super) step: usize,
}

impl<'a, T: Float> Lying<'a, T> {
    /// Some tokens, [tokens, d].
    fn rows(&self, tokens: Range<usize>, d: usize) -> Result<Matrix<'a, T>> {
        let first = self.first + tokens.start * self.step;
        Matrix::strided(self.numbers, first, (tokens.len(), d), self.step)
    }
}

/// Tokens of a head side by side, [d, length]: what queries are multiplied with.
pub(super) struct Columns<T> {
    numbers: Vec<T>,
    length: usize,
    step: usize,
}

impl<T: Float> Columns<T> {
    /// From [length, d].
    pub(super) fn new(head: Lying<'_, T>, length: usize, d: usize) -> Self {
        const TOKENS: usize = 16;
        // An odd number of cache lines: rows of an even one would compete for the same places of the cache.
        let step = (length.div_ceil(TOKENS) | 1) * TOKENS;
        let mut numbers = vec![T::ZERO; d * step];
        for first in (0..length).step_by(TOKENS) {
            for (i, into) in numbers.chunks_exact_mut(step).enumerate() {
                let into = &mut into[first..length.min(first + TOKENS)];
                for (token, into) in (first..).zip(into) {
                    *into = head.numbers[head.first + token * head.step + i];
                }
            }
        }
        Self {
            numbers,
            length,
            step,
        }
    }

    /// Some tokens, [d, tokens].
    fn part(&self, tokens: Range<usize>) -> Result<Matrix<'_, T>> {
        let d = self.numbers.len() / self.step;
        debug_assert!(tokens.end <= self.length, "no such tokens");
        Matrix::strided(&self.numbers, tokens.start, (d, tokens.len()), self.step)
    }
}

/// A key head, its tokens rotated if they are to be.
pub(super) struct Keys<T> {
    /// [keys, d].
    pub(super) rows: Vec<T>,
    pub(super) columns: Columns<T>,
}

/// The gradients of one head, and of the keys and values that it sees: [length, d].
pub(super) struct Grads<'a, T> {
    pub(super) q: &'a mut [T],
    pub(super) k: &'a mut [T],
    pub(super) v: &'a mut [T],
}

impl<T: Float> Attention<T> {
    /// Copies a head of row `row`, [length, d], rotated if it is to be.
    pub(super) fn copied(&self, x: Lying<'_, T>, row: usize, length: usize) -> Vec<T> {
        let d = self.sizes.d;
        let mut head = unwritten(length * d);
        for (token, head) in head.chunks_exact_mut(d).enumerate() {
            let x = &x.numbers[x.first + token * x.step..][..d];
            match &self.turn {
                None => head.copy_from_slice(x),
                Some(turn) => turn.turn(row * length + token, x, head, T::ONE),
            }
        }
        head
    }

    /// Turns the gradients of rotated tokens back.
    pub(super) fn turn_back(&self, grads: &mut [T], row: usize, length: usize) {
        if let Some(turn) = &self.turn {
            let mut back = vec![T::ZERO; self.sizes.d];
            for (token, grad) in grads.chunks_exact_mut(self.sizes.d).enumerate() {
                turn.turn(row * length + token, grad, &mut back, -T::ONE);
                grad.copy_from_slice(&back);
            }
        }
    }

    /// Room for the scores of any block of a row.
    fn scratch(&self, row: usize) -> Vec<T> {
        let largest = self.blocks[row].iter().map(Block::size).max();
        unwritten(largest.unwrap_or(0))
    }

    /// The scores of a block, [queries, keys], minus infinity where masked: `q` are those of the block.
    fn scores(
        &self,
        row: usize,
        block: &Block,
        q: Matrix<'_, T>,
        k: &Columns<T>,
        scores: &mut [T],
    ) -> Result<()> {
        let seen = block.keys.len();
        let k = k.part(block.keys.clone())?;
        matmul_here(Ignored, T::from_f64(self.scale), q, k, scores)?;
        for (token, scores) in (block.first..).zip(scores.chunks_mut(seen)) {
            self.mask.hide(row, token, block, scores);
        }
        Ok(())
    }

    /// Multiplies what the queries of a block take from its keys, or gradients of that, by dropout's mask: of the head `at`
    /// of all rows.
    fn drop(&self, at: usize, block: &Block, shares: &mut [T]) {
        let Some(dropout) = &self.dropout else { return };
        let Sizes { tokens, keys, .. } = self.sizes;
        let first = |token: usize| (at * tokens + token) * keys + block.keys.start;
        for (token, shares) in (block.first..).zip(shares.chunks_mut(block.keys.len())) {
            dropout.apply_from(first(token), shares);
        }
    }

    /// The head `at` of all rows: its output [tokens, d] and its log-sums.
    pub(super) fn head(
        &self,
        at: usize,
        q: &[T],
        k: &Columns<T>,
        v: Lying<'_, T>,
    ) -> Result<(Vec<T>, Vec<f64>)> {
        let (d, row) = (self.sizes.d, at / self.sizes.heads);
        let mut scratch = self.scratch(row);
        let mut out = unwritten(q.len());
        let mut log_sums = vec![0.0; self.sizes.tokens];
        for block in &self.blocks[row] {
            let scores = &mut scratch[..block.size()];
            let (queries, seen) = (of(block.first, block.count, d), block.keys.len());
            let block_q = Matrix::new(&q[queries.clone()], block.count, d)?;
            self.scores(row, block, block_q, k, scores)?;
            let log_sums = &mut log_sums[block.first..][..block.count];
            softmax(Level::used(), scores, log_sums);
            self.drop(at, block, scores);
            let scores = Matrix::new(scores, block.count, seen)?;
            let v = v.rows(block.keys.clone(), d)?;
            matmul_here(Ignored, T::ONE, scores, v, &mut out[queries])?;
        }
        Ok((out, log_sums))
    }

    /// The share of the gradients of the head `at` of all rows: `q` is [tokens, d], and so is `grad`.
    pub(super) fn head_back(
        &self,
        at: usize,
        (q, k, v): (&[T], &Keys<T>, &Columns<T>),
        (grad, log_sums): (Lying<'_, T>, &[f64]),
        grads: Grads<'_, T>,
    ) -> Result<()> {
        let (d, row) = (self.sizes.d, at / self.sizes.heads);
        let scale = T::from_f64(self.scale);
        let (mut scores, mut slopes) = (self.scratch(row), self.scratch(row));
        for block in &self.blocks[row] {
            let (probabilities, slopes) =
                (&mut scores[..block.size()], &mut slopes[..block.size()]);
            let (count, seen) = (block.count, block.keys.len());
            let (queries, keys) = (of(block.first, count, d), of(block.keys.start, seen, d));
            let q = Matrix::new(&q[queries.clone()], count, d)?;
            self.scores(row, block, q, &k.columns, probabilities)?;
            let block_grad = grad.rows(block.first..block.first + count, d)?;
            let values = v.part(block.keys.clone())?;
            matmul_here(Ignored, T::ONE, block_grad, values, slopes)?;
            self.drop(at, block, slopes);
            let log_sums = &log_sums[block.first..][..count];
            softmax_slopes(Level::used(), probabilities, slopes, log_sums);
            self.drop(at, block, probabilities);
            let p = Matrix::new(probabilities, count, seen)?.transposed();
            matmul_here(Added, T::ONE, p, block_grad, &mut grads.v[keys.clone()])?;
            let slopes = Matrix::new(slopes, count, seen)?;
            let k = Matrix::new(&k.rows[keys.clone()], seen, d)?;
            matmul_here(Ignored, scale, slopes, k, &mut grads.q[queries])?;
            matmul_here(Added, scale, slopes.transposed(), q, &mut grads.k[keys])?;
        }
        Ok(())
    }
}

leveled! {
    /// Softmax of every row of scores, one for each of `log_sums`, where log(sum(exp(scores))) is put.
    fn softmax<T: Float>(scores: &mut [T], log_sums: &mut [f64]) {
        let seen = scores.len() / log_sums.len().max(1);
        for (scores, log_sum) in scores.chunks_mut(seen).zip(log_sums) {
            let max = max(scores);
            let total = exp_and_sum(scores, max);
            let share = T::from_f64(1.0 / total);
            scores.iter_mut().for_each(|score| *score *= share);
            *log_sum = max.to_f64() + total.ln();
        }
    }
}

leveled! {
    /// Turns scores into probabilities p and the gradients dp of those into the scores': p (dp - sum(p dp)).
    fn softmax_slopes<T: Float>(scores: &mut [T], slopes: &mut [T], log_sums: &[f64]) {
        const LANES: usize = 16;
        const TURNS: usize = 8;
        let seen = scores.len() / log_sums.len().max(1);
        let rows = scores.chunks_mut(seen).zip(slopes.chunks_mut(seen));
        for ((scores, slopes), log_sum) in rows.zip(log_sums) {
            let log_sum = T::from_f64(*log_sum);
            // A few products in their own precision, those sums in f64.
            let mut mean = 0f64;
            let parts = scores.chunks_mut(LANES * TURNS).zip(slopes.chunks(LANES * TURNS));
            for (scores, slopes) in parts {
                let mut lanes = [T::ZERO; LANES];
                let (scores, rest) = scores.as_chunks_mut::<LANES>();
                let (slopes, slopes_rest) = slopes.as_chunks::<LANES>();
                for (scores, slopes) in scores.iter_mut().zip(slopes) {
                    for (lane, (score, slope)) in lanes.iter_mut().zip(scores.iter_mut().zip(slopes)) {
                        *score = Float::exp(*score - log_sum);
                        *lane += *score * *slope;
                    }
                }
                for (score, slope) in rest.iter_mut().zip(slopes_rest) {
                    *score = Float::exp(*score - log_sum);
                    mean += (*score * *slope).to_f64();
                }
                let mut sums = [0f64; LANES];
                for (sum, lane) in sums.iter_mut().zip(lanes) {
                    *sum = lane.to_f64();
                }
                mean += sums.iter().sum::<f64>();
            }
            let mean = T::from_f64(mean);
            for (p, slope) in scores.iter().zip(slopes) {
                *slope = *p * (*slope - mean);
            }
        }
    }
}

/// Where `count` rows of width `d` lie from the row `first` on.
fn of(first: usize, count: usize, d: usize) -> Range<usize> {
    first * d..(first + count) * d
}
