//! Rows picked by index: embeddings, and the positions whose logits are wanted; and columns.

use crate::float::with_float;
use crate::linear::with_last;
use crate::rows::{for_rows, rows};
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, unwritten};
use candle_core::{Shape, Tensor};
use std::sync::Arc;

/// The rows `ids` of `table` [vocab, n] as (batch, tokens) = `shape` -> [batch, tokens, n].
///
/// # Errors
/// If an id is outside the table, the number of ids is not batch * tokens, or the dtype is neither f32 nor f64.
pub fn embedding(table: &Tensor, ids: &[u32], shape: (usize, usize)) -> Result<Tensor> {
    let (batch, tokens) = shape;
    if batch.checked_mul(tokens) != Some(ids.len()) {
        return Err(Error::Shape {
            op: "embedding",
            what: "ids",
            got: vec![ids.len()],
            expected: format!("{batch} * {tokens} ids"),
        });
    }
    let columns = check("embedding", "the table", table, ids)?;
    select(
        "embedding",
        table,
        ids,
        Shape::from((batch, tokens, columns)),
    )
}

/// The given rows of `x` [rows, n], in the given order -> [how many, n]. A row may be picked more than once.
///
/// # Errors
/// If an index is out of range, `x` is not a matrix, or the dtype is neither f32 nor f64.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let columns = check("gather_rows", "x", x, rows)?;
    select("gather_rows", x, rows, Shape::from((rows.len(), columns)))
}

/// The given columns of `x` `(.., n)`, in the given order -> `(.., how many)`. A column may be picked more than once.
///
/// # Errors
/// If an index is out of range, rows are empty, or the dtype is neither f32 nor f64.
pub fn gather_columns(x: &Tensor, columns: &[u32]) -> Result<Tensor> {
    let (count, n) = rows("gather_columns", "x", x)?;
    if let Some(column) = columns.iter().find(|column| **column as usize >= n) {
        return Err(Error::Argument {
            op: "gather_columns",
            what: format!("column {column} is out of range, x has {n}"),
        });
    }
    if composed::replaces("gather_columns", x)? {
        return composed::gather_columns(x, columns);
    }
    let (x, columns) = (x.contiguous()?, columns.to_vec());
    with_float!("gather_columns", x.dtype(), T => {
        let numbers = data::<T>(&x)?;
        let from: &[T] = &numbers;
        let mut out = unwritten(count * columns.len());
        for_rows(&mut out, columns.len().max(1), |row, out| {
            let x = &from[row * n..][..n];
            for (out, column) in out.iter_mut().zip(&columns) {
                *out = x[*column as usize];
            }
        });
        drop(numbers);
        let out = [(out, with_last(x.dims(), columns.len()))];
        let [out] = tape::record("gather_columns", &[&x], out, GatherColumns { columns, n })?;
        Ok(out)
    })
}

/// The number of columns of `table`.
fn check(op: &'static str, what: &'static str, table: &Tensor, ids: &[u32]) -> Result<usize> {
    let (len, columns) = match table.dims() {
        [len, columns] if *columns > 0 => (*len, *columns),
        dims => {
            let expected = "[rows, n] with n > 0".into();
            return Err(Error::Shape {
                op,
                what,
                got: dims.to_vec(),
                expected,
            });
        }
    };
    match ids.iter().find(|id| **id as usize >= len) {
        Some(id) => Err(Error::Index {
            op,
            index: *id as usize,
            len,
        }),
        None => Ok(columns),
    }
}

fn select(op: &'static str, table: &Tensor, ids: &[u32], shape: Shape) -> Result<Tensor> {
    if composed::replaces(op, table)? {
        return Ok(composed::gather_rows(table, ids)?.reshape(shape)?);
    }
    let (table, ids) = (table.contiguous()?, ids.to_vec());
    with_float!(op, table.dtype(), T => {
        let (_, n) = table.dims2()?;
        let numbers = data::<T>(&table)?;
        let mut out = Vec::with_capacity(ids.len() * n);
        for id in &ids {
            out.extend_from_slice(&numbers[*id as usize * n..][..n]);
        }
        drop(numbers);
        let [out] = tape::record(op, &[&table], [(out, shape)], Select { ids, n })?;
        Ok(out)
    })
}

struct Select {
    ids: Vec<u32>,
    n: usize,
}

impl<T: Float> Backward<T> for Select {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let n = self.n;
        // Sorted by id, then by place: each row of the table adds up its own terms, always in the same order.
        let mut places: Vec<(u32, usize)> = self.ids.iter().copied().zip(0..).collect();
        places.sort_unstable();
        inputs.accumulate(0, |into, begun| {
            for_rows(into, n, |row, into| {
                if !begun {
                    into.fill(T::ZERO);
                }
                let first = places.partition_point(|(id, _)| (*id as usize) < row);
                let own = places[first..]
                    .iter()
                    .take_while(|(id, _)| *id as usize == row);
                for (_, place) in own {
                    for (into, grad) in into.iter_mut().zip(&grad[place * n..][..n]) {
                        *into += *grad;
                    }
                }
            });
            Ok(())
        })
    }
}

struct GatherColumns {
    columns: Vec<u32>,
    n: usize,
}

impl<T: Float> Backward<T> for GatherColumns {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        let Some(grad) = &grads[0] else { return Ok(()) };
        let Self { columns, n } = self;
        inputs.accumulate(0, |into, begun| {
            for_rows(into, *n, |row, into| {
                if !begun {
                    into.fill(T::ZERO);
                }
                let grad = &grad[row * columns.len()..][..columns.len()];
                for (grad, column) in grad.iter().zip(columns) {
                    into[*column as usize] += *grad;
                }
            });
            Ok(())
        })
    }
}
