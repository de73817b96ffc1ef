//! Grouped-query attention, causal or not, without the matrix of probabilities in the graph.
//!
//! Forward and backward walk over blocks of queries of one segment; a block's scores live in scratch memory, and the
//! backward computes them again from the logarithm of each query's sum of exponentials. Texts that are packed into a row
//! cost what they cost in rows of their own: keys before a segment's first one are never touched. Heads are copied into
//! scratch memory first, so they may lie in any order, and are rotated on the way.

mod head;

use crate::attention_mask::{AttentionMask, Block};
use crate::float::{same_dtype, with_float};
use crate::rotary::Rotary;
use crate::rows::{add_assign, expect_dims};
use crate::tape::{self, Backward, Inputs};
use crate::{Dropout, Error, Float, Result, RotaryTable, composed, data, unwritten};
use candle_core::Tensor;
use head::{Columns, Grads, Keys, Lying};
use rayon::prelude::*;
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
    run(q, k, v, (mask, scale), sizes, Way::Plain)
}

/// [`self_attention`] with heads of width `d` that are not rotated. `dropout` drops what queries take from keys: of
/// [batch, heads, tokens, keys].
///
/// # Errors
/// As [`attention`].
pub fn unrotated_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d: usize,
    mask: &AttentionMask,
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let sizes = Sizes::of_tokens(q, k, d)?;
    let way = dropout.map_or(Way::Plain, Way::Dropped);
    run(q, k, v, (mask, scale), sizes, way)
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
    let way = Way::Turned(rotary, positions);
    run(q, k, v, (mask, scale), sizes, way)
}

/// What is done beside attending.
#[derive(Clone, Copy)]
enum Way<'a> {
    Plain,
    Dropped(Dropout),
    Turned(&'a RotaryTable, &'a [u32]),
}

