//! Attention of a few new tokens over keys and values that a cache holds, read where they lie.

use crate::attention::attention;
use crate::float::{same_dtype, with_float};
use crate::rows::expect_dims;
use crate::simd::vectorised;
use crate::{AttentionMask, Error, Float, Result, composed};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// How many new tokens are few.
const FEW: usize = 8;

/// How many products a thread should at least compute.
const GRAIN: usize = 1 << 17;

/// [`attention`], with a way of its own for few tokens without a graph: keys and values may be parts of a larger tensor
/// and are not copied. Everything else takes the other way.
///
/// # Errors
/// As [`attention`].
pub fn attention_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    scale: f64,
) -> Result<Tensor> {
    let elsewhere = q.track_op() || k.track_op() || v.track_op() || composed::used_for(q);
    let (&[batch, heads, tokens, d], &[_, kv_heads, keys, _]) = (q.dims(), k.dims()) else {
        return attention(q, k, v, mask, scale);
    };
    let fits = k.dims() == [batch, kv_heads, keys, d]
        && kv_heads > 0
        && heads.is_multiple_of(kv_heads)
        && keys >= tokens
        && q.elem_count() > 0
        && mask.batch == batch
        && mask.query_segments.len() == batch * tokens
        && mask.key_segments.len() == batch * keys;
    let in_place = |t: &Tensor| t.stride()[2..] == [d, 1];
    if elsewhere || tokens > FEW || !fits || !in_place(k) || !in_place(v) {
        // What does not fit is refused there.
        return attention(q, k, v, mask, scale);
    }
    expect_dims("attention", "v", v, k.dims())?;
    same_dtype("attention", q, &[("k", k), ("v", v)])?;
    let q = q.contiguous()?;
    Ok(with_float!("attention", q.dtype(), T => {
        // Nothing is tracked, so no graph is built that would ask for a backward.
        let mask = mask.clone();
        q.apply_op3(k, v, Cached::<T> { mask, scale, dtype: PhantomData })
    })?)
}

struct Cached<T> {
    mask: AttentionMask,
    scale: f64,
    dtype: PhantomData<T>,
}

impl<T: Float> Cached<T> {
    /// One query: `q` and `out` `[d]`, `k` and `v` from the row's first key on, `seen` the keys it may see at most.
    #[inline(always)]
    fn query(
        &self,
        q: &[T],
        (k, v): (&[T], &[T]),
        seen: Range<usize>,
        visible: impl Fn(usize) -> bool,
        scores: &mut [T],
        out: &mut [T],
    ) {
        let d = q.len();
        let scale = T::from_f64(self.scale);
        let hidden = T::from_f64(f64::NEG_INFINITY);
        let mut max = hidden;
        let keys = k[seen.start * d..seen.end * d].chunks_exact(d);
        for ((key, k), score) in seen.clone().zip(keys).zip(scores.iter_mut()) {
            *score = if visible(key) {
                scale * dot(q, k)
            } else {
                hidden
            };
            max = if *score > max { *score } else { max };
        }
        let scores = &mut scores[..seen.len()];
        for score in scores.iter_mut() {
            *score = Float::exp(*score - max);
        }
        let total: f64 = scores.iter().map(|score| score.to_f64()).sum();
        let share = T::from_f64(1.0 / total);
        out.fill(T::ZERO);
        for (score, v) in scores
            .iter()
            .zip(v[seen.start * d..seen.end * d].chunks_exact(d))
        {
            let weight = *score * share;
            for (out, v) in out.iter_mut().zip(v) {
                *out += weight * *v;
            }
        }
    }
}

impl<T: Float> CustomOp3 for Cached<T> {
    fn name(&self) -> &'static str {
        "attention_cached"
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
        let (_, heads, tokens, d) = q_layout.shape().dims4()?;
        let (_, kv_heads, keys, _) = k_layout.shape().dims4()?;
        let q = crate::argument::<T>(q, q_layout)?;
        let k = numbers::<T>(k, k_layout)?;
        let v = numbers::<T>(v, v_layout)?;
        let group = heads / kv_heads;
        let mut out = vec![T::ZERO; q.len()];
        // The queries that share a key head are worked on together, so that its keys are read once.
        let length = group * tokens * d;
        let work = |index: usize, out: &mut [T]| {
            let (row, head) = (index / kv_heads, index % kv_heads);
            let k = &k[row * k_layout.stride()[0] + head * k_layout.stride()[1]..][..keys * d];
            let v = &v[row * v_layout.stride()[0] + head * v_layout.stride()[1]..][..keys * d];
            let mut scores = vec![T::ZERO; keys];
            vectorised!({
                let queries = q[index * length..].chunks_exact(d);
                for (query, (q, out)) in queries.zip(out.chunks_exact_mut(d)).enumerate() {
                    let token = query % tokens;
                    let seen = self.mask.seen(row, token);
                    let (segment, own) = (
                        self.mask.query_segments[row * tokens + token],
                        keys - tokens + token,
                    );
                    let segments = &self.mask.key_segments[row * keys..][..keys];
                    let visible =
                        |key: usize| key == own || (segments[key] == segment && segment != 0);
                    self.query(q, (k, v), seen, visible, &mut scores, out);
                }
            });
        };
        let pieces = (out.par_chunks_mut(length))
            .with_min_len(GRAIN.div_ceil(2 * length * keys))
            .enumerate();
        pieces.for_each(|(index, out)| work(index, out));
        Ok((T::storage(out), q_layout.shape().clone()))
    }
}

/// All numbers from the first of a layout on.
fn numbers<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let all = T::slice(storage).ok_or_else(|| Error::DType {
        op: "attention",
        dtype: candle_core::backend::BackendStorage::dtype(storage).as_str(),
    })?;
    Ok(&all[layout.start_offset()..])
}

/// The sum of x * y over sixteen lanes in their own precision, always in the same order.
#[inline(always)]
fn dot<T: Float>(x: &[T], y: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let ((x_chunks, x_rest), (y_chunks, y_rest)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += *x * *y;
        }
    }
    let mut half = 8;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    let rest = x_rest.iter().zip(y_rest);
    rest.fold(lanes[0], |sum, (x, y)| sum + *x * *y)
}
