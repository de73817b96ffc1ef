//! Causal grouped-query attention without the matrix of probabilities in the graph.
//!
//! Forward and backward walk over blocks of queries of one segment; a block's scores live in scratch memory, and the
//! backward computes them again from the logarithm of each query's sum of exponentials. Texts that are packed into a row
//! cost what they cost in rows of their own: keys before a segment's first one are never touched.

use crate::attention_mask::{AttentionMask, Block};
use crate::float::{same_dtype, with_float};
use crate::gemm::{Matrix, matmul_add_here, matmul_here};
use crate::rows::{dot, expect_dims, max, sum, tensor};
use crate::{Error, Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

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
        let blocks = (0..sizes.batch).map(|row| mask.blocks(row)).collect();
        let mask = mask.clone();
        let log_sums = OnceLock::new();
        q.apply_op3(&k, &v, Attention::<T> { sizes, mask, blocks, scale, log_sums, dtype: PhantomData })
    })?)
}

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
}

struct Attention<T> {
    sizes: Sizes,
    mask: AttentionMask,
    /// Of each row.
    blocks: Vec<Vec<Block>>,
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
    /// Room for the scores of any block of a row.
    fn scratch(&self, row: usize) -> Vec<T> {
        let largest = self.blocks[row].iter().map(Block::size).max();
        vec![T::ZERO; largest.unwrap_or(0)]
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

    /// One head: writes its output [tokens, d] and returns its log-sums.
    fn head(&self, row: usize, q: &[T], k: &[T], v: &[T], out: &mut [T]) -> Result<Vec<f64>> {
        let d = self.sizes.d;
        let mut scratch = self.scratch(row);
        let mut log_sums = Vec::with_capacity(self.sizes.tokens);
        for block in &self.blocks[row] {
            let scores = &mut scratch[..block.size()];
            let (queries, seen) = (of(block.first, block.count, d), block.keys.len());
            let keys = of(block.keys.start, seen, d);
            self.scores(row, block, &q[queries.clone()], &k[keys.clone()], scores)?;
            for scores in scores.chunks_mut(seen) {
                let max = max(scores);
                scores
                    .iter_mut()
                    .for_each(|score| *score = Float::exp(*score - max));
                let total = sum(scores, |x| x.to_f64());
                let share = T::from_f64(1.0 / total);
                scores.iter_mut().for_each(|score| *score *= share);
                log_sums.push(max.to_f64() + total.ln());
            }
            let (scores, v) = (
                Matrix::new(scores, block.count, seen)?,
                Matrix::new(&v[keys], seen, d)?,
            );
            matmul_here(T::ONE, scores, v, &mut out[queries])?;
        }
        Ok(log_sums)
    }

    /// One head's share of the gradients: `q`, `out` and `grad` are [tokens, d].
    fn head_back(
        &self,
        row: usize,
        (q, k, v): (&[T], &[T], &[T]),
        (out, grad, log_sums): (&[T], &[T], &[f64]),
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
            for (scores, log_sum) in probabilities.chunks_mut(seen).zip(&log_sums[block.first..]) {
                scores
                    .iter_mut()
                    .for_each(|score| *score = Float::exp(T::from_f64(score.to_f64() - log_sum)));
            }
            let block_grad = Matrix::new(&grad[queries.clone()], count, d)?;
            let p = Matrix::new(probabilities, count, seen)?;
            matmul_add_here(
                T::ONE,
                p.transposed(),
                block_grad,
                &mut grads.v[keys.clone()],
            )?;
            matmul_here(
                T::ONE,
                block_grad,
                Matrix::new(v, seen, d)?.transposed(),
                slopes,
            )?;
            // ds = p * (dp - sum(p * dp)), and that sum is the product of the output with its gradient.
            for (query, slopes) in slopes.chunks_mut(seen).enumerate() {
                let at = of(block.first + query, 1, d);
                let mean = T::from_f64(dot(&out[at.clone()], &grad[at]));
                for (slope, p) in slopes.iter_mut().zip(&probabilities[query * seen..]) {
                    *slope = *p * (*slope - mean);
                }
            }
            let slopes = Matrix::new(slopes, count, seen)?;
            matmul_here(
                scale,
                slopes,
                Matrix::new(k, seen, d)?,
                &mut grads.q[queries],
            )?;
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
        let given = |argument: &Tensor, grad| {
            argument
                .track_op()
                .then(|| tensor(grad, argument))
                .transpose()
        };
        Ok((given(q, q_grad)?, given(k, k_grad)?, given(v, v_grad)?))
    }
}
