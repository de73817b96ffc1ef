//! The two operations of a routed layer, each with its backward: the numbers that Bcat is multiplied by, and Bcat.

use candle_core::{D, DType, Shape, Tensor};
use lowrank_ops::tape::{self, Backward, Inputs};
use lowrank_ops::{Error, Float, Result, composed, data, unwritten};
use std::sync::Arc;

/// c and the gates: `p` (.., r + N) holds h = A x and behind it the router's logits, `scale_a` is OA `[N, r]`.
/// The results are s g_i la_i * h, expert after expert, (.., N r), and g (.., N).
pub(crate) fn route(p: &Tensor, scale_a: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    if composed::used_for(p) {
        return route_composed(p, scale_a, scale);
    }
    let (p, scale_a) = (p.contiguous()?, scale_a.contiguous()?);
    match p.dtype() {
        DType::F32 => route_in::<f32>(&p, &scale_a, scale),
        DType::F64 => route_in::<f64>(&p, &scale_a, scale),
        other => Err(refuse("mor_route", other)),
    }
}

/// Bcat `[n_out, N r]`: `b` `[n_out, r]` N times side by side, the rows of each copy scaled by a row of `scale_b`
/// `[N, n_out]`.
pub(crate) fn side_by_side(b: &Tensor, scale_b: &Tensor) -> Result<Tensor> {
    if composed::used_for(b) {
        return side_by_side_composed(b, scale_b);
    }
    let (b, scale_b) = (b.contiguous()?, scale_b.contiguous()?);
    match b.dtype() {
        DType::F32 => side_by_side_in::<f32>(&b, &scale_b),
        DType::F64 => side_by_side_in::<f64>(&b, &scale_b),
        other => Err(refuse("mor_side_by_side", other)),
    }
}

fn refuse(op: &'static str, dtype: DType) -> Error {
    Error::DType {
        op,
        dtype: dtype.as_str(),
    }
}

/// [`route`] of candle's operations.
fn route_composed(p: &Tensor, scale_a: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    let (experts, rank) = scale_a.dims2()?;
    let logits = p.narrow(D::Minus1, rank, experts)?;
    let powers = logits
        .broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let gates = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
    let h = (p.narrow(D::Minus1, 0, rank)? * scale)?;
    let scaled = h.unsqueeze(D::Minus2)?.broadcast_mul(scale_a)?;
    let c = scaled.broadcast_mul(&gates.unsqueeze(D::Minus1)?)?;
    Ok((c.reshape(with_last(p, experts * rank))?, gates))
}

/// [`side_by_side`] of candle's operations.
fn side_by_side_composed(b: &Tensor, scale_b: &Tensor) -> Result<Tensor> {
    let ((n_out, rank), (experts, _)) = (b.dims2()?, scale_b.dims2()?);
    let scales = scale_b.t()?.unsqueeze(2)?;
    let wide = b.unsqueeze(1)?.broadcast_mul(&scales)?;
    Ok(wide.reshape((n_out, experts * rank))?)
}

/// The shape of `x` with another last dimension.
fn with_last(x: &Tensor, last: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(n) = dims.last_mut() {
        *n = last;
    }
    Shape::from(dims)
}

fn route_in<T: Float>(p: &Tensor, scale_a: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    let (experts, rank) = scale_a.dims2()?;
    let (numbers, scales) = (data::<T>(p)?, data::<T>(scale_a)?);
    let rows = numbers.len() / (rank + experts);
    let mut c = unwritten(rows * experts * rank);
    let mut gates = unwritten(rows * experts);
    let each = numbers.chunks_exact(rank + experts);
    let each = each.zip(c.chunks_exact_mut(experts * rank));
    for ((p, c), gates) in each.zip(gates.chunks_exact_mut(experts)) {
        let (h, logits) = p.split_at(rank);
        softmax(logits, gates);
        let blocks = c.chunks_exact_mut(rank).zip(scales.chunks_exact(rank));
        for ((c, la), gate) in blocks.zip(&*gates) {
            let factor = *gate * T::from_f64(scale);
            for ((c, la), h) in c.iter_mut().zip(la).zip(h) {
                *c = factor * *la * *h;
            }
        }
    }
    drop((numbers, scales));
    let op = Route {
        scale,
        rank,
        gates: gates.clone(),
    };
    let outputs = [
        (c, with_last(p, experts * rank)),
        (gates, with_last(p, experts)),
    ];
    let [c, gates] = tape::record("mor_route", &[p, scale_a], outputs, op)?;
    Ok((c, gates))
}

fn softmax<T: Float>(logits: &[T], gates: &mut [T]) {
    let larger = |max: T, x: &T| if *x > max { *x } else { max };
    let max = logits.iter().fold(logits[0], larger);
    let mut sum = T::ZERO;
    for (gate, logit) in gates.iter_mut().zip(logits) {
        *gate = Float::exp(*logit - max);
        sum += *gate;
    }
    for gate in gates {
        *gate = *gate / sum;
    }
}

