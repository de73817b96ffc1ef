//! Matrix products over slices, against three plain loops.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lowrank_ops::Float;
use lowrank_ops::gemm::{Matrix, matmul, matmul_add, matmul_columns};
use lowrank_ops::rng::{Key, Purpose, Stream};
use std::iter::repeat_with;

fn numbers<T: Float>(stream: &mut Stream, len: usize) -> Vec<T> {
    repeat_with(|| T::from_f64(stream.normal()))
        .take(len)
        .collect()
}

fn transpose<T: Float>(data: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| data[row * columns + column]))
        .collect()
}

fn check<T: Float>(m: usize, k: usize, n: usize, tolerance: f64) {
    let stream = &mut Key::new(3, Purpose::Test)
        .site(&format!("{m} {k} {n}"))
        .stream();
    let a: Vec<T> = numbers(stream, m * k);
    let b: Vec<T> = numbers(stream, k * n);
    let before: Vec<T> = numbers(stream, m * n);
    let expected: Vec<f64> = (0..m * n)
        .map(|at| {
            (0..k)
                .map(|i| a[at / n * k + i].to_f64() * b[i * n + at % n].to_f64())
                .sum()
        })
        .collect();
    let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
    let a_forms = [
        Matrix::new(&a, m, k).unwrap(),
        Matrix::new(&a_t, k, m).unwrap().transposed(),
    ];
    let b_forms = [
        Matrix::new(&b, k, n).unwrap(),
        Matrix::new(&b_t, n, k).unwrap().transposed(),
    ];
    for (a, b) in a_forms
        .iter()
        .flat_map(|a| b_forms.iter().map(move |b| (*a, *b)))
    {
        let mut c = vec![T::from_f64(f64::NAN); m * n];
        matmul(a, b, &mut c).unwrap();
        let mut again = vec![T::ZERO; m * n];
        matmul(a, b, &mut again).unwrap();
        assert!(c == again, "{m} {k} {n}: not the same bits twice");
        let mut sum = before.clone();
        matmul_add(T::from_f64(-0.75), a, b, &mut sum).unwrap();
        for (at, expected) in expected.iter().enumerate() {
            let off = (c[at].to_f64() - expected).abs();
            assert!(
                off <= tolerance * (k as f64 + 1.0),
                "{m} {k} {n} at {at}: off by {off}"
            );
            let off = (sum[at].to_f64() - (before[at].to_f64() - 0.75 * expected)).abs();
            assert!(
                off <= tolerance * (k as f64 + 1.0),
                "{m} {k} {n} at {at}: sum off by {off}"
            );
        }
    }
}

#[test]
fn products_equal_plain_loops() {
    for m in [0, 1, 2, 5, 16, 67] {
        for k in [0, 1, 2, 3, 8, 33, 70] {
            for n in [0, 1, 2, 7, 17, 65] {
                check::<f32>(m, k, n, 1e-5);
                check::<f64>(m, k, n, 1e-14);
            }
        }
    }
    check::<f32>(130, 1100, 70, 1e-5);
    check::<f64>(3, 1100, 5, 1e-14);
}

#[test]
fn parts_of_columns_are_read_and_written_in_place() {
    let stream = &mut Key::new(5, Purpose::Test).stream();
    for (m, k, n, parts) in [
        (5, 7, 11, vec![0..4, 4..9, 9..11]),
        (1, 3, 6, vec![0..2, 2..6]),
        (4, 0, 5, vec![0..2, 2..5]),
        (0, 3, 5, vec![0..1, 1..5]),
        (33, 70, 19, vec![0..0, 0..18, 18..19]),
    ] {
        let (a, b): (Vec<f64>, Vec<f64>) = (numbers(stream, m * k), numbers(stream, k * n));
        let whole_a = Matrix::new(&a, m, k).unwrap();
        let whole_b = Matrix::new(&b, k, n).unwrap();
        let mut expected = vec![f64::NAN; m * n];
        matmul(whole_a, whole_b, &mut expected).unwrap();

        // Columns of b give columns of c.
        let mut c = vec![f64::NAN; m * n];
        for part in &parts {
            let columns = whole_b.columns(part.clone()).unwrap();
            let before = c.clone();
            matmul_columns(whole_a, columns, &mut c, n, part.start).unwrap();
            for at in (0..m * n).filter(|at| !part.contains(&(at % n))) {
                assert_eq!(c[at].to_bits(), before[at].to_bits(), "{at} was written");
            }
        }
        let close = |c: &[f64]| {
            let pairs = c.iter().zip(&expected);
            for (got, expected) in pairs {
                assert!((got - expected).abs() < 1e-13, "{got} {expected}");
            }
        };
        close(&c);

        // Columns of a and rows of b add up to c.
        let cuts = [0, k / 3, k];
        let mut c = vec![0.0; m * n];
        for cut in cuts.windows(2) {
            let rows = Matrix::new(&b[cut[0] * n..cut[1] * n], cut[1] - cut[0], n).unwrap();
            let columns = whole_a.columns(cut[0]..cut[1]).unwrap();
            matmul_add(1.0, columns, rows, &mut c).unwrap();
        }
        close(&c);
        // Columns of a transpose are rows.
        let mut rows = vec![f64::NAN; m * n];
        let half = m / 2;
        for (from, to) in [(0, half), (half, m)] {
            let part = whole_a.transposed().columns(from..to).unwrap().transposed();
            matmul(part, whole_b, &mut rows[from * n..to * n]).unwrap();
        }
        close(&rows);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let data = [1f32; 6];
    let error = Matrix::new(&data, 2, 4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Matrix: the data has shape [6], expected 2 * 4 numbers"
    );
    let error = Matrix::new(&data, usize::MAX, 2).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("Matrix: the data has shape [6]")
    );
    let a = Matrix::new(&data, 2, 3).unwrap();
    let error = matmul(a, a, &mut [0f32; 4]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "matmul: the right matrix has shape [2, 3], expected (3, ..)"
    );
    let error = matmul(a, a.transposed(), &mut [0f32; 5]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "matmul: the destination has shape [5], expected 2 * 2 numbers"
    );
    let error = a.columns(2..4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Matrix: the range of columns has shape [2, 4], expected a part of 0..3"
    );
    for (width, first, len) in [(4, 3, 8), (4, 2, 9), (usize::MAX, 2, 8)] {
        let error = matmul_columns(a, a.transposed(), &mut vec![0f32; len], width, first);
        assert_eq!(
            error.unwrap_err().to_string(),
            format!(
                "matmul: the destination has shape [{len}], expected 2 rows of {width} numbers, 2 of them from {first} on"
            )
        );
    }
}
