//! The same functions composed of candle's own operations: slow and obvious, the oracle of the fused ones, and what
//! they are on a device without kernels of ours.
//!
//! They expect arguments that the fused functions accept, do not check them, and differentiate every operand. A fused
//! function checks its arguments, and then asks [`used_for`] whether its twin is to go on.

use crate::dropout::mask as dropout_mask;
use crate::float::with_float;
use crate::rng::Key;
use crate::{AttentionMask, Deviation, Dropout, Error, Frame, Reach, Result, RotaryTable, Second};
use candle_core::{D, DType, Tensor};
use std::sync::OnceLock;

/// The environment variable that has every function computed by its twin on the CPU too, if it holds `composed`: what a
/// GPU would run, where there is none. Any other word changes nothing.
pub const VARIABLE: &str = "LOWRANK_OPS";

/// True if functions of this tensor are computed by their twins: it is not on the CPU, or [`VARIABLE`] says so, which is
/// read once, by whoever asks first.
#[must_use]
pub fn used_for(x: &Tensor) -> bool {
    static EVERYWHERE: OnceLock<bool> = OnceLock::new();
    !x.device().is_cpu()
        || *EVERYWHERE
            .get_or_init(|| std::env::var_os(VARIABLE).is_some_and(|word| word == "composed"))
}

/// [`used_for`], for the function `op`, whose first argument is `x`.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub(crate) fn replaces(op: &'static str, x: &Tensor) -> Result<bool> {
    with_float!(op, x.dtype(), T => {
        let _: T;
        Ok(used_for(x))
    })
}

/// As [`crate::linear()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n_out;
    }
    let rows: usize = dims[..dims.len().saturating_sub(1)].iter().product();
    // cuBLAS takes no view with gaps.
    let y = x
        .reshape((rows, n_in))?
        .matmul(&weight.contiguous()?.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    Ok(y.reshape(dims)?)
}

/// As [`crate::low_rank()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn low_rank(x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    Ok((linear(&linear(x, a, None)?, b, None)? * scale)?)
}

/// As [`crate::khatri_rao()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn khatri_rao(u: &Tensor, v: &Tensor) -> Result<Tensor> {
    let ((r, n), (s, _)) = (u.dims2()?, v.dims2()?);
    let product = u.unsqueeze(1)?.broadcast_mul(&v.unsqueeze(0)?)?;
    Ok(product.reshape((r * s, n))?)
}

/// As [`crate::outer_rows()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn outer_rows(u: &Tensor, v: &Tensor) -> Result<Tensor> {
    let ((n, r), (_, s)) = (u.dims2()?, v.dims2()?);
    let product = u.unsqueeze(2)?.broadcast_mul(&v.unsqueeze(1)?)?;
    Ok(product.reshape((n, r * s))?)
}

/// As [`crate::hadamard()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn hadamard(
    (a1, b1): (&Tensor, &Tensor),
    (a2, b2): (&Tensor, &Tensor),
    scale: f64,
) -> Result<Tensor> {
    let product = |a: &Tensor, b: &Tensor| a.contiguous()?.matmul(&b.contiguous()?);
    Ok(((product(a1, b1)? * product(a2, b2)?)? * scale)?)
}

/// As [`crate::kronecker()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn kronecker(x: &Tensor, first: &Tensor, second: Second<'_>, scale: f64) -> Result<Tensor> {
    let second = match second {
        Second::Whole(whole) => whole.clone(),
        Second::Product { a, b } => a.contiguous()?.matmul(&b.contiguous()?)?,
    };
    let ((l, m), (k, n)) = (first.dims2()?, second.dims2()?);
    let first = first.reshape((l, 1, m, 1))?;
    let weight = first.broadcast_mul(&second.reshape((1, k, 1, n))?)?;
    Ok((linear(x, &weight.reshape((l * k, m * n))?, None)? * scale)?)
}

/// As [`crate::orthogonality()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn orthogonality(frames: &[Frame<'_>], deviation: Deviation) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for frame in frames {
        let (first, second) = match frame {
            Frame::Rows(rows) => (rows.contiguous()?, rows.t()?.contiguous()?),
            Frame::Columns(columns) => (columns.t()?.contiguous()?, columns.contiguous()?),
        };
        let gram = first.matmul(&second)?;
        let identity = Tensor::eye(gram.dim(0)?, gram.dtype(), gram.device())?;
        let square = (gram - identity)?.sqr()?.sum_all()?;
        let one = match deviation {
            Deviation::Square => square,
            // The slope of a root at 0 is infinite; so near to it, it is finite and multiplied by 0.
            Deviation::Norm => (square + 1e-30)?.sqrt()?,
        };
        sum = Some(match sum {
            Some(sum) => (sum + one)?,
            None => one,
        });
    }
    sum.ok_or_else(|| Error::Argument {
        op: "orthogonality",
        what: "there are no matrices".into(),
    })
}

