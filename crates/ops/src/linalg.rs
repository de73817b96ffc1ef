//! Decompositions of matrices, for where adapters start: on the host, in f64 inside, without gradients.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lowrank_ops::linalg::svd;
//! let matrix = Tensor::new(&[[3f64, 0.], [0., 2.], [0., 0.]], &Device::Cpu)?;
//! let best = svd(&matrix, 1)?;
//! assert!((best.values[0] - 3.0).abs() < 1e-12);
//! assert_eq!((best.left.dims(), best.right.dims()), (&[3, 1][..], &[1, 2][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::rng::Key;
use crate::{Error, Result, all_finite};
use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};

/// The leading part of a singular value decomposition: `left` diag(`values`) `right`. The sign of a pair of vectors is
/// arbitrary.
#[derive(Debug, Clone)]
pub struct Svd {
    /// `[rows, rank]`, orthonormal columns, in the matrix's dtype.
    pub left: Tensor,
    /// Descending.
    pub values: Vec<f64>,
    /// `[rank, columns]`, orthonormal rows, in the matrix's dtype.
    pub right: Tensor,
}

/// The `rank` largest singular values of `matrix` `[rows, columns]`, with their vectors.
///
/// # Errors
/// If `rank` is larger than a side, a number is not finite, or the iteration does not converge.
pub fn svd(matrix: &Tensor, rank: usize) -> Result<Svd> {
    let (w, dtype) = (read("svd", matrix, rank)?, matrix.dtype());
    leading(w.as_ref(), None, rank, dtype)
}

/// The same by random projection to `rank` dimensions and `iterations` power iterations, which sharpen it (Halko,
/// Martinsson and Tropp 2011): much cheaper than [`svd`], and near to it where singular values fall fast.
///
/// # Errors
/// As [`svd`].
pub fn svd_randomised(matrix: &Tensor, rank: usize, iterations: usize, key: Key) -> Result<Svd> {
    let (w, dtype) = (read("svd_randomised", matrix, rank)?, matrix.dtype());
    let mut stream = key.stream();
    let start = Mat::from_fn(w.ncols(), rank, |_, _| stream.normal());
    let mut range = (&w * start).qr().compute_thin_Q();
    for _ in 0..iterations {
        let turned = (w.transpose() * &range).qr().compute_thin_Q();
        range = (&w * turned).qr().compute_thin_Q();
    }
    let small = range.transpose() * &w;
    leading(small.as_ref(), Some(&range), rank, dtype)
}

/// `matrix` `[rows, columns]` = Q R with orthonormal columns of Q `[rows, k]` and R `[k, columns]` upper triangular,
/// where k is the shorter side; in the matrix's dtype. The sign of a column of Q and its row of R is arbitrary.
///
/// # Errors
/// If a number is not finite.
pub fn qr(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (w, dtype) = (read("qr", matrix, 0)?, matrix.dtype());
    let factors = w.qr();
    let q = factors.compute_thin_Q();
    Ok((write(q.as_ref(), dtype)?, write(factors.thin_R(), dtype)?))
}

/// The decomposition of `w`, its left vectors taken back through `basis`.
fn leading(w: MatRef<'_, f64>, basis: Option<&Mat<f64>>, rank: usize, dtype: DType) -> Result<Svd> {
    let found = w.thin_svd().map_err(|_| Error::Argument {
        op: "svd",
        what: format!(
            "the decomposition of a [{}, {}] matrix did not converge",
            w.nrows(),
            w.ncols()
        ),
    })?;
    let left = found.U().get(.., ..rank);
    let values = found.S().column_vector();
    Ok(Svd {
        left: match basis {
            Some(basis) => write((basis * left).as_ref(), dtype)?,
            None => write(left, dtype)?,
        },
        values: (0..rank).map(|i| values[i]).collect(),
        right: write(found.V().get(.., ..rank).transpose(), dtype)?,
    })
}

fn read(op: &'static str, matrix: &Tensor, rank: usize) -> Result<Mat<f64>> {
    let (rows, columns) = matrix.dims2()?;
    if rank > rows.min(columns) {
        return Err(Error::Argument {
            op,
            what: format!(
                "the rank is {rank}, a [{rows}, {columns}] matrix has at most {}",
                rows.min(columns)
            ),
        });
    }
    let matrix = matrix.detach().to_dtype(DType::F64)?;
    if !all_finite(&matrix)? {
        let what = "the matrix holds a number that is not finite".into();
        return Err(Error::Argument { op, what });
    }
    let numbers = matrix.flatten_all()?.to_vec1::<f64>()?;
    Ok(MatRef::from_row_major_slice(&numbers, rows, columns).to_owned())
}

fn write(matrix: MatRef<'_, f64>, dtype: DType) -> Result<Tensor> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let numbers = (0..rows).flat_map(|i| (0..columns).map(move |j| matrix[(i, j)]));
    let numbers: Vec<f64> = numbers.collect();
    Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?.to_dtype(dtype)?)
}
