//! Causal grouped-query attention without the matrix of probabilities in the graph.
//!
//! Forward and backward walk over blocks of queries of one segment; a block's scores live in scratch memory, and the
//! backward computes them again from the logarithm of each query's sum of exponentials. Texts that are packed into a row
//! cost what they cost in rows of their own: keys before a segment's first one are never touched. Heads are copied into
//! scratch memory first, so they may lie in any order, and are rotated on the way.

use crate::attention_mask::{AttentionMask, Block};
use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul_add_here, matmul_here};
use crate::rotary::Rotary;
use crate::rows::{add_assign, dot, exp_and_sum, expect_dims, max};
use crate::simd::vectorised;
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, RotaryTable, composed, data, unwritten};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// softmax(scale * q k^T, masked) v: `q` [batch, heads, tokens, d], `k` and `v` [batch, kv_heads, keys, d] ->
/// [batch, heads, tokens, d]. Consecutive heads / kv_heads heads share a key head; there are at least as many
/// keys as tokens, those in front being cached.
///
/// # Errors
/// If the shapes do not fit each other or the mask, or a dtype is neither f32 nor f64, or they differ.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    scale: f64,
) -> Result<Tensor> {
    let sizes = Sizes::of_heads(q, k)?;
    run(q, k, v, mask, scale, sizes, None)
}

/// [`attention`] among the tokens of a batch, as projections leave them: `q` [batch, tokens, heads * d], `k` and `v`
/// [batch, tokens, kv_heads * d] -> [batch, tokens, heads * d], where d is `rotary`'s. Queries and keys are rotated by
/// `positions`, one for each of batch * tokens, as [`rotary`](crate::rotary()) does.
///
/// # Errors
/// As [`attention`], and if `positions` are not so many.
pub fn self_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    (rotary, positions): (&RotaryTable, &[u32]),
    mask: &AttentionMask,
    scale: f64,
) -> Result<Tensor> {
    let sizes = Sizes::of_tokens(q, k, rotary.head_dim())?;
    if positions.len() != sizes.batch * sizes.tokens {
        return Err(Error::Shape {
            op: "self_attention",
            what: "positions",
            got: vec![positions.len()],
            expected: format!("{} * {} positions", sizes.batch, sizes.tokens),
        });
    }
    run(q, k, v, mask, scale, sizes, Some((rotary, positions)))
}

