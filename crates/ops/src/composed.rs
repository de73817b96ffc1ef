//! The same functions composed of candle's own operations: slow and obvious, the oracle of the fused ones.
//!
//! They expect arguments that the fused functions accept, do not check them, and differentiate every operand.

use crate::dropout::mask as dropout_mask;
use crate::rng::Key;
use crate::{AttentionMask, Result, RotaryTable};
use candle_core::{D, DType, Tensor};

/// As [`crate::linear()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let y = x.reshape(((), n_in))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n_out;
    }
    Ok(y.reshape(dims)?)
}

/// As [`crate::low_rank()`].
///
/// # Errors
/// If candle refuses the arguments.
pub fn low_rank(x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    Ok((linear(&linear(x, a, None)?, b, None)? * scale)?)
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
            let seen = key == own || key < own && *segment != 0 && segment == other;
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
    let shares = powers.broadcast_div(&powers.sum_keepdim(3)?)?;
    Ok(shares.matmul(&repeated(v)?)?)
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
    let centred = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let log_sums = centred.exp()?.sum(1)?.log()?;
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    Ok((log_sums - centred.contiguous()?.gather(&targets, 1)?.squeeze(1)?)?)
}

/// As [`crate::sum_all()`], summed in the tensor's own dtype.
///
/// # Errors
/// If candle refuses the arguments.
pub fn sum_all(x: &Tensor) -> Result<Tensor> {
    Ok(x.sum_all()?)
}
