//! Causal grouped-query attention without the matrix of probabilities in the graph.
//!
//! Forward and backward walk over blocks of queries; a block's scores live in scratch memory, and the backward
//! computes them again from the logarithm of each query's sum of exponentials.

use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul_add_here, matmul_here};
use crate::rows::{dot, expect_dims, max, sum, tensor};
use crate::{Error, Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

/// Who may see whom. Segments number the texts that share a row; 0 is padding.
///
/// The last query of a row is the last key of that row. A query sees itself and, unless it is padding, the keys
/// of its segment before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionMask {
    /// The segment of each query, [batch * tokens].
    pub query_segments: Vec<u32>,
    /// The segment of each key, [batch * keys].
    pub key_segments: Vec<u32>,
    /// The number of rows.
    pub batch: usize,
}

impl AttentionMask {
    /// Writes minus infinity over the scores of the first keys of a row where the query may not see them.
    fn hide<T: Float>(&self, sequence: usize, token: usize, sizes: Sizes, scores: &mut [T]) {
        let Sizes { tokens, keys, .. } = sizes;
        let own = keys - tokens + token;
        let hidden = T::from_f64(f64::NEG_INFINITY);
        let segment = self.query_segments[sequence * tokens + token];
        let (before, after) = scores.split_at_mut(own);
        after[1..].fill(hidden);
        for (score, other) in before.iter_mut().zip(&self.key_segments[sequence * keys..]) {
            *score = if *other == segment && segment != 0 {
                *score
            } else {
                hidden
            };
        }
    }
}

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
    let sizes = Sizes::new(q, k)?;
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
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    Ok(with_float!("attention", q.dtype(), T => {
        let mask = Arc::new(mask.clone());
        let log_sums = OnceLock::new();
        q.apply_op3(&k, &v, Attention::<T> { sizes, mask, scale, log_sums, dtype: PhantomData })
    })?)
}

/// Queries that are worked on together.
const BLOCK: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tokens: usize,
    keys: usize,
    d: usize,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor) -> Result<Self> {
        let shape = |what, got: &Tensor, expected| {
            let got = got.dims().to_vec();
            Err(Error::Shape {
                op: "attention",
                what,
                got,
                expected,
            })
        };
        let &[batch, heads, tokens, d] = q.dims() else {
            return shape("q", q, "[batch, heads, tokens, d]".into());
        };
        if q.elem_count() == 0 {
            return shape("q", q, "[batch, heads, tokens, d], all above 0".into());
        }
        let expected = format!("[{batch}, a divisor of {heads}, at least {tokens}, {d}]");
        let &[k_batch, kv_heads, keys, k_d] = k.dims() else {
            return shape("k", k, expected);
        };
        let fits = k_batch == batch && k_d == d && keys >= tokens && kv_heads > 0;
        if !fits || !heads.is_multiple_of(kv_heads) {
            return shape("k", k, expected);
        }
        Ok(Self {
            batch,
            heads,
            kv_heads,
            tokens,
            keys,
            d,
        })
    }

    /// Blocks of queries: (first, how many, how many keys the last of them may see).
    fn blocks(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.tokens).step_by(BLOCK).map(move |first| {
            let count = BLOCK.min(self.tokens - first);
            (first, count, self.keys - self.tokens + first + count)
        })
    }
}

struct Attention<T> {
    sizes: Sizes,
    mask: Arc<AttentionMask>,
    scale: f64,
    /// log(sum(exp(scores))) of every query, [batch * heads * tokens].
    log_sums: OnceLock<Vec<f64>>,
    dtype: PhantomData<T>,
}

