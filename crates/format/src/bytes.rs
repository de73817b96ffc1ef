//! A tensor as the bytes that files hold: row-major and little-endian.
#![expect(
    unsafe_code,
    reason = "numbers are viewed as bytes, so that a large tensor is not copied to be written"
)]

use crate::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::prelude::*;
use std::path::Path;

/// Refuses a tensor that holds an infinity or a NaN; integers always pass.
///
/// # Errors
/// [`Error::NonFinite`] for the first such element, naming `path` and `name`.
pub fn check_finite(path: &Path, name: &str, tensor: &Tensor) -> Result<()> {
    let found = with_storage(tensor, |numbers| match numbers {
        Numbers::F16(values) => first_non_finite(values, |x| x.is_finite(), |x| x.to_f64()),
        Numbers::BF16(values) => first_non_finite(values, |x| x.is_finite(), |x| x.to_f64()),
        Numbers::F32(values) => first_non_finite(values, |x| x.is_finite(), f64::from),
        Numbers::F64(values) => first_non_finite(values, f64::is_finite, |x| x),
        Numbers::Other(_) => None,
    })?;
    match found {
        None => Ok(()),
        Some((index, value)) => Err(Error::NonFinite {
            path: path.to_path_buf(),
            name: name.to_owned(),
            value,
            index,
        }),
    }
}

/// Calls `f` with the tensor's elements as they are stored in a file.
pub(crate) fn with_bytes<R>(tensor: &Tensor, f: impl FnOnce(&[u8]) -> R) -> Result<R> {
    with_storage(tensor, |numbers| match numbers {
        Numbers::F16(values) => f(plain(values)),
        Numbers::BF16(values) => f(plain(values)),
        Numbers::F32(values) => f(plain(values)),
        Numbers::F64(values) => f(plain(values)),
        Numbers::Other(bytes) => f(bytes),
    })
}

/// The elements of a tensor in row-major order: what may be non-finite by type, the rest as bytes.
enum Numbers<'a> {
    F16(&'a [half::f16]),
    BF16(&'a [half::bf16]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    Other(&'a [u8]),
}

fn with_storage<R>(tensor: &Tensor, f: impl FnOnce(Numbers<'_>) -> R) -> Result<R> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (from, to) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("a contiguous tensor has contiguous offsets"))?;
    let Storage::Cpu(storage) = &*storage else {
        return Err(candle_core::Error::msg("a tensor moved to the CPU lies there").into());
    };
    let numbers = match storage {
        CpuStorage::F16(values) => Numbers::F16(&values[from..to]),
        CpuStorage::BF16(values) => Numbers::BF16(&values[from..to]),
        CpuStorage::F32(values) => Numbers::F32(&values[from..to]),
        CpuStorage::F64(values) => Numbers::F64(&values[from..to]),
        CpuStorage::U8(values) => Numbers::Other(&values[from..to]),
        CpuStorage::U32(values) => Numbers::Other(plain(&values[from..to])),
        CpuStorage::I16(values) => Numbers::Other(plain(&values[from..to])),
        CpuStorage::I32(values) => Numbers::Other(plain(&values[from..to])),
        CpuStorage::I64(values) => Numbers::Other(plain(&values[from..to])),
        _ => {
            let message = format!("{} tensors cannot be written", tensor.dtype().as_str());
            return Err(candle_core::Error::msg(message).into());
        }
    };
    Ok(f(numbers))
}

/// A type without padding, any bytes of which may be looked at.
trait Plain: Copy {}
impl Plain for half::f16 {}
impl Plain for half::bf16 {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for u32 {}
impl Plain for i16 {}
impl Plain for i32 {}
impl Plain for i64 {}

fn plain<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: the length is that of the slice in bytes, `Plain` types have no padding, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn first_non_finite<T: Copy + Sync>(
    values: &[T],
    is_finite: impl Fn(T) -> bool + Sync,
    widen: impl Fn(T) -> f64,
) -> Option<(usize, f64)> {
    const CHUNK: usize = 1 << 16;
    // Within a chunk nothing returns early, so that the loop becomes vector code.
    let all_finite = |chunk: &[T]| chunk.iter().fold(true, |all, &x| all & is_finite(x));
    let chunk = values
        .par_chunks(CHUNK)
        .position_first(|chunk| !all_finite(chunk))?;
    let start = chunk * CHUNK;
    let index = start + values[start..].iter().position(|&x| !is_finite(x))?;
    Some((index, widen(values[index])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn bytes_are_row_major_whatever_the_view() {
        let tensor = Tensor::new(&[[1u32, 2, 3], [4, 5, 6]], &Device::Cpu).unwrap();
        let transposed = with_bytes(&tensor.t().unwrap(), <[u8]>::to_vec).unwrap();
        let words: Vec<u8> = [1u32, 4, 2, 5, 3, 6]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(transposed, words);
        let row = with_bytes(&tensor.narrow(0, 1, 1).unwrap(), <[u8]>::to_vec).unwrap();
        assert_eq!(row, [4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
    }

    #[test]
    fn the_first_non_finite_element_is_named() {
        let path = Path::new("dir");
        let mut values = vec![0.5f32; 200_000];
        values[150_001] = f32::NEG_INFINITY;
        values[150_002] = f32::NAN;
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        let error = check_finite(path, "w", &tensor).unwrap_err();
        let message = "dir: tensor `w` holds -inf at element 150001; expected finite numbers";
        assert_eq!(error.to_string(), message);

        for tensor in [
            Tensor::new(&[f16::ONE, f16::NAN], &Device::Cpu).unwrap(),
            Tensor::new(&[bf16::ONE, bf16::INFINITY], &Device::Cpu).unwrap(),
            Tensor::new(&[1f64, f64::NAN], &Device::Cpu).unwrap(),
        ] {
            let error = check_finite(path, "w", &tensor).unwrap_err().to_string();
            assert!(error.contains("at element 1;"), "{error}");
        }
        let integers = Tensor::new(&[u32::MAX, 7], &Device::Cpu).unwrap();
        check_finite(path, "w", &integers).unwrap();
    }
}
