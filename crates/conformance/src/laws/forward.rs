//! Laws about outputs.

use crate::case::{
    Case, NAME, cached_logits, evaluated, input, logits, share, tokens, training, walk,
};
use crate::compare::{Verdict, close, close_in, difference, differs, require, tolerance};
use crate::toy::{Head, Toy, batch, padded};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Attached, Batch, KvCache, Memory, Merge, Pass, Selection, sweep};
use lowrank_frozen::Encoding;
use lowrank_ops::Grads;

/// The dtypes that models are computed in.
const COMPUTED: [DType; 2] = [DType::F32, DType::F64];

/// What frozen matrices are held in, and what is then computed in. GGUF's blocks are not among them, for they need rows of
/// 32 numbers: to a family they are what f16 is, a packed matrix that is computed with in f32.
const STORAGES: [(Encoding, DType); 6] = [
    (Encoding::Plain(DType::F64), DType::F64),
    (Encoding::Plain(DType::F32), DType::F32),
    (Encoding::Plain(DType::F16), DType::F32),
    (Encoding::Plain(DType::BF16), DType::F32),
    (Encoding::Nf4 { double: false }, DType::F32),
    (Encoding::Nf4 { double: true }, DType::F32),
];

pub(crate) fn starts_as_base(case: &Case) -> Verdict {
    for dtype in COMPUTED {
        let (toy, _) = case.fresh(dtype)?;
        let base = evaluated(&toy, &Selection::none())?;
        let adapted = evaluated(&toy, &Selection::one(NAME))?;
        close(
            "the fresh adapter's logits against the base's",
            &adapted,
            &base,
        )?;
    }
    Ok(())
}

pub(crate) fn not_at_base(case: &Case) -> Verdict {
    let (toy, _) = case.fresh(DType::F64)?;
    let base = evaluated(&toy, &Selection::none())?;
    let adapted = evaluated(&toy, &Selection::one(NAME))?;
    differs(
        "the fresh adapter's logits against the base's",
        &adapted,
        &base,
    )
}

pub(crate) fn delta(case: &Case) -> Verdict {
    let (mut toy, attached) = case.trained(DType::F64)?;
    // What layers leave to later ones must be the same on both ways, so each way has a pass of its own.
    let mut forward = Pass::evaluation(Selection::one(NAME));
    let mut added = Pass::evaluation(Selection::one(NAME));
    let mut seen = 0;
    walk(&mut toy, &mut |linear| {
        let Some(adapter) = linear.adapter(NAME) else {
            return Ok(());
        };
        let (base, x) = (linear.base(), input(linear)?);
        let y_base = base.forward(&x)?;
        let y = adapter.forward(base, &x, &mut forward)?;
        let delta = adapter.delta(base, &x, &y_base, &mut added)?;
        seen += 1;
        differs(
            &format!("{}: the adapter changes nothing", linear.path()),
            &y,
            &y_base,
        )?;
        close(linear.path(), &delta, &(y - y_base)?)
    })?;
    require(seen == attached.sites.len(), || {
        format!("{seen} adapters at {} sites", attached.sites.len())
    })
}

pub(crate) fn incremental(case: &Case) -> Verdict {
    for dtype in COMPUTED {
        let (toy, _) = case.trained(dtype)?;
        let selection = Selection::one(NAME);
        let evaluate = |batch: &Batch, kv: Option<&mut KvCache>| {
            cached_logits(&toy, batch, kv, &mut Pass::evaluation(selection.clone()))
        };
        let whole = batch(8, &[&[7]])?;
        let ids = whole.tokens().ids.clone();
        let at_once = evaluate(&whole, None)?;
        for prefix in [1, 3] {
            let mut kv = KvCache::new();
            let mut pieces = vec![evaluate(
                &Batch::sequence(&ids[..prefix], 0)?,
                Some(&mut kv),
            )?];
            for at in prefix..ids.len() {
                let next = Batch::sequence(&ids[at..=at], at as u32)?;
                pieces.push(evaluate(&next, Some(&mut kv))?);
            }
            let what = format!("{prefix} tokens, then one by one");
            close(&what, &Tensor::cat(&pieces, 0)?, &at_once)?;
        }

        // The last row is full where nothing is padded on top.
        let rows: [&[usize]; 3] = [&[2], &[5], &[1, 4]];
        let tight = logits(
            &toy,
            &batch(9, &rows)?,
            &mut Pass::evaluation(selection.clone()),
        )?;
        let wide = logits(
            &toy,
            &padded(9, &rows, 8)?,
            &mut Pass::evaluation(selection.clone()),
        )?;
        close("three more columns of padding", &wide, &tight)?;
        let alone = Batch::sequence(&batch(9, &rows)?.tokens().ids[..2], 0)?;
        close(
            "the short row on its own",
            &evaluate(&alone, None)?,
            &tight.narrow(0, 0, 2)?,
        )?;
    }
    Ok(())
}

pub(crate) fn every_storage(case: &Case) -> Verdict {
    for (held, dtype) in STORAGES {
        let (mut toy, attached) = case.trained(held)?;
        let logits = evaluated(&toy, &Selection::one(NAME))?;
        require(logits.dtype() == dtype, || {
            format!("{held:?} weights give {:?} logits", logits.dtype())
        })?;
        let (mut exact, twin) = case.trained_on(Toy::rounded(held, DType::F64, Head::Own)?)?;
        close_in(
            dtype,
            &format!("{held:?} against the same numbers in f64"),
            &logits,
            &evaluated(&exact, &Selection::one(NAME))?,
        )?;

        let (grads, expected) = (gradients(&toy, &attached)?, gradients(&exact, &twin)?);
        for ((param, grad), (_, expected)) in grads.iter().zip(expected.iter()) {
            let name = param.name();
            require(grad.dtype() == dtype, || {
                format!("the gradient of {name} is {:?}", grad.dtype())
            })?;
            let (gap, size) = difference(grad, expected)?;
            // Rounding grows on the way back through norms of small rows, as it does in the law of packed rows.
            let allowed = 10.0 * tolerance(dtype) * size.max(1.0);
            require(gap <= allowed, || {
                format!(
                    "the gradient of {name} on {held:?} differs by {gap:e} from that in f64, allowed is {allowed:e}"
                )
            })?;
        }

        let expected = merged(&mut exact)?;
        for ((path, got), (_, expected)) in merged(&mut toy)?.iter().zip(&expected) {
            require(got.dtype() == dtype, || {
                format!("{path}: {held:?} merges to {:?}", got.dtype())
            })?;
            close_in(dtype, &format!("{path} merged on {held:?}"), got, expected)?;
        }
    }
    Ok(())
}

fn gradients(toy: &Toy, attached: &Attached) -> Verdict<Grads> {
    let batch = tokens()?;
    let (mut pass, params) = (training(), attached.trained());
    let share = share(&batch);
    Ok(sweep(toy, &batch, &mut pass, &params, share, Memory::Keep)?.grads)
}

/// Weights with the adapter folded in, of the layers that have such a weight.
fn merged(toy: &mut Toy) -> Verdict<Vec<(String, Tensor)>> {
    let mut pass = Pass::evaluation(Selection::one(NAME));
    let mut all = Vec::new();
    walk(toy, &mut |linear| {
        if let Merge::Exact(merged) | Merge::Approximate(merged) = linear.merge(&mut pass)? {
            all.push((linear.path().to_owned(), merged.weight));
        }
        Ok(())
    })?;
    Ok(all)
}
