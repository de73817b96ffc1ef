//! The cache returns all keys and values so far, whatever room it has.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use candle_core::{Device, Result, Tensor};
use lowrank_adapter::{
    Ask, Batch, KvCache, Model, Part, Pass, Result as AdapterResult, Selection, Tokens, run,
};

/// Two blocks that cache what they are given: the token's number, its negative as a value.
struct Caching;

impl Model for Caching {
    fn model_type(&self) -> &str {
        "caching"
    }

    fn parts(&mut self, _: &mut dyn FnMut(Part<'_>)) {}

    fn embed(&self, batch: &Batch, _: &mut Pass) -> AdapterResult<Tensor> {
        let tokens = batch.tokens();
        let ids: Vec<f32> = tokens.ids.iter().map(|id| *id as f32).collect();
        Ok(Tensor::from_vec(
            ids,
            (tokens.rows, 1, tokens.length, 1),
            &Device::Cpu,
        )?)
    }

    fn blocks(&self) -> usize {
        2
    }

    fn block(
        &self,
        i: usize,
        h: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvCache>,
        _: &mut Pass,
    ) -> AdapterResult<Tensor> {
        let kv = kv.unwrap();
        let k = Tensor::cat(&[h, &(h + 0.5)?], 3)?;
        let (k_all, v_all) = kv.append(i, &k, &h.neg()?)?;
        let len = kv.len() + batch.tokens().length;
        assert_eq!((k_all.dim(2)?, v_all.dim(2)?), (len, len));
        check(&k_all, &v_all)?;
        if batch.tokens().ids.contains(&FAILS) && i == 1 {
            return Err(lowrank_adapter::Error::NotFinite);
        }
        Ok(h.clone())
    }

    fn head(&self, h: &Tensor, _: &Batch, _: &Ask, _: &mut Pass) -> AdapterResult<Tensor> {
        Ok(h.clone())
    }
}

const FAILS: u32 = 99;

/// Row r has the tokens r * 100, r * 100 + 1, and so on, if none failed.
fn check(k: &Tensor, v: &Tensor) -> Result<()> {
    let (k, v) = (k.contiguous()?, v.contiguous()?);
    for (k, v) in k
        .flatten(0, 2)?
        .to_vec2::<f32>()?
        .iter()
        .zip(v.flatten_all()?.to_vec1::<f32>()?)
    {
        // Padding that was put before a row is zeros.
        assert!(k[1] == k[0] + 0.5 || k == &[0.0, 0.0]);
        assert_eq!(v, -k[0]);
    }
    Ok(())
}

fn step(kv: &mut KvCache, ids: &[u32]) -> AdapterResult<Tensor> {
    let batch = Batch::sequence(ids, kv.len() as u32)?;
    let mut pass = Pass::evaluation(Selection::none());
    run(&Caching, &batch, &Ask::Logits(vec![0]), Some(kv), &mut pass)
}

/// The keys of block 1 after one more token.
fn keys(kv: &mut KvCache, next: u32) -> Vec<f32> {
    let h = Tensor::new(&[[[[next as f32, next as f32 + 0.5]]]], &Device::Cpu).unwrap();
    let (k, _) = kv.append(1, &h, &h.narrow(3, 0, 1).unwrap()).unwrap();
    let k = k.narrow(3, 0, 1).unwrap();
    k.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn tokens_come_back_in_order_across_every_growth() {
    for reserved in [0, 1, 5, 64] {
        let mut kv = KvCache::with_capacity(reserved);
        let mut next = 0;
        for count in [1u32, 1, 1, 3, 1, 7, 2, 1, 1, 19, 1] {
            let ids: Vec<u32> = (next..next + count).collect();
            step(&mut kv, &ids).unwrap();
            next += count;
            assert_eq!(kv.len(), next as usize);
        }
        let expected: Vec<f32> = (0..=next).map(|id| id as f32).collect();
        assert_eq!(keys(&mut kv, next), expected, "room for {reserved}");
    }
}

#[test]
fn a_pass_that_failed_leaves_nothing() {
    let mut kv = KvCache::with_capacity(4);
    step(&mut kv, &[0, 1, 2]).unwrap();
    assert!(step(&mut kv, &[3, FAILS]).is_err());
    assert_eq!(kv.len(), 3);
    step(&mut kv, &[3]).unwrap();
    assert_eq!(keys(&mut kv, 4), [0.0, 1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn earlier_parts_stay_and_copies_are_apart() {
    let mut kv = KvCache::with_capacity(16);
    step(&mut kv, &[0, 1]).unwrap();
    let one = |number: f32| Tensor::new(&[[[[number, number + 0.5]]]], &Device::Cpu).unwrap();
    let (before, _) = kv
        .append(0, &one(2.0), &one(2.0).narrow(3, 0, 1).unwrap())
        .unwrap();
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let seen = numbers(&before);
    let mut copies = KvCache::beside(&[(&kv, 0)], 0).unwrap();
    step(&mut copies, &[7]).unwrap();
    step(&mut kv, &[2, 3, 4]).unwrap();
    assert_eq!(numbers(&before), seen);
    assert_eq!(keys(&mut copies, 8), [0.0, 1.0, 7.0, 8.0]);
    assert_eq!(keys(&mut kv, 5), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut kv = KvCache::new();
    let t = |dims: (usize, usize, usize, usize)| {
        Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu).unwrap()
    };
    let late = kv.append(1, &t((1, 1, 1, 2)), &t((1, 1, 1, 2)));
    assert!(
        late.unwrap_err()
            .to_string()
            .contains("block 1 came before block 0")
    );
    kv.append(0, &t((2, 3, 1, 4)), &t((2, 3, 1, 4))).unwrap();
    for dims in [(1, 3, 1, 4), (2, 1, 1, 4), (2, 3, 1, 5)] {
        let refused = kv.append(0, &t(dims), &t((2, 3, 1, 4)));
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("the cache has 2 rows of 3 heads")
        );
    }
}

#[test]
fn a_truncated_cache_goes_on_from_there() {
    let mut kv = KvCache::with_capacity(4);
    step(&mut kv, &[0, 1, 2, 3, 4]).unwrap();
    kv.truncate(9);
    assert_eq!(kv.len(), 5);
    kv.truncate(2);
    assert_eq!(kv.len(), 2);
    step(&mut kv, &[7, 8]).unwrap();
    assert_eq!(keys(&mut kv, 9), [0.0, 1.0, 7.0, 8.0, 9.0]);
    kv.truncate(0);
    assert!(kv.is_empty());
    step(&mut kv, &[5]).unwrap();
    assert_eq!(keys(&mut kv, 6), [5.0, 6.0]);
}

/// Rows with padding (segment 0) where there is none.
fn rows(kv: &mut KvCache, rows: &[&[Option<u32>]]) {
    let tokens = rows.concat();
    let batch = Tokens {
        rows: rows.len(),
        length: rows[0].len(),
        ids: tokens.iter().map(|id| id.unwrap_or(0)).collect(),
        segments: tokens.iter().map(|id| u32::from(id.is_some())).collect(),
        positions: vec![0; tokens.len()],
    };
    let batch = Batch::new(batch, vec![-100; tokens.len()]).unwrap();
    let mut pass = Pass::evaluation(Selection::none());
    let ask = Ask::Logits(vec![0]);
    run(&Caching, &batch, &ask, Some(kv), &mut pass).unwrap();
}

#[test]
fn rows_of_several_caches_stand_side_by_side() {
    let mut one = KvCache::new();
    step(&mut one, &[1, 2]).unwrap();
    let mut two = KvCache::with_capacity(9);
    rows(
        &mut two,
        &[
            &[None, None, Some(3), None, Some(4)],
            &[None, None, None, None, Some(5)],
            &[None, Some(6), Some(7), Some(8), Some(9)],
        ],
    );
    for room in [0, 1, 3, 50] {
        let mut both =
            KvCache::beside(&[(&two, 0), (&one, 0), (&two, 1), (&one, 0)], room).unwrap();
        // What all have before them is left out, what is inside one of them is not.
        assert_eq!(both.len(), 3);
        rows(&mut both, &[&[Some(10)], &[Some(20)], &[None], &[Some(30)]]);
        let h = Tensor::zeros((4, 1, 1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let (k, v) = both.append(1, &h, &h.narrow(3, 0, 1).unwrap()).unwrap();
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let k = numbers(&k.narrow(3, 0, 1).unwrap());
        let expected = [
            [3.0, 0.0, 4.0, 10.0, 0.0],
            [0.0, 1.0, 2.0, 20.0, 0.0],
            [0.0, 0.0, 5.0, 0.0, 0.0],
            [0.0, 1.0, 2.0, 30.0, 0.0],
        ];
        assert_eq!(k, expected.concat());
        assert_eq!(numbers(&v), k.iter().map(|x| -x).collect::<Vec<_>>());
        let next = Batch::new(
            Tokens {
                rows: 4,
                length: 1,
                ids: vec![0; 4],
                segments: vec![1; 4],
                positions: vec![0; 4],
            },
            vec![-100; 4],
        );
        let mask = both.mask(&next.unwrap());
        let expected = [
            [1, 0, 1, 1, 1],
            [0, 1, 1, 1, 1],
            [0, 0, 1, 0, 1],
            [0, 1, 1, 1, 1],
        ];
        assert_eq!(mask.key_segments, expected.concat());
    }
    // The caches that they come from go on as before.
    assert_eq!(keys(&mut one, 3), [1.0, 2.0, 3.0]);
    assert_eq!((one.len(), two.len()), (2, 5));
    let none = KvCache::beside(&[], 7).unwrap();
    assert!(none.is_empty());
    for (refused, message) in [
        (
            KvCache::beside(&[(&two, 3)], 0),
            "a cache of 3 rows has no row 3",
        ),
        (
            KvCache::beside(&[(&KvCache::new(), 0)], 0),
            "a cache of 0 rows has no row 0",
        ),
    ] {
        assert!(refused.unwrap_err().to_string().contains(message));
    }
}