/// As [`crate::add()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok((x + y)?)
}

/// As [`crate::add_bias()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(bias)?)
}

/// As [`crate::scale_columns()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn scale_columns(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_mul(factors)?)
}

/// As [`crate::rms_norm()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(x.broadcast_div(&root)?.broadcast_mul(weight)?)
}

/// As [`crate::layer_norm()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let root = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let normed = centred.broadcast_div(&root)?;
    Ok(normed.broadcast_mul(weight)?.broadcast_add(bias)?)
}

/// As [`crate::gelu()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
    Ok(((erf + 1.0)? * (x * 0.5)?)?)
}

/// As [`crate::gelu_tanh()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    let inside = (x + (x.sqr()? * x)? * 0.044_715)?;
    let tanh = (inside * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?;
    Ok(((tanh + 1.0)? * (x * 0.5)?)?)
}

/// As [`crate::add_rms_norm()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn add_rms_norm(x: &Tensor, y: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let sum = add(x, y)?;
    let normed = rms_norm(&sum, weight, eps)?;
    Ok((sum, normed))
}

/// As [`crate::swiglu()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let denominator = (gate.neg()?.exp()? + 1.0)?;
    Ok(((gate / denominator)? * up)?)
}

/// As [`crate::rotary()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn rotary(x: &Tensor, table: &RotaryTable, positions: &[u32]) -> Result<Tensor> {
    let (batch, _, tokens, head_dim) = x.dims4()?;
    let pairs = head_dim / 2;
    let turns: Vec<(f64, f64)> = positions
        .iter()
        .flat_map(|position| {
            (0..pairs).map(|pair| match x.dtype() {
                DType::F32 => {
                    let (cos, sin) = table.turn::<f32>(*position, pair);
                    (f64::from(cos), f64::from(sin))
                }
                _ => table.turn::<f64>(*position, pair),
            })
        })
        .collect();
    let of = |part: fn(&(f64, f64)) -> f64| -> Result<Tensor> {
        let numbers = turns.iter().map(part).collect::<Vec<_>>();
        let shape = (batch, 1, tokens, pairs);
        Ok(Tensor::from_vec(numbers, shape, x.device())?.to_dtype(x.dtype())?)
    };
    let (cos, sin) = (of(|turn| turn.0)?, of(|turn| turn.1)?);
    let (x1, x2) = (x.narrow(3, 0, pairs)?, x.narrow(3, pairs, pairs)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[y1, y2], 3)?)
}

/// As [`crate::attention()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    scale: f64,
) -> Result<Tensor> {
    attention_dropped(q, k, v, mask, scale, None)
}

fn attention_dropped(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let ((batch, heads, tokens, d), (_, kv_heads, keys, _)) = (q.dims4()?, k.dims4()?);
    let repeated = |x: &Tensor| -> Result<Tensor> {
        let x = x
            .unsqueeze(2)?
            .broadcast_as((batch, kv_heads, heads / kv_heads, keys, d))?;
        Ok(x.reshape((batch, heads, keys, d))?)
    };
    let mut barrier = Vec::with_capacity(batch * tokens * keys);
    for (at, segment) in mask.query_segments.iter().enumerate() {
        let (sequence, own) = (at / tokens, keys - tokens + at % tokens);
        let others = &mask.key_segments[sequence * keys..][..keys];
        barrier.extend(others.iter().enumerate().map(|(key, other)| {
            let within = match mask.reach {
                Reach::All => true,
                Reach::Before => key < own,
                Reach::Window(count) => {
                    let between = others[key.min(own)..own].iter();
                    key < own && between.filter(|other| *other == segment).count() < count.get()
                }
            };
            let seen = key == own || within && *segment != 0 && segment == other;
            if seen { 0.0 } else { f64::NEG_INFINITY }
        }));
    }
    let barrier =
        Tensor::from_vec(barrier, (batch, 1, tokens, keys), q.device())?.to_dtype(q.dtype())?;
    let scores = q
        .contiguous()?
        .matmul(&repeated(k)?.transpose(2, 3)?.contiguous()?)?;
    let scores = (scores * scale)?.broadcast_add(&barrier)?;
    let powers = scores
        .broadcast_sub(&scores.max_keepdim(3)?.detach())?
        .exp()?;
    let mut shares = powers.broadcast_div(&powers.sum_keepdim(3)?)?;
    if let Some(dropout) = dropout {
        shares = dropout.composed(&shares)?;
    }
    Ok(shares.matmul(&repeated(v)?)?)
}

