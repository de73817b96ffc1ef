//! Decompositions, by what they must multiply to.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use lowrank_ops::linalg::{Svd, qr, svd, svd_randomised};
use lowrank_ops::rng::{Key, Purpose, Stream};

fn stream(site: &str) -> Stream {
    Key::new(11, Purpose::Test).site(site).stream()
}

fn normal(stream: &mut Stream, dims: &[usize], dtype: DType) -> Tensor {
    let numbers: Vec<f64> = (0..dims.iter().product())
        .map(|_| stream.normal())
        .collect();
    let tensor = Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().unwrap();
    flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn product(found: &Svd) -> Tensor {
    let values = Tensor::new(found.values.clone(), &Device::Cpu).unwrap();
    let values = values.to_dtype(found.left.dtype()).unwrap();
    let left = found.left.broadcast_mul(&values).unwrap();
    left.matmul(&found.right).unwrap()
}

/// The Frobenius norm of a - b.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let pairs = numbers(a).into_iter().zip(numbers(b));
    pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// The distance of the columns from an orthonormal set.
fn skew(columns: &Tensor) -> f64 {
    let gram = columns.t().unwrap().matmul(columns).unwrap();
    let eye = Tensor::eye(gram.dims()[0], gram.dtype(), &Device::Cpu).unwrap();
    distance(&gram, &eye)
}

const SHAPES: [[usize; 2]; 3] = [[7, 5], [6, 19], [40, 33]];

#[test]
fn a_whole_decomposition_gives_the_matrix_back() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-4)] {
        for shape in SHAPES {
            let matrix = normal(&mut stream("svd"), &shape, dtype);
            let found = svd(&matrix, shape[0].min(shape[1])).unwrap();
            assert_eq!(found.left.dtype(), dtype);
            assert!(distance(&product(&found), &matrix) < tolerance, "{shape:?}");
            assert!(skew(&found.left) < tolerance, "{shape:?}");
            assert!(skew(&found.right.t().unwrap()) < tolerance, "{shape:?}");
            assert!(found.values.is_sorted_by(|a, b| a >= b && *b > 0.0));
            let (q, r) = qr(&matrix).unwrap();
            assert!(distance(&q.matmul(&r).unwrap(), &matrix) < tolerance);
            assert!(skew(&q) < tolerance, "{shape:?}");
            let r = r.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
            for (i, row) in r.iter().enumerate() {
                assert!(row[..i].iter().all(|below| below.abs() < tolerance));
            }
        }
    }
}

#[test]
fn a_part_is_the_best_of_its_rank() {
    for shape in SHAPES {
        let matrix = normal(&mut stream("part"), &shape, DType::F64);
        let all = svd(&matrix, shape[0].min(shape[1])).unwrap();
        let part = svd(&matrix, 3).unwrap();
        assert_eq!(part.values, all.values[..3]);
        // Eckart and Young: what is missing is what the other values say.
        let missing = distance(&product(&part), &matrix);
        let others = all.values[3..].iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!((missing - others).abs() < 1e-10, "{missing} {others}");
    }
}

#[test]
fn projection_finds_what_stands_out_and_iterations_sharpen_it() {
    let random = &mut stream("randomised");
    for [rows, columns] in [[30, 21], [17, 44]] {
        let (tall, wide) = (
            normal(random, &[rows, 3], DType::F64),
            normal(random, &[3, columns], DType::F64),
        );
        let low = tall.matmul(&wide).unwrap();
        let key = Key::new(3, Purpose::Test).site("projection");
        let found = svd_randomised(&low, 3, 0, key).unwrap();
        assert!(distance(&product(&found), &low) < 1e-10);
        let noise = (normal(random, &[rows, columns], DType::F64) * 0.5).unwrap();
        let noisy = (low + noise).unwrap();
        let best = product(&svd(&noisy, 3).unwrap());
        let gaps = [0, 1, 12].map(|iterations| {
            let found = svd_randomised(&noisy, 3, iterations, key).unwrap();
            assert!(skew(&found.left) < 1e-12);
            distance(&product(&found), &best)
        });
        assert!(gaps[0] > 1e-2 && gaps[1] < gaps[0], "{gaps:?}");
        assert!(gaps[2] < 1e-6, "{gaps:?}");
        let again = svd_randomised(&noisy, 3, 1, key).unwrap();
        let other = svd_randomised(&noisy, 3, 1, key.site("elsewhere")).unwrap();
        assert_eq!(
            numbers(&again.left),
            numbers(&svd_randomised(&noisy, 3, 1, key).unwrap().left)
        );
        assert!(distance(&product(&again), &product(&other)) > 1e-6);
    }
}

#[test]
fn what_is_refused() {
    let matrix = normal(&mut stream("refused"), &[4, 6], DType::F32);
    assert_eq!(
        svd(&matrix, 5).unwrap_err().to_string(),
        "svd: the rank is 5, a [4, 6] matrix has at most 4"
    );
    let holed = Tensor::new(&[[1f32, f32::NAN, 2.], [3., 4., 5.]], &Device::Cpu).unwrap();
    let what = "the matrix holds a number that is not finite";
    assert_eq!(
        svd(&holed, 1).unwrap_err().to_string(),
        format!("svd: {what}")
    );
    assert_eq!(qr(&holed).unwrap_err().to_string(), format!("qr: {what}"));
}
