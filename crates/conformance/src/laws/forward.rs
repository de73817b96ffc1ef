//! Laws about outputs.

use crate::case::{
    Case, NAME, cached_logits, evaluated, input, logits, share, tokens, training, walk,
};
use crate::compare::{Verdict, close, close_in, differs, require};
use crate::toy::{Head, Toy, batch, padded};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Batch, KvCache, Memory, Merge, Pass, Selection, sweep};
use lowrank_ops::all_finite;

/// The dtypes that models are computed in.
const COMPUTED: [DType; 2] = [DType::F32, DType::F64];

/// The dtypes that frozen matrices are held in, and what is then computed in. GGUF's blocks are not among them, for they
/// need rows of 32 numbers: to a family they are what f16 is, a packed matrix that is computed with in f32.
const STORAGES: [(DType, DType); 4] = [
    (DType::F64, DType::F64),
    (DType::F32, DType::F32),
    (DType::F16, DType::F32),
    (DType::BF16, DType::F32),
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
        let (exact, _) = case.trained_on(Toy::rounded(held, DType::F64, Head::Own)?)?;
        close_in(
            dtype,
            &format!("{held:?} against the same numbers in f64"),
            &logits.to_dtype(DType::F64)?,
            &evaluated(&exact, &Selection::one(NAME))?,
        )?;

        let batch = tokens()?;
        let params = attached.trained();
        let swept = sweep(
            &toy,
            &batch,
            &mut training(),
            &params,
            share(&batch),
            Memory::Keep,
        )?;
        for (param, grad) in swept.grads.iter() {
            require(grad.dtype() == dtype && all_finite(grad)?, || {
                format!(
                    "the {:?} gradient of {} is not finite",
                    grad.dtype(),
                    param.name()
                )
            })?;
        }
        let mut pass = Pass::evaluation(Selection::one(NAME));
        walk(&mut toy, &mut |linear| match linear.merge(&mut pass)? {
            Merge::Exact(merged) | Merge::Approximate(merged) => {
                let got = merged.weight.dtype();
                require(got == dtype, || {
                    format!("{}: {held:?} merges to {got:?}", linear.path())
                })
            }
            Merge::InputDependent => Ok(()),
        })?;
    }
    Ok(())
}