/// As [`crate::self_attention()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn self_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    (table, positions): (&RotaryTable, &[u32]),
    mask: &AttentionMask,
    scale: f64,
) -> Result<Tensor> {
    let d = table.head_dim();
    let q = rotary(&heads(q, d)?, table, positions)?;
    let k = rotary(&heads(k, d)?, table, positions)?;
    side_by_side(&attention(&q, &k, &heads(v, d)?, mask, scale)?)
}

/// As [`crate::unrotated_attention()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn unrotated_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d: usize,
    mask: &AttentionMask,
    scale: f64,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let (q, k, v) = (heads(q, d)?, heads(k, d)?, heads(v, d)?);
    side_by_side(&attention_dropped(&q, &k, &v, mask, scale, dropout)?)
}

/// [batch, tokens, heads * d] -> [batch, heads, tokens, d].
fn heads(x: &Tensor, d: usize) -> Result<Tensor> {
    let (batch, tokens, _) = x.dims3()?;
    let x = x.reshape((batch, tokens, (), d))?;
    Ok(x.transpose(1, 2)?.contiguous()?)
}

/// [batch, heads, tokens, d] -> [batch, tokens, heads * d].
fn side_by_side(x: &Tensor) -> Result<Tensor> {
    let (batch, _, tokens, _) = x.dims4()?;
    Ok(x.transpose(1, 2)?.reshape((batch, tokens, ()))?)
}

/// As [`crate::embedding()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn embedding(table: &Tensor, ids: &[u32], (batch, tokens): (usize, usize)) -> Result<Tensor> {
    Ok(gather_rows(table, ids)?.reshape((batch, tokens, ()))?)
}

/// As [`crate::gather_rows()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    Ok(x.contiguous()?
        .index_select(&Tensor::new(rows, x.device())?, 0)?)
}

/// As [`crate::gather_columns()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn gather_columns(x: &Tensor, columns: &[u32]) -> Result<Tensor> {
    Ok(x.contiguous()?
        .index_select(&Tensor::new(columns, x.device())?, D::Minus1)?)
}

/// As [`crate::dropout()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn dropout(x: &Tensor, p: f64, key: Key) -> Result<Tensor> {
    let mask = dropout_mask::<f64>(x.elem_count(), p, key);
    Ok((x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?)?)
}

/// As [`crate::cross_entropy()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    smoothed_cross_entropy(logits, targets, 0.0)
}

/// As [`crate::smoothed_cross_entropy()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn smoothed_cross_entropy(logits: &Tensor, targets: &[u32], smoothing: f64) -> Result<Tensor> {
    let centred = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let log_sums = centred.exp()?.sum(1)?.log()?;
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let own = centred.contiguous()?.gather(&targets, 1)?.squeeze(1)?;
    if smoothing == 0.0 {
        return Ok((log_sums - own)?);
    }
    let mean = centred.mean(1)?;
    Ok(((log_sums - (own * (1.0 - smoothing))?)? - (mean * smoothing)?)?)
}

/// As [`crate::sum_all()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn sum_all(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F64)?.sum_all()?.to_dtype(x.dtype())?)
}

/// As [`crate::all_finite()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    // What is not finite times 0 is a NaN, and so is a sum with it.
    let zero = (x.detach() * 0.0)?.sum_all()?;
    Ok(!zero.to_dtype(DType::F64)?.to_scalar::<f64>()?.is_nan())
}

/// As [`crate::norm_squared()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn norm_squared(x: &Tensor) -> Result<f64> {
    let x = x.detach().to_dtype(DType::F64)?;
    Ok(x.sqr()?.sum_all()?.to_scalar::<f64>()?)
}

/// As [`crate::row_norms_squared()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn row_norms_squared(x: &Tensor) -> Result<Vec<f64>> {
    let x = x.detach().to_dtype(DType::F64)?;
    Ok(x.sqr()?.sum(D::Minus1)?.flatten_all()?.to_vec1::<f64>()?)
}