struct Route<T> {
    scale: f64,
    rank: usize,
    gates: Vec<T>,
}

impl<T: Float> Backward<T> for Route<T> {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let (numbers, scales) = (inputs.data(0)?, inputs.data(1)?);
        let (rank, experts) = (self.rank, scales.len() / self.rank);
        let rows = self.gates.len() / experts;
        let (wide, scale) = (experts * rank, T::from_f64(self.scale));
        let (no_c, no_gates) = (vec![T::ZERO; wide], vec![T::ZERO; experts]);
        let mut p_grad = vec![T::ZERO; numbers.len()];
        let mut sums = vec![0f64; wide];
        let mut slopes = vec![T::ZERO; experts];
        for at in 0..rows {
            let h = &numbers[at * (rank + experts)..][..rank];
            let gates = &self.gates[at * experts..][..experts];
            let c_grad = of_row(&grads[0], at, &no_c);
            slopes.copy_from_slice(of_row(&grads[1], at, &no_gates));
            let into = &mut p_grad[at * (rank + experts)..][..rank + experts];
            let (h_grad, logit_grad) = into.split_at_mut(rank);
            for (expert, gate) in gates.iter().enumerate() {
                let block = expert * rank..(expert + 1) * rank;
                let terms = c_grad[block.clone()].iter().zip(&scales[block.clone()]);
                let mut slope = T::ZERO;
                let places = h.iter().zip(&mut *h_grad).zip(&mut sums[block]);
                for ((grad, la), ((h, h_grad), sum)) in terms.zip(places) {
                    let grad = scale * *grad;
                    slope += grad * *la * *h;
                    *h_grad += grad * *gate * *la;
                    *sum += (grad * *gate * *h).to_f64();
                }
                slopes[expert] += slope;
            }
            let pairs = gates.iter().zip(&slopes);
            let mut mean = T::ZERO;
            for (gate, slope) in pairs.clone() {
                mean += *gate * *slope;
            }
            for (grad, (gate, slope)) in logit_grad.iter_mut().zip(pairs) {
                *grad = *gate * (*slope - mean);
            }
        }
        if inputs.wanted(0) {
            inputs.add(0, Arc::new(p_grad));
        }
        if inputs.wanted(1) {
            let grad = sums.into_iter().map(T::from_f64).collect();
            inputs.add(1, Arc::new(grad));
        }
        Ok(())
    }
}

/// A row of a gradient, `zeros` where there is none.
fn of_row<'a, T>(grad: &'a Option<Arc<Vec<T>>>, at: usize, zeros: &'a [T]) -> &'a [T] {
    let n = zeros.len();
    grad.as_ref()
        .map_or(zeros, |grad| &grad[at * n..(at + 1) * n])
}

fn side_by_side_in<T: Float>(b: &Tensor, scale_b: &Tensor) -> Result<Tensor> {
    let ((n_out, rank), (experts, _)) = (b.dims2()?, scale_b.dims2()?);
    let (numbers, scales) = (data::<T>(b)?, data::<T>(scale_b)?);
    let mut wide = unwritten(n_out * experts * rank);
    let rows = wide.chunks_exact_mut(experts * rank);
    for (row, (wide, b)) in rows.zip(numbers.chunks_exact(rank)).enumerate() {
        for (expert, wide) in wide.chunks_exact_mut(rank).enumerate() {
            let lb = scales[expert * n_out + row];
            for (wide, b) in wide.iter_mut().zip(b) {
                *wide = lb * *b;
            }
        }
    }
    drop((numbers, scales));
    let output = [(wide, Shape::from((n_out, experts * rank)))];
    let op = SideBySide { rank };
    let [wide] = tape::record("mor_side_by_side", &[b, scale_b], output, op)?;
    Ok(wide)
}

struct SideBySide {
    rank: usize,
}

impl<T: Float> Backward<T> for SideBySide {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let (numbers, scales) = (inputs.data(0)?, inputs.data(1)?);
        let rank = self.rank;
        let n_out = numbers.len() / rank;
        let experts = scales.len() / n_out;
        let mut b_grad = vec![T::ZERO; numbers.len()];
        let mut scale_grad = vec![T::ZERO; scales.len()];
        let rows = numbers
            .chunks_exact(rank)
            .zip(b_grad.chunks_exact_mut(rank));
        let grads = grad.chunks_exact(experts * rank);
        for (row, ((b, b_grad), grad)) in rows.zip(grads).enumerate() {
            for (expert, grad) in grad.chunks_exact(rank).enumerate() {
                let lb = scales[expert * n_out + row];
                let mut slope = T::ZERO;
                for ((b, b_grad), grad) in b.iter().zip(&mut *b_grad).zip(grad) {
                    slope += *b * *grad;
                    *b_grad += lb * *grad;
                }
                scale_grad[expert * n_out + row] = slope;
            }
        }
        for (i, grad) in [(0, b_grad), (1, scale_grad)] {
            if inputs.wanted(i) {
                inputs.add(i, Arc::new(grad));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