/// The gradients of one key head, and of the queries that share it.
struct Grads<'a, T> {
    q: &'a mut [T],
    k: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Float> Attention<T> {
    /// The scores of a block of queries, [count, seen], minus infinity where masked.
    fn scores(
        &self,
        sequence: usize,
        (first, count, seen): (usize, usize, usize),
        q: &[T],
        k: &[T],
        scores: &mut [T],
    ) -> Result<()> {
        let d = self.sizes.d;
        let (q, k) = (Matrix::new(q, count, d)?, Matrix::new(k, seen, d)?);
        matmul_here(T::from_f64(self.scale), q, k.transposed(), scores)?;
        for (row, scores) in scores.chunks_mut(seen).enumerate() {
            self.mask.hide(sequence, first + row, self.sizes, scores);
        }
        Ok(())
    }

    /// One head: writes its output [tokens, d] and returns its log-sums.
    fn head(&self, sequence: usize, q: &[T], k: &[T], v: &[T], out: &mut [T]) -> Result<Vec<f64>> {
        let d = self.sizes.d;
        let mut scratch = vec![T::ZERO; BLOCK.min(self.sizes.tokens) * self.sizes.keys];
        let mut log_sums = Vec::with_capacity(self.sizes.tokens);
        for block @ (first, count, seen) in self.sizes.blocks() {
            let scores = &mut scratch[..count * seen];
            self.scores(
                sequence,
                block,
                &q[first * d..][..count * d],
                &k[..seen * d],
                scores,
            )?;
            for row in scores.chunks_mut(seen) {
                let max = max(row);
                row.iter_mut()
                    .for_each(|score| *score = Float::exp(*score - max));
                let total = sum(row, |x| x.to_f64());
                let share = T::from_f64(1.0 / total);
                row.iter_mut().for_each(|score| *score *= share);
                log_sums.push(max.to_f64() + total.ln());
            }
            let (scores, v) = (
                Matrix::new(scores, count, seen)?,
                Matrix::new(&v[..seen * d], seen, d)?,
            );
            matmul_here(T::ONE, scores, v, &mut out[first * d..][..count * d])?;
        }
        Ok(log_sums)
    }

    /// One head's share of the gradients: `q`, `out` and `grad` are [tokens, d].
    fn head_back(
        &self,
        sequence: usize,
        (q, k, v): (&[T], &[T], &[T]),
        (out, grad, log_sums): (&[T], &[T], &[f64]),
        grads: Grads<'_, T>,
    ) -> Result<()> {
        let d = self.sizes.d;
        let scale = T::from_f64(self.scale);
        let mut scratch = vec![T::ZERO; 2 * BLOCK.min(self.sizes.tokens) * self.sizes.keys];
        for block @ (first, count, seen) in self.sizes.blocks() {
            let (probabilities, rest) = scratch.split_at_mut(count * seen);
            let slopes = &mut rest[..count * seen];
            let rows = first * d..(first + count) * d;
            let (q, k, v) = (&q[rows.clone()], &k[..seen * d], &v[..seen * d]);
            self.scores(sequence, block, q, k, probabilities)?;
            for (row, log_sum) in probabilities.chunks_mut(seen).zip(&log_sums[first..]) {
                row.iter_mut()
                    .for_each(|score| *score = Float::exp(T::from_f64(score.to_f64() - log_sum)));
            }
            let block_grad = Matrix::new(&grad[rows.clone()], count, d)?;
            let p = Matrix::new(probabilities, count, seen)?;
            matmul_add_here(T::ONE, p.transposed(), block_grad, &mut grads.v[..seen * d])?;
            matmul_here(
                T::ONE,
                block_grad,
                Matrix::new(v, seen, d)?.transposed(),
                slopes,
            )?;
            // ds = p * (dp - sum(p * dp)), and that sum is the product of the output with its gradient.
            for (row, slopes) in slopes.chunks_mut(seen).enumerate() {
                let at = (first + row) * d;
                let mean = dot(&out[at..][..d], &grad[at..][..d]);
                let mean = T::from_f64(mean);
                for (slope, p) in slopes.iter_mut().zip(&probabilities[row * seen..]) {
                    *slope = *p * (*slope - mean);
                }
            }
            let slopes = Matrix::new(slopes, count, seen)?;
            matmul_here(scale, slopes, Matrix::new(k, seen, d)?, &mut grads.q[rows])?;
            let q = Matrix::new(q, count, d)?;
            matmul_add_here(scale, slopes.transposed(), q, &mut grads.k[..seen * d])?;
        }
        Ok(())
    }
}

impl<T: Float> CustomOp3 for Attention<T> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Sizes {
            heads,
            kv_heads,
            tokens,
            keys,
            d,
            ..
        } = self.sizes;
        let q = argument::<T>(q, q_layout)?;
        let (k, v) = (argument::<T>(k, k_layout)?, argument::<T>(v, v_layout)?);
        let mut out = vec![T::ZERO; q.len()];
        let log_sums: Vec<Vec<f64>> =
            (out.par_chunks_mut(tokens * d).zip(q.par_chunks(tokens * d)))
                .enumerate()
                .map(|(head, (out, q))| {
                    let kv = head / (heads / kv_heads) * keys * d;
                    self.head(
                        head / heads,
                        q,
                        &k[kv..][..keys * d],
                        &v[kv..][..keys * d],
                        out,
                    )
                })
                .collect::<Result<_>>()?;
        // An op instance runs forward once, so the cell is empty.
        self.log_sums.get_or_init(|| log_sums.concat());
        Ok((T::storage(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Sizes {
            heads,
            kv_heads,
            tokens,
            keys,
            d,
            ..
        } = self.sizes;
        let log_sums = self.log_sums.get().expect("set by the forward pass");
        let grad = grad.contiguous()?;
        let (q_data, k_data, v_data) = (data::<T>(q)?, data::<T>(k)?, data::<T>(v)?);
        let (q_data, k_data, v_data) = (&*q_data, &*k_data, &*v_data);
        let (out, g) = (data::<T>(out)?, data::<T>(&grad)?);
        let (out, g) = (&*out, &*g);
        let mut q_grad = vec![T::ZERO; q_data.len()];
        let mut k_grad = vec![T::ZERO; k_data.len()];
        let mut v_grad = vec![T::ZERO; v_data.len()];
        // A key head adds up the heads that share it one after the other, so its bits are always the same.
        let group = heads / kv_heads;
        q_grad
            .par_chunks_mut(group * tokens * d)
            .zip(k_grad.par_chunks_mut(keys * d))
            .zip(v_grad.par_chunks_mut(keys * d))
            .enumerate()
            .try_for_each(|(kv_head, ((q_grad, k_grad), v_grad))| -> Result<()> {
                let kv = kv_head * keys * d..(kv_head + 1) * keys * d;
                for (member, q_grad) in q_grad.chunks_mut(tokens * d).enumerate() {
                    let head = kv_head * group + member;
                    let rows = head * tokens * d..(head + 1) * tokens * d;
                    self.head_back(
                        kv_head / kv_heads,
                        (
                            &q_data[rows.clone()],
                            &k_data[kv.clone()],
                            &v_data[kv.clone()],
                        ),
                        (
                            &out[rows.clone()],
                            &g[rows],
                            &log_sums[head * tokens..][..tokens],
                        ),
                        Grads {
                            q: q_grad,
                            k: k_grad,
                            v: v_grad,
                        },
                    )?;
                }
                Ok(())
            })?;
        let of = |argument: &Tensor, grad| {
            argument
                .track_op()
                .then(|| tensor(grad, argument))
                .transpose()
        };
        Ok((of(q, q_grad)?, of(k, k_grad)?, of(v, v_grad)?))
    }
}