fn run(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    (mask, scale): (&AttentionMask, f64),
    sizes: Sizes,
    way: Way<'_>,
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
        let unrotated =
            |dropout| composed::unrotated_attention(q, k, v, sizes.d, mask, scale, dropout);
        return match way {
            Way::Plain if !sizes.by_token => composed::attention(q, k, v, mask, scale),
            Way::Plain => unrotated(None),
            Way::Dropped(dropout) => unrotated(Some(dropout)),
            Way::Turned(table, positions) => {
                composed::self_attention(q, k, v, (table, positions), mask, scale)
            }
        };
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    with_float!("attention", q.dtype(), T => {
        let mut op = Attention::<T> {
            sizes,
            blocks: (0..sizes.batch).map(|row| mask.blocks(row)).collect(),
            mask: mask.clone(),
            scale,
            turn: match way {
                Way::Turned(table, positions) => Some(Rotary::new(table, positions)),
                Way::Plain | Way::Dropped(_) => None,
            },
            dropout: match way {
                Way::Dropped(dropout) => Some(dropout),
                Way::Plain | Way::Turned(..) => None,
            },
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
            [batch, tokens, width] if d > 0 && width % d == 0 && q.elem_count() > 0 => {
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

    /// The head `at` of all rows' query heads within `numbers`.
    fn query<'a, T>(&self, numbers: &'a [T], at: usize) -> Lying<'a, T> {
        let heads = self.heads;
        let (first, step) = self.place(at / heads, at % heads, heads, self.tokens);
        Lying {
            numbers,
            first,
            step,
        }
    }

    /// Which key head of all rows the query head `at` of all rows sees.
    const fn key_of(&self, at: usize) -> usize {
        let (row, head) = (at / self.heads, at % self.heads);
        row * self.kv_heads + head / (self.heads / self.kv_heads)
    }

    /// The key head `at` of all rows within `numbers`.
    fn key<'a, T>(&self, numbers: &'a [T], at: usize) -> Lying<'a, T> {
        let heads = self.kv_heads;
        let (first, step) = self.place(at / heads, at % heads, heads, self.keys);
        Lying {
            numbers,
            first,
            step,
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
    /// Of what queries take from keys.
    dropout: Option<Dropout>,
    /// log(sum(exp(scores))) of every query, [batch * heads * tokens].
    log_sums: Vec<f64>,
}

impl<T: Float> Attention<T> {
    fn forward(&mut self, q: &[T], k: &[T], v: &[T]) -> Result<Vec<T>> {
        let Sizes {
            batch,
            heads,
            tokens,
            ..
        } = self.sizes;
        let this = &*self;
        let keys = this.keys(k);
        let done: Vec<(Vec<T>, Vec<f64>)> = (0..batch * heads)
            .into_par_iter()
            .map(|at| {
                let row = at / heads;
                let q = this.copied(this.sizes.query(q, at), row, tokens);
                let key = this.sizes.key_of(at);
                this.head(at, &q, &keys[key].columns, this.sizes.key(v, key))
            })
            .collect::<Result<_>>()?;
        let parts: Vec<&[T]> = done.iter().map(|(out, _)| out.as_slice()).collect();
        let out = self.gathered(&parts, heads, tokens);
        self.log_sums = done
            .into_iter()
            .flat_map(|(_, log_sums)| log_sums)
            .collect();
        Ok(out)
    }

    /// The key heads of all rows.
    fn keys(&self, k: &[T]) -> Vec<Keys<T>> {
        let Sizes {
            batch,
            kv_heads,
            keys,
            d,
            ..
        } = self.sizes;
        let key = |at: usize| {
            let rows = self.copied(self.sizes.key(k, at), at / kv_heads, keys);
            let lying = Lying {
                numbers: &rows,
                first: 0,
                step: d,
            };
            let columns = Columns::new(lying, keys, d);
            Keys { rows, columns }
        };
        (0..batch * kv_heads).into_par_iter().map(key).collect()
    }

    /// All heads of all rows, [length, d] each, where they belong.
    fn gathered(&self, parts: &[&[T]], heads: usize, length: usize) -> Vec<T> {
        let d = self.sizes.d;
        let mut out = unwritten(parts.len() * length * d);
        if self.sizes.by_token {
            let tokens = out.par_chunks_exact_mut(heads * d).enumerate();
            tokens.with_min_len(16).for_each(|(token, out)| {
                let (row, token) = (token / length, token % length);
                for (out, part) in out.chunks_exact_mut(d).zip(&parts[row * heads..]) {
                    out.copy_from_slice(&part[token * d..][..d]);
                }
            });
        } else {
            let heads = out.par_chunks_exact_mut(length * d).zip(parts);
            heads.for_each(|(out, part)| out.copy_from_slice(part));
        }
        out
    }
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
        let seen = self.keys(k);
        let values: Vec<Columns<T>> = (0..batch * kv_heads)
            .into_par_iter()
            .map(|at| Columns::new(self.sizes.key(v, at), keys, d))
            .collect();
        let found: Vec<[Vec<T>; 3]> = (0..batch * heads)
            .into_par_iter()
            .map(|at| {
                let row = at / heads;
                let mut own = [
                    unwritten(tokens * d),
                    vec![T::ZERO; keys * d],
                    vec![T::ZERO; keys * d],
                ];
                let [q_grad, k_grad, v_grad] = &mut own;
                let key = self.sizes.key_of(at);
                let known = (
                    &*self.copied(self.sizes.query(q, at), row, tokens),
                    &seen[key],
                    &values[key],
                );
                let given = (
                    self.sizes.query(grad, at),
                    &self.log_sums[at * tokens..][..tokens],
                );
                let grads = Grads {
                    q: q_grad,
                    k: k_grad,
                    v: v_grad,
                };
                self.head_back(at, known, given, grads)?;
                self.turn_back(q_grad, row, tokens);
                Ok(own)
            })
            .collect::<Result<_>>()?;
        if inputs.wanted(0) {
            let parts: Vec<&[T]> = found.iter().map(|[q, _, _]| q.as_slice()).collect();
            inputs.add(0, Arc::new(self.gathered(&parts, heads, tokens)));
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
            let parts: Vec<&[T]> = summed.iter().map(Vec::as_slice).collect();
            inputs.add(i, Arc::new(self.gathered(&parts, kv_heads, keys)));
        }
        Ok(())
    }
}
