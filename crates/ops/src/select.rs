//! Rows picked by index: embeddings, and the positions whose logits are wanted.

use crate::float::with_float;
use crate::rows::{for_rows, tensor};
use crate::{Error, Float, Result, argument, data};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use std::marker::PhantomData;

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
    let (table, ids) = (table.contiguous()?, ids.to_vec());
    Ok(with_float!(op, table.dtype(), T => {
        table.apply_op1(Select::<T> { ids, shape, dtype: PhantomData })
    })?)
}

struct Select<T> {
    ids: Vec<u32>,
    shape: Shape,
    dtype: PhantomData<T>,
}

impl<T: Float> CustomOp1 for Select<T> {
    fn name(&self) -> &'static str {
        "select"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, n) = layout.shape().dims2()?;
        let table = argument::<T>(table, layout)?;
        let mut out = Vec::with_capacity(self.ids.len() * n);
        for id in &self.ids {
            out.extend_from_slice(&table[*id as usize * n..][..n]);
        }
        Ok((T::storage(out), self.shape.clone()))
    }

    fn bwd(
        &self,
        table: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let (_, n) = table.dims2()?;
        let grad = grad.contiguous()?;
        let grad = data::<T>(&grad)?;
        let grad = &*grad;
        // Sorted by id, then by place: each row of the table adds up its own terms, always in the same order.
        let mut places: Vec<(u32, usize)> = self.ids.iter().copied().zip(0..).collect();
        places.sort_unstable();
        let mut table_grad = vec![T::ZERO; table.elem_count()];
        for_rows(&mut table_grad, n, |row, out| {
            let first = places.partition_point(|(id, _)| (*id as usize) < row);
            let own = places[first..]
                .iter()
                .take_while(|(id, _)| *id as usize == row);
            for (_, place) in own {
                for (out, grad) in out.iter_mut().zip(&grad[place * n..][..n]) {
                    *out += *grad;
                }
            }
        });
        Ok(Some(tensor(table_grad, table)?))
    }
}
