//! What several test files use.

use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// Offset, offset + 1, ..: exact in every dtype, and no two elements are equal.
pub fn ramp(shape: &[usize], dtype: DType) -> Tensor {
    let offset = if dtype.is_float() { 0.25f32 } else { 0. };
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| i as f32 + offset).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
        .and_then(|tensor| tensor.to_dtype(dtype))
        .unwrap()
}

/// An error's message with the folder's path cut to `DIR`.
pub fn message<T: std::fmt::Debug>(result: Result<T, lowrank_format::Error>, dir: &Path) -> String {
    let message = result.unwrap_err().to_string();
    message.replace(&dir.display().to_string(), "DIR")
}
