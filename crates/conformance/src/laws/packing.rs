//! Laws about rows that share a sequence.

use crate::case::{Case, NAME, cached_logits, logits, share, training};
use crate::compare::{Verdict, close, close_in, difference, numbers, require, tolerance};
use crate::toy::{Toy, batch};
use candle_core::{DType, Tensor};
use lowrank_adapter::{
    Attached, Batch, KvCache, Memory, Pass, Selection, Swept, Tokens, UNSUPERVISED, sweep,
};
use lowrank_ops::rng::{Key, Purpose};

/// Lengths of the rows in each sequence: the first is full, and one row is a single token.
const SEQUENCES: [&[usize]; 2] = [&[4, 1, 6], &[5, 3]];

/// The same rows side by side.
const ROWS: [&[usize]; 5] = [&[4], &[1], &[6], &[5], &[3]];

pub(crate) fn equals_padded(case: &Case) -> Verdict {
    for dtype in [DType::F64, DType::F32] {
        let (toy, attached) = case.trained(dtype)?;
        let (packed, padded) = (batch(12, &SEQUENCES)?, batch(12, &ROWS)?);
        let evaluated =
            |batch: &Batch| logits(&toy, batch, &mut Pass::evaluation(Selection::one(NAME)));
        let (packed_logits, padded_logits) = (evaluated(&packed)?, evaluated(&padded)?);
        close(
            "logits, packed against padded",
            &packed_logits,
            &padded_logits,
        )?;
        decoded(&toy, &padded, &packed_logits)?;
        continued(&toy, &packed, &packed_logits)?;
        for memory in [Memory::Keep, Memory::Recompute] {
            trained(&toy, &attached, &packed, &padded, memory)?;
        }
    }
    Ok(())
}

/// The first two tokens of each row at once and the others one by one, with a cache of the row's own.
fn decoded(toy: &Toy, rows: &Batch, expected: &Tensor) -> Verdict {
    let tokens = rows.tokens();
    let mut all = Vec::new();
    for (ids, lengths) in tokens.ids.chunks(tokens.length).zip(ROWS) {
        let mut kv = KvCache::new();
        let mut at = 0;
        while at < lengths[0] {
            let end = lengths[0].min((at + 1).max(2));
            let piece = Batch::sequence(&ids[at..end], at as u32)?;
            all.push(evaluate(toy, &piece, &mut kv)?);
            at = end;
        }
    }
    let all = Tensor::cat(&all, 0)?;
    close(
        "token by token with a cache, against packed",
        &all,
        expected,
    )
}

/// Both sequences in pieces, cut within rows, with one cache.
fn continued(toy: &Toy, packed: &Batch, expected: &Tensor) -> Verdict {
    let tokens = packed.tokens();
    let mut kv = KvCache::new();
    let mut rows: Vec<Vec<Tensor>> = vec![Vec::new(); tokens.rows];
    for (from, until) in [(0, 7), (7, 8), (8, tokens.length)] {
        let piece = columns(tokens, from, until)?;
        let logits = evaluate(toy, &piece, &mut kv)?;
        let mut start = 0;
        for (row, segments) in piece.tokens().segments.chunks(until - from).enumerate() {
            let real = segments.iter().filter(|&&segment| segment != 0).count();
            if real > 0 {
                rows[row].push(logits.narrow(0, start, real)?);
                start += real;
            }
        }
    }
    let all = Tensor::cat(&rows.concat(), 0)?;
    close("packed rows in pieces with a cache", &all, expected)
}

fn evaluate(toy: &Toy, batch: &Batch, kv: &mut KvCache) -> Verdict<Tensor> {
    let mut pass = Pass::evaluation(Selection::one(NAME));
    cached_logits(toy, batch, Some(kv), &mut pass)
}

/// Some places of every row, unsupervised.
fn columns(tokens: &Tokens, from: usize, until: usize) -> Verdict<Batch> {
    let cut = |list: &[u32]| -> Vec<u32> {
        let rows = list.chunks(tokens.length);
        rows.flat_map(|row| &row[from..until]).copied().collect()
    };
    let piece = Tokens {
        rows: tokens.rows,
        length: until - from,
        ids: cut(&tokens.ids),
        segments: cut(&tokens.segments),
        positions: cut(&tokens.positions),
    };
    let size = piece.ids.len();
    Ok(Batch::new(piece, vec![UNSUPERVISED; size])?)
}

fn trained(
    toy: &Toy,
    attached: &Attached,
    packed: &Batch,
    padded: &Batch,
    memory: Memory,
) -> Verdict {
    let params = attached.trained();
    let swept = |batch: &Batch, mut pass: Pass| -> Verdict<Swept> {
        Ok(sweep(toy, batch, &mut pass, &params, share(batch), memory)?)
    };
    let expected = swept(padded, training())?;
    let other = Pass::training_pass(Selection::one(NAME), Key::new(18, Purpose::Dropout));
    if numbers(&swept(padded, other)?.losses)? != numbers(&expected.losses)? {
        // What is drawn for a token depends on where it lies.
        return Ok(());
    }
    let (got, dtype) = (swept(packed, training())?, expected.losses.dtype());
    close(
        "losses, packed against padded",
        &got.losses,
        &expected.losses,
    )?;
    let auxiliary = |swept: &Swept| Tensor::new(swept.auxiliary, swept.losses.device());
    close_in(
        dtype,
        "the auxiliary loss, packed against padded",
        &auxiliary(&got)?,
        &auxiliary(&expected)?,
    )?;
    require(
        (got.grads.len(), got.records.len()) == (expected.grads.len(), expected.records.len()),
        || "packed, there are other gradients or records".into(),
    )?;
    for ((param, grad), (_, expected)) in got.grads.iter().zip(expected.grads.iter()) {
        let what = format!("the gradient of `{}`, packed against padded", param.name());
        let (gap, size) = difference(grad, expected)?;
        // Rounding grows on the way back through norms of small rows, in f64 as well as in f32: tenfold.
        let allowed = 10.0 * tolerance(dtype) * size.max(1.0);
        require(gap <= allowed, || {
            format!("{what}: differs by {gap:e}, allowed is {allowed:e}")
        })?;
    }
    for ((_, name, value), (_, _, expected_value)) in got.records.iter().zip(&expected.records) {
        if value.dims() == expected_value.dims() {
            let what = format!("the record `{name}`, packed against padded");
            close_in(dtype, &what, value, expected_value)?;
        }
    }
    Ok(())
}
