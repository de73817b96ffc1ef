//! Products with few columns in both dtypes, over several chunks of rows: values, and the same bits from any number of
//! threads.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lowrank_ops as ops;
use ops::Float;
use ops::rng::{Key, Purpose, Stream};
use ops::skinny::{self, Update};
use std::fmt::Debug;
use std::iter::repeat_with;

fn normal<T: Float>(stream: &mut Stream, count: usize) -> Vec<T> {
    repeat_with(|| T::from_f64(stream.normal()))
        .take(count)
        .collect()
}

/// x y^T in f64, as it is written down.
fn plain<T: Float>(x: &[T], y: &[T], (rows, columns): (usize, usize), inner: usize) -> Vec<f64> {
    let mut sums = vec![0.0; rows * columns];
    for row in 0..rows {
        for column in 0..columns {
            for k in 0..inner {
                sums[row * columns + column] +=
                    x[row * inner + k].to_f64() * y[column * inner + k].to_f64();
            }
        }
    }
    sums
}

fn turned<T: Float>(x: &[T], columns: usize) -> Vec<T> {
    let rows = x.len() / columns;
    let at = |i: usize| x[i % rows * columns + i / rows];
    (0..x.len()).map(at).collect()
}

#[track_caller]
fn assert_close<T: Float>(got: &[T], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1f64, |size, x| size.max(x.abs()));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let off = (got.to_f64() - expected).abs();
        assert!(off <= tolerance * size, "{what} at {at}: {got} {expected}");
    }
}

fn in_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(work)
}

fn check<T: Float + Debug>(tolerance: f64) {
    let mut stream = Key::new(23, Purpose::Test).stream();
    for rank in [1, 3, 5, 8, 12, 16, 33] {
        for (rows, n, n_out) in [(1, 5, 18), (7, 33, 3), (129, 20, 35), (301, 67, 9)] {
            let what = format!("rank {rank}, {rows} rows of {n}");
            let x: Vec<T> = normal(&mut stream, rows * n);
            let a: Vec<T> = normal(&mut stream, rank * n);
            let b: Vec<T> = normal(&mut stream, n_out * rank);
            let grad: Vec<T> = normal(&mut stream, rows * n_out);
            let scale = T::from_f64(-0.5);
            let run = || {
                let h = skinny::dots(&x, &a, n, rank, scale);
                let update = Update {
                    x: &x,
                    n_in: n,
                    h: &h,
                    b: &b,
                    scale,
                    rank,
                };
                let grads = skinny::update_grads(&update, &grad, [true; 3]);
                (h, grads.h, grads.a.unwrap(), grads.b.unwrap())
            };
            let (h, through, a_grad, b_grad) = run();
            let scaled = |sums: Vec<f64>| sums.iter().map(|x| -0.5 * x).collect::<Vec<_>>();
            let expected = scaled(plain(&x, &a, (rows, rank), n));
            assert_close(&h, &expected, tolerance, &what);
            let b_t = turned(&b, rank);
            let expected = scaled(plain(&grad, &b_t, (rows, rank), n_out));
            assert_close(&through, &expected, tolerance, &what);
            let expected = plain(&turned(&through, rank), &turned(&x, n), (rank, n), rows);
            assert_close(&a_grad, &expected, tolerance, &what);
            let grad_t = turned(&grad, n_out);
            let expected = plain(&grad_t, &turned(&h, rank), (n_out, rank), rows);
            assert_close(&b_grad, &expected, tolerance, &what);

            for threads in [1, 3] {
                assert_eq!(in_pool(threads, run), run(), "{what}, {threads} threads");
            }
            // What is not wanted is not computed, and the rest is the same.
            let update = Update {
                x: &x,
                n_in: n,
                h: &h,
                b: &b,
                scale,
                rank,
            };
            let only_b = skinny::update_grads(&update, &grad, [false, false, true]);
            assert!(only_b.h.is_empty() && only_b.a.is_none());
            assert_eq!(only_b.b.unwrap(), b_grad);
            let only_a = skinny::update_grads(&update, &grad, [false, true, false]);
            assert!(only_a.b.is_none());
            assert_eq!(only_a.a.unwrap(), a_grad);
        }
    }
}

#[test]
fn products_and_gradients_in_f32() {
    check::<f32>(3e-6);
}

#[test]
fn products_and_gradients_in_f64() {
    check::<f64>(1e-13);
}
