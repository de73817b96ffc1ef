//! The two dtypes that carry gradients, and plain slices of what candle stores.
#![expect(unsafe_code, reason = "vectors that are written before they are read")]

use crate::{Error, Result};
use candle_core::{CpuStorage, Layout, Storage, StorageRef, Tensor, WithDType};
use std::marker::PhantomData;
use std::ops::{Deref, Neg, Range};
use std::sync::Arc;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// f32 or f64. `from_f64` and `to_f64` come with [`WithDType`].
pub trait Float: sealed::Sealed + WithDType + Default + Neg<Output = Self> {
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;

    /// e to the power of `self`, to 1.5e-7 relative in f32.
    #[must_use]
    fn exp(self) -> Self;

    /// The numbers of a storage, `None` if it holds another dtype.
    #[must_use]
    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        Self::cpu_storage_as_slice(storage).ok()
    }

    /// The numbers of a storage, `None` if it holds another dtype.
    #[must_use]
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// A storage that holds `data`.
    #[must_use]
    fn storage(data: Vec<Self>) -> CpuStorage {
        Self::to_cpu_storage_owned(data)
    }

    /// The numbers if they are f32.
    #[doc(hidden)]
    fn singles(numbers: &[Self]) -> Option<&[f32]>;

    /// The numbers if they are f32.
    #[doc(hidden)]
    fn singles_mut(numbers: &mut [Self]) -> Option<&mut [f32]>;

    /// Forgets the dtype of a gradient.
    #[doc(hidden)]
    fn into_buffer(numbers: Arc<Vec<Self>>) -> Buffer;

    /// `None` if the gradient has the other dtype.
    #[doc(hidden)]
    fn from_buffer(buffer: Buffer) -> Option<Arc<Vec<Self>>>;
}

/// The numbers of a gradient.
#[doc(hidden)]
#[derive(Debug)]
pub enum Buffer {
    F32(Arc<Vec<f32>>),
    F64(Arc<Vec<f64>>),
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    /// Without branches or calls, so that loops over it become SIMD; the library's is not.
    #[inline(always)]
    fn exp(self) -> Self {
        // Below and above these the result is 0 and infinity. A NaN passes both comparisons.
        let x = if self < -104.0 { -104.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        // 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        // ln 2 in two parts, the first of so few bits that its product with n is exact.
        const LN_2_HIGH: f32 = 355.0 / 512.0;
        const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
        // x = n ln 2 + r with |r| < 0.35, where eight terms of the series leave 6e-9.
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * LN_2_HIGH - n * LN_2_LOW;
        let series = 1.0 / 720.0 + r * (1.0 / 5040.0);
        let series = 1.0 / 24.0 + r * (1.0 / 120.0 + r * series);
        let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * series)));
        // 2^n in two factors, because n itself may lie outside the exponents of f32.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let power = |n: i32| Self::from_bits((n.wrapping_add(127) << 23) as u32);
        series * power(n >> 1) * power(n.wrapping_sub(n >> 1))
    }

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(numbers) => Some(numbers),
            _ => None,
        }
    }

    fn singles(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }

    fn singles_mut(numbers: &mut [Self]) -> Option<&mut [f32]> {
        Some(numbers)
    }

    fn into_buffer(numbers: Arc<Vec<Self>>) -> Buffer {
        Buffer::F32(numbers)
    }

    fn from_buffer(buffer: Buffer) -> Option<Arc<Vec<Self>>> {
        match buffer {
            Buffer::F32(numbers) => Some(numbers),
            _ => None,
        }
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline]
    fn exp(self) -> Self {
        Self::exp(self)
    }

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(numbers) => Some(numbers),
            _ => None,
        }
    }

    fn singles(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn singles_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    fn into_buffer(numbers: Arc<Vec<Self>>) -> Buffer {
        Buffer::F64(numbers)
    }

    fn from_buffer(buffer: Buffer) -> Option<Arc<Vec<Self>>> {
        match buffer {
            Buffer::F64(numbers) => Some(numbers),
            _ => None,
        }
    }
}

/// A vector of which every number is to be written before it is read: the memory of a large result is touched once.
#[must_use]
#[expect(
    clippy::uninit_vec,
    reason = "writing zeros first costs as much as many an operation"
)]
pub fn unwritten<T: Float>(len: usize) -> Vec<T> {
    let mut numbers = Vec::with_capacity(len);
    // SAFETY: the memory is there. `T` is sealed to f32 and f64, for which all bits are numbers and which have no
    // destructor, and callers write every number before they read it.
    unsafe { numbers.set_len(len) };
    numbers
}

/// The numbers of a contiguous tensor, borrowed; derefs to a slice. Made by [`data`].
pub struct Data<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    dtype: PhantomData<T>,
}

/// The numbers of a contiguous CPU tensor. While the result lives the tensor cannot be set.
///
/// # Errors
/// If the tensor is not contiguous, not on the CPU, or not of dtype `T`.
pub fn data<T: Float>(tensor: &Tensor) -> Result<Data<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = match &*storage {
        Storage::Cpu(cpu) => range::<T>(cpu, layout)?,
        _ => {
            return Err(Error::Argument {
                op: "data",
                what: "only CPU tensors are supported".into(),
            });
        }
    };
    Ok(Data {
        storage,
        range,
        dtype: PhantomData,
    })
}

impl<T: Float> Deref for Data<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(cpu) => &T::slice(cpu).expect("checked by `data`")[self.range.clone()],
            _ => unreachable!("checked by `data`"),
        }
    }
}

/// The numbers that a custom op's contiguous argument refers to.
///
/// # Errors
/// If the layout is not contiguous or the storage is not of dtype `T`.
pub(crate) fn argument<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let range = range::<T>(storage, layout)?;
    Ok(&T::cpu_storage_as_slice(storage)?[range])
}

fn range<T: Float>(storage: &CpuStorage, layout: &Layout) -> Result<Range<usize>> {
    let len = T::cpu_storage_as_slice(storage)?.len();
    match layout.contiguous_offsets() {
        Some((start, end)) if end <= len => Ok(start..end),
        _ => Err(Error::Argument {
            op: "data",
            what: "the tensor must be contiguous".into(),
        }),
    }
}

/// Refuses arguments whose dtype is not that of the first.
pub(crate) fn same_dtype(
    op: &'static str,
    first: &Tensor,
    others: &[(&'static str, &Tensor)],
) -> Result<()> {
    for (what, other) in others {
        if other.dtype() != first.dtype() {
            let (got, expected) = (other.dtype().as_str(), first.dtype().as_str());
            let what = format!("{what} has dtype {got}, the other argument has {expected}");
            return Err(Error::Argument { op, what });
        }
    }
    Ok(())
}

/// Evaluates an expression with a type name bound to f32 or f64, whichever the dtype says; refuses others.
macro_rules! with_float {
    ($op:expr, $dtype:expr, $float:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $float = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $float = f64;
                $body
            }
            other => {
                return Err($crate::Error::DType {
                    op: $op,
                    dtype: other.as_str(),
                })
            }
        }
    };
}
pub(crate) use with_float;
