//! Products with a few columns, such as those with A and B: passes over the long matrix at the speed of memory.
//!
//! Rows are worked on in chunks of a fixed size and partial sums are added in order, so that the bits do not depend on
//! the number of threads.

use crate::Float;
use crate::rows::dot;
use crate::simd::Level;
use crate::skinny_single;
use rayon::prelude::*;

/// How many rows a thread works on at once.
const CHUNK: usize = 128;

/// h = factor * x a^T: `x` [rows, n], `a` [rank, n] -> [rows, rank], the numbers of a row next to each other.
#[must_use]
pub fn dots<T: Float>(x: &[T], a: &[T], n: usize, rank: usize, factor: T) -> Vec<T> {
    let rows = x.len().checked_div(n).unwrap_or(0);
    let mut h = vec![T::ZERO; rows * rank];
    if n == 0 || rank == 0 {
        return h;
    }
    h.par_chunks_mut(CHUNK * rank)
        .zip(x.par_chunks(CHUNK * n))
        .for_each(|(h, x)| dots_here(x, a, n, rank, factor, h));
    h
}

/// (factor * g b, g^T h): `g` [rows, n], `b_t` the transpose of b [rank, n], `h` [rows, rank] -> [rows, rank] and the
/// transpose of the second, [rank, n]. What is not wanted is empty.
#[must_use]
pub fn dots_and_outer<T: Float>(
    g: &[T],
    n: usize,
    b_t: Option<(&[T], T)>,
    h: Option<&[T]>,
    rank: usize,
) -> (Vec<T>, Vec<T>) {
    let rows = g.len().checked_div(n).unwrap_or(0);
    let mut dots = vec![T::ZERO; if b_t.is_some() { rows * rank } else { 0 }];
    if n == 0 || rank == 0 {
        return (dots, Vec::new());
    }
    let mut unused = vec![[]; rows.div_ceil(CHUNK)];
    let parts: Vec<&mut [T]> = if b_t.is_some() {
        dots.chunks_mut(CHUNK * rank).collect()
    } else {
        unused
            .iter_mut()
            .map(|none: &mut [T; 0]| none.as_mut_slice())
            .collect()
    };
    let sums: Vec<Vec<T>> = parts
        .into_par_iter()
        .zip(g.par_chunks(CHUNK * n))
        .enumerate()
        .map(|(chunk, (dots, g))| {
            if let Some((b_t, factor)) = b_t {
                dots_here(g, b_t, n, rank, factor, dots);
            }
            let Some(h) = h else { return Vec::new() };
            let mut sum = vec![T::ZERO; rank * n];
            let h = &h[chunk * CHUNK * rank..];
            outer_here(&h[..g.len() / n * rank], g, n, rank, &mut sum);
            sum
        })
        .collect();
    let mut sums = sums.into_iter();
    let none = || vec![T::ZERO; if h.is_some() { rank * n } else { 0 }];
    let mut total = sums.next().unwrap_or_else(none);
    for sum in sums {
        for (total, sum) in total.iter_mut().zip(sum) {
            *total += sum;
        }
    }
    (dots, total)
}

/// h^T g: `h` [rows, rank], `g` [rows, n] -> [rank, n].
#[must_use]
pub fn outer<T: Float>(h: &[T], g: &[T], n: usize, rank: usize) -> Vec<T> {
    dots_and_outer(g, n, None, Some(h), rank).1
}

/// The gradients of y = s x A^T B^T but for that of x, which is [`h`](Self::h) A.
#[derive(Debug)]
pub struct UpdateGrads<T> {
    /// s G B [rows, rank]; empty if neither x nor A is wanted.
    pub h: Vec<T>,
    /// [rank, n_in]; `None` if not wanted.
    pub a: Option<Vec<T>>,
    /// [n_out, rank]; `None` if not wanted.
    pub b: Option<Vec<T>>,
}

/// What goes into [`update_grads`].
#[derive(Debug, Clone, Copy)]
pub struct Update<'a, T> {
    /// What A was multiplied with, [rows, n_in].
    pub x: &'a [T],
    /// How many numbers a row of x has.
    pub n_in: usize,
    /// s x A^T [rows, rank].
    pub h: &'a [T],
    /// [n_out, rank].
    pub b: &'a [T],
    /// s.
    pub scale: T,
    /// The rank, which may be 0.
    pub rank: usize,
}

/// The gradients of y = s x A^T B^T from that of y, `grad` [rows, n_out]. `wanted`: of x, A and B.
#[must_use]
pub fn update_grads<T: Float>(
    update: &Update<'_, T>,
    grad: &[T],
    [x, a, b]: [bool; 3],
) -> UpdateGrads<T> {
    let &Update { rank, scale, .. } = update;
    let n_out = update.b.len().checked_div(rank).unwrap_or(0);
    let b_t = transposed(update.b, rank);
    let b_t = (x || a).then_some((b_t.as_slice(), scale));
    let (h, b_grad) = dots_and_outer(grad, n_out, b_t, b.then_some(update.h), rank);
    UpdateGrads {
        a: a.then(|| outer(&h, update.x, update.n_in, rank)),
        b: b.then(|| transposed(&b_grad, n_out)),
        h,
    }
}

/// The transpose of a matrix of `columns` columns.
#[must_use]
pub fn transposed<T: Float>(x: &[T], columns: usize) -> Vec<T> {
    let rows = x.len().checked_div(columns).unwrap_or(0);
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| x[row * columns + column]))
        .collect()
}

fn dots_here<T: Float>(x: &[T], a: &[T], n: usize, rank: usize, factor: T, h: &mut [T]) {
    if let (Some(x), Some(a), Some(h)) = (T::singles(x), T::singles(a), T::singles_mut(h)) {
        return skinny_single::dots(Level::used(), x, a, n, rank, factor.to_f64() as f32, h);
    }
    for (x, h) in x.chunks_exact(n).zip(h.chunks_exact_mut(rank)) {
        for (a, h) in a.chunks_exact(n).zip(h) {
            *h = T::from_f64(dot(x, a)) * factor;
        }
    }
}

fn outer_here<T: Float>(h: &[T], g: &[T], n: usize, rank: usize, sum: &mut [T]) {
    if let (Some(h), Some(g), Some(sum)) = (T::singles(h), T::singles(g), T::singles_mut(sum)) {
        return skinny_single::outer(Level::used(), h, g, n, rank, sum);
    }
    for (h, g) in h.chunks_exact(rank).zip(g.chunks_exact(n)) {
        for (h, sum) in h.iter().zip(sum.chunks_exact_mut(n)) {
            for (sum, g) in sum.iter_mut().zip(g) {
                *sum += *h * *g;
            }
        }
    }
}