fn run(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    scale: f64,
    sizes: Sizes,
    turn: Option<(&RotaryTable, &[u32])>,
) -> Result<Tensor> {
    expect_dims("attention", "v", v, k.dims())?;
    same_dtype("attention", q, &[("k", k), ("v", v)])?;
    let lengths = [
        (
            "query_segments",
            mask.query_segments.len(),
            sizes.batch * sizes.tokens,
        ),
        (
            "key_segments",
            mask.key_segments.len(),
            sizes.batch * sizes.keys,
        ),
        ("the mask's batch", mask.batch, sizes.batch),
    ];
    for (what, got, expected) in lengths {
        if got != expected {
            let (got, expected) = (vec![got], expected.to_string());
            return Err(Error::Shape {
                op: "attention",
                what,
                got,
                expected,
            });
        }
    }
    if composed::replaces("attention", q)? {
        return match turn {
            None => composed::attention(q, k, v, mask, scale),
            Some(turn) => composed::self_attention(q, k, v, turn, mask, scale),
        };
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    with_float!("attention", q.dtype(), T => {
        let mut op = Attention::<T> {
            sizes,
            blocks: (0..sizes.batch).map(|row| mask.blocks(row)).collect(),
            mask: mask.clone(),
            scale,
            turn: turn.map(|(table, positions)| Rotary::new(table, positions)),
            log_sums: Vec::new(),
        };
        let out = op.forward(&data(&q)?, &data(&k)?, &data(&v)?)?;
        let [out] = tape::record("attention", &[&q, &k, &v], [(out, q.shape().clone())], op)?;
        Ok(out)
    })
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tokens: usize,
    keys: usize,
    d: usize,
    /// Whether the numbers of a token lie together, all heads; else those of a head, all tokens.
    by_token: bool,
}

impl Sizes {
    fn refuse<T>(what: &'static str, got: &Tensor, expected: String) -> Result<T> {
        let got = got.dims().to_vec();
        Err(Error::Shape {
            op: "attention",
            what,
            got,
            expected,
        })
    }

    fn of_heads(q: &Tensor, k: &Tensor) -> Result<Self> {
        let &[batch, heads, tokens, d] = q.dims() else {
            return Self::refuse("q", q, "[batch, heads, tokens, d]".into());
        };
        if q.elem_count() == 0 {
            return Self::refuse("q", q, "[batch, heads, tokens, d], all above 0".into());
        }
        let expected = format!("[{batch}, a divisor of {heads}, at least {tokens}, {d}]");
        let &[k_batch, kv_heads, keys, k_d] = k.dims() else {
            return Self::refuse("k", k, expected);
        };
        let fits = k_batch == batch && k_d == d && keys >= tokens && kv_heads > 0;
        if !fits || !heads.is_multiple_of(kv_heads) {
            return Self::refuse("k", k, expected);
        }
        Ok(Self {
            batch,
            heads,
            kv_heads,
            tokens,
            keys,
            d,
            by_token: false,
        })
    }

    fn of_tokens(q: &Tensor, k: &Tensor, d: usize) -> Result<Self> {
        let (batch, tokens, width) = match *q.dims() {
            [batch, tokens, width] if width % d == 0 && q.elem_count() > 0 => {
                (batch, tokens, width)
            }
            _ => {
                let expected = format!("[batch, tokens, a multiple of {d}], all above 0");
                return Self::refuse("q", q, expected);
            }
        };
        let heads = width / d;
        let kv_heads = match *k.dims() {
            [rows, keys, width]
                if (rows, keys) == (batch, tokens)
                    && width % d == 0
                    && width > 0
                    && heads.is_multiple_of(width / d) =>
            {
                width / d
            }
            _ => {
                let expected = format!("[{batch}, {tokens}, {d} * a divisor of {heads}]");
                return Self::refuse("k", k, expected);
            }
        };
        Ok(Self {
            batch,
            heads,
            kv_heads,
            tokens,
            keys: tokens,
            d,
            by_token: true,
        })
    }

    /// Where the head `head` of `heads` lies, for a sequence of `tokens`: its first number, and the step to the next
    /// token's.
    fn place(&self, row: usize, head: usize, heads: usize, tokens: usize) -> (usize, usize) {
        if self.by_token {
            let step = heads * self.d;
            (row * tokens * step + head * self.d, step)
        } else {
            ((row * heads + head) * tokens * self.d, self.d)
        }
    }
}

struct Attention<T> {
    sizes: Sizes,
    mask: AttentionMask,
    /// Of each row.
    blocks: Vec<Vec<Block>>,
    scale: f64,
    turn: Option<Rotary<T>>,
    /// log(sum(exp(scores))) of every query, [batch * heads * tokens].
    log_sums: Vec<f64>,
}

/// The gradients of one head, and of the keys and values that it sees.
struct Grads<'a, T> {
    q: &'a mut [T],
    k: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Float> Attention<T> {
    /// Copies a head of row `row` out of `x`, [length, d], rotated if it is to be.
    fn copied(&self, x: &[T], (first, step): (usize, usize), row: usize, length: usize) -> Vec<T> {
        let d = self.sizes.d;
        let mut head = unwritten(length * d);
        for (token, head) in head.chunks_exact_mut(d).enumerate() {
            let x = &x[first + token * step..][..d];
            match &self.turn {
                None => head.copy_from_slice(x),
                Some(turn) => turn.turn(row * length + token, x, head, T::ONE),
            }
        }
        head
    }

    /// As [`Self::copied`], never rotated.
    fn plain(&self, x: &[T], (first, step): (usize, usize), length: usize) -> Vec<T> {
        let mut head = Vec::with_capacity(length * self.sizes.d);
        for token in 0..length {
            head.extend_from_slice(&x[first + token * step..][..self.sizes.d]);
        }
        head
    }

    /// Turns the gradients of rotated tokens back.
    fn turn_back(&self, grads: &mut [T], row: usize, length: usize) {
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

    /// The scores of a block, [queries, keys], minus infinity where masked: `q` and `k` are those of the block.
    fn scores(&self, row: usize, block: &Block, q: &[T], k: &[T], scores: &mut [T]) -> Result<()> {
        let (d, seen) = (self.sizes.d, block.keys.len());
        let (q, k) = (Matrix::new(q, block.count, d)?, Matrix::new(k, seen, d)?);
        matmul_here(T::from_f64(self.scale), q, k.transposed(), scores)?;
        for (token, scores) in (block.first..).zip(scores.chunks_mut(seen)) {
            self.mask.hide(row, token, block, scores);
        }
        Ok(())
    }

    fn forward(&mut self, q: &[T], k: &[T], v: &[T]) -> Result<Vec<T>> {
        let Sizes {
            batch,
            heads,
            kv_heads,
            tokens,
            keys,
            d,
            ..
        } = self.sizes;
        let this = &*self;
        let done: Vec<(Vec<T>, Vec<f64>)> = (0..batch * heads)
            .into_par_iter()
            .map(|at| {
                let (row, head) = (at / heads, at % heads);
                let kv = this
                    .sizes
                    .place(row, head / (heads / kv_heads), kv_heads, keys);
                let q = this.copied(q, this.sizes.place(row, head, heads, tokens), row, tokens);
                let k = this.copied(k, kv, row, keys);
                this.head(row, &q, &k, &this.plain(v, kv, keys))
            })
            .collect::<Result<_>>()?;
        let mut out = unwritten(q.len());
        self.scatter(
            &mut out,
            done.iter().map(|(out, _)| out.as_slice()),
            heads,
            tokens,
            d,
        );
        self.log_sums = done
            .into_iter()
            .flat_map(|(_, log_sums)| log_sums)
            .collect();
        Ok(out)
    }

    /// Puts heads [length, d], in order, where they belong.
    fn scatter<'a>(
        &self,
        out: &mut [T],
        parts: impl Iterator<Item = &'a [T]>,
        heads: usize,
        length: usize,
        d: usize,
    ) {
        for (at, part) in parts.enumerate() {
            let (first, step) = self.sizes.place(at / heads, at % heads, heads, length);
            for (token, part) in part.chunks_exact(d).enumerate() {
                out[first + token * step..][..d].copy_from_slice(part);
            }
        }
    }

    /// One head: its output [tokens, d] and its log-sums.
    fn head(&self, row: usize, q: &[T], k: &[T], v: &[T]) -> Result<(Vec<T>, Vec<f64>)> {
        let d = self.sizes.d;
        let mut scratch = self.scratch(row);
        let mut out = unwritten(q.len());
        let mut log_sums = Vec::with_capacity(self.sizes.tokens);
        for block in &self.blocks[row] {
            let scores = &mut scratch[..block.size()];
            let (queries, seen) = (of(block.first, block.count, d), block.keys.len());
            let keys = of(block.keys.start, seen, d);
            self.scores(row, block, &q[queries.clone()], &k[keys.clone()], scores)?;
            vectorised!({
                for scores in scores.chunks_mut(seen) {
                    let max = max(scores);
                    let total = exp_and_sum(scores, max);
                    let share = T::from_f64(1.0 / total);
                    scores.iter_mut().for_each(|score| *score *= share);
                    log_sums.push(max.to_f64() + total.ln());
                }
            });
            let (scores, v) = (
                Matrix::new(scores, block.count, seen)?,
                Matrix::new(&v[keys], seen, d)?,
            );
            matmul_here(T::ONE, scores, v, &mut out[queries])?;
        }
        Ok((out, log_sums))
    }

    /// One head's share of the gradients: `q` and `grad` are [tokens, d].
    fn head_back(
        &self,
        row: usize,
        (q, k, v): (&[T], &[T], &[T]),
        (grad, log_sums): (&[T], &[f64]),
        grads: Grads<'_, T>,
    ) -> Result<()> {
        let d = self.sizes.d;
        let scale = T::from_f64(self.scale);
        let (mut scores, mut slopes) = (self.scratch(row), self.scratch(row));
        for block in &self.blocks[row] {
            let (probabilities, slopes) =
                (&mut scores[..block.size()], &mut slopes[..block.size()]);
            let (count, seen) = (block.count, block.keys.len());
            let (queries, keys) = (of(block.first, count, d), of(block.keys.start, seen, d));
            let (q, k, v) = (&q[queries.clone()], &k[keys.clone()], &v[keys.clone()]);
            self.scores(row, block, q, k, probabilities)?;
            let block_grad = Matrix::new(&grad[queries.clone()], count, d)?;
            let values = Matrix::new(v, seen, d)?;
            matmul_here(T::ONE, block_grad, values.transposed(), slopes)?;
            vectorised!({
                // ds = p * (dp - sum(p * dp)).
                let queries = probabilities.chunks_mut(seen).zip(slopes.chunks_mut(seen));
                for ((scores, slopes), log_sum) in queries.zip(&log_sums[block.first..]) {
                    let log_sum = T::from_f64(*log_sum);
                    for score in &mut *scores {
                        *score = Float::exp(*score - log_sum);
                    }
                    let mean = T::from_f64(dot(scores, slopes));
                    for (p, slope) in scores.iter().zip(slopes) {
                        *slope = *p * (*slope - mean);
                    }
                }
            });
            let p = Matrix::new(probabilities, count, seen)?.transposed();
            matmul_add_here(T::ONE, p, block_grad, &mut grads.v[keys.clone()])?;
            let slopes = Matrix::new(slopes, count, seen)?;
            let k = Matrix::new(k, seen, d)?;
            matmul_here(scale, slopes, k, &mut grads.q[queries])?;
            let q = Matrix::new(q, count, d)?;
            matmul_add_here(scale, slopes.transposed(), q, &mut grads.k[keys])?;
        }
        Ok(())
    }
}

/// Where `count` rows of width `d` lie from the row `first` on.
fn of(first: usize, count: usize, d: usize) -> Range<usize> {
    first * d..(first + count) * d
}

impl<T: Float> Backward<T> for Attention<T> {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let Sizes {
            batch,
            heads,
            kv_heads,
            tokens,
            keys,
            d,
            ..
        } = self.sizes;
        let (q, k, v) = (inputs.data(0)?, inputs.data(1)?, inputs.data(2)?);
        let (q, k, v) = (&*q, &*k, &*v);
        let group = heads / kv_heads;
        let found: Vec<[Vec<T>; 3]> = (0..batch * heads)
            .into_par_iter()
            .map(|at| {
                let (row, head) = (at / heads, at % heads);
                let place = self.sizes.place(row, head, heads, tokens);
                let kv = self.sizes.place(row, head / group, kv_heads, keys);
                let mut own = [
                    unwritten(tokens * d),
                    vec![T::ZERO; keys * d],
                    vec![T::ZERO; keys * d],
                ];
                let [q_grad, k_grad, v_grad] = &mut own;
                let known = (
                    &*self.copied(q, place, row, tokens),
                    &*self.copied(k, kv, row, keys),
                    &*self.plain(v, kv, keys),
                );
                let given = (
                    &*self.plain(grad, place, tokens),
                    &self.log_sums[at * tokens..][..tokens],
                );
                let grads = Grads {
                    q: q_grad,
                    k: k_grad,
                    v: v_grad,
                };
                self.head_back(row, known, given, grads)?;
                self.turn_back(q_grad, row, tokens);
                Ok(own)
            })
            .collect::<Result<_>>()?;
        if inputs.wanted(0) {
            let mut q_grad = unwritten(q.len());
            self.scatter(
                &mut q_grad,
                found.iter().map(|[q, _, _]| q.as_slice()),
                heads,
                tokens,
                d,
            );
            inputs.add(0, Arc::new(q_grad));
        }
        // A key head adds up the heads that share it one after the other, so its bits are always the same.
        for (i, at) in [(1, 1), (2, 2)] {
            if !inputs.wanted(i) {
                continue;
            }
            let summed: Vec<Vec<T>> = found
                .par_chunks(group)
                .enumerate()
                .map(|(kv, members)| {
                    let mut sum = members[0][at].clone();
                    for member in &members[1..] {
                        add_assign(&mut sum, &member[at]);
                    }
                    if i == 1 {
                        self.turn_back(&mut sum, kv / kv_heads, keys);
                    }
                    sum
                })
                .collect();
            let mut grad = unwritten(k.len());
            self.scatter(
                &mut grad,
                summed.iter().map(Vec::as_slice),
                kv_heads,
                keys,
                d,
            );
            inputs.add(i, Arc::new(grad));
        }
        Ok(())
    }
}
