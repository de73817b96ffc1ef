//! Matrix products over slices, against three plain loops.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lowrank_ops::Float;
use lowrank_ops::gemm::{Matrix, matmul, matmul_add};
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
}

#[test]
fn parts_of_rows_are_read_where_they_lie() {
    let stream = &mut Key::new(5, Purpose::Test).stream();
    let data: Vec<f32> = numbers(stream, 7 * 11 + 3);
    // 7 rows of 9 numbers, 11 apart, from the third on.
    let lying = Matrix::strided(&data, 3, (7, 9), 11).unwrap();
    for (matrix, number) in [
        (
            lying,
            (|row, column| 3 + row * 11 + column) as fn(_, _) -> usize,
        ),
        (lying.transposed(), |row, column| 3 + column * 11 + row),
    ] {
        let (rows, columns) = matrix.dims();
        for row in 0..rows {
            for first in 0..=columns {
                for count in 0..=columns - first {
                    let mut read = vec![f32::NAN; count];
                    matrix.read(row, first, &mut read);
                    let expected: Vec<f32> = (first..first + count)
                        .map(|column| data[number(row, column)])
                        .collect();
                    assert_eq!(read, expected, "row {row}, {count} from {first} on");
                }
            }
        }
    }
}

#[test]
#[should_panic = "no such numbers"]
fn no_part_ends_behind_its_row() {
    let data = [1f32; 6];
    let matrix = Matrix::new(&data, 2, 3).unwrap();
    matrix.read(0, 2, &mut [0.0; 2]);
}
