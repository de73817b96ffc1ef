//! GGUF's quantised types, and the blocks of a matrix in memory.
#![expect(
    unsafe_code,
    reason = "blocks are copied out of the bytes of a file into candle's types"
)]

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, BlockQ8_1, BlockQ8K,
};
use half::{bf16, f16};
use std::any::Any;
use std::sync::Arc;

/// A quantised type of GGUF. A row is a sequence of blocks, each a few small integers with a scale in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and an offset.
    Q4_1,
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and an offset.
    Q5_1,
    /// 8 bits and a scale.
    Q8_0,
    /// 8 bits, a scale and a sum.
    Q8_1,
    /// 2 bits in blocks of 256.
    Q2K,
    /// 3 bits in blocks of 256.
    Q3K,
    /// 4 bits in blocks of 256.
    Q4K,
    /// 5 bits in blocks of 256.
    Q5K,
    /// 6 bits in blocks of 256.
    Q6K,
    /// 8 bits in blocks of 256.
    Q8K,
}

impl BlockType {
    /// Every type, in the order of GGUF's numbers.
    pub const ALL: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q8_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
    ];

    /// The name, `q4_1`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.form().name
    }

    /// Numbers in a block.
    #[must_use]
    pub fn numbers(self) -> usize {
        self.form().numbers
    }

    /// Bytes of a block.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.form().bytes
    }

    /// Copies whole blocks out of a file; what is left over at the end is ignored.
    pub(crate) fn copy(self, bytes: &[u8]) -> Arc<dyn Decode> {
        (self.form().copy)(bytes)
    }

    fn form(self) -> Form {
        match self {
            Self::Q4_0 => Form::of::<BlockQ4_0>("q4_0"),
            Self::Q4_1 => Form::of::<BlockQ4_1>("q4_1"),
            Self::Q5_0 => Form::of::<BlockQ5_0>("q5_0"),
            Self::Q5_1 => Form::of::<BlockQ5_1>("q5_1"),
            Self::Q8_0 => Form::of::<BlockQ8_0>("q8_0"),
            Self::Q8_1 => Form::of::<BlockQ8_1>("q8_1"),
            Self::Q2K => Form::of::<BlockQ2K>("q2_k"),
            Self::Q3K => Form::of::<BlockQ3K>("q3_k"),
            Self::Q4K => Form::of::<BlockQ4K>("q4_k"),
            Self::Q5K => Form::of::<BlockQ5K>("q5_k"),
            Self::Q6K => Form::of::<BlockQ6K>("q6_k"),
            Self::Q8K => Form::of::<BlockQ8K>("q8_k"),
        }
    }
}

struct Form {
    name: &'static str,
    numbers: usize,
    bytes: usize,
    copy: fn(&[u8]) -> Arc<dyn Decode>,
}

impl Form {
    fn of<T: Block>(name: &'static str) -> Self {
        Self {
            name,
            numbers: T::BLCK_SIZE,
            bytes: size_of::<T>(),
            copy: copy::<T>,
        }
    }
}

/// Numbers that become f32 a few at a time.
pub(crate) trait Decode: Send + Sync {
    /// The numbers from the `first` on, as many as `into` takes. Both are whole blocks where a row
    /// is a whole number of them.
    fn decode(&self, first: usize, into: &mut [f32]);

    /// How many numbers make a whole block.
    fn block(&self) -> usize;

    /// Bytes in memory.
    fn bytes(&self) -> usize;

    /// The numbers themselves if they are bf16, which some products take as they are.
    fn bf16(&self) -> Option<&[bf16]> {
        None
    }

    /// Those bytes, if they are nothing but the numbers one after the other.
    fn raw(&self) -> Option<&[u8]> {
        None
    }
}

impl<T: Block> Decode for Vec<T> {
    fn decode(&self, first: usize, into: &mut [f32]) {
        let (first, count) = (first / T::BLCK_SIZE, into.len() / T::BLCK_SIZE);
        T::to_float(&self[first..first + count], into);
    }

    fn block(&self) -> usize {
        T::BLCK_SIZE
    }

    fn bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }

    fn bf16(&self) -> Option<&[bf16]> {
        let numbers: &dyn Any = self;
        numbers.downcast_ref::<Vec<bf16>>().map(Vec::as_slice)
    }

    fn raw(&self) -> Option<&[u8]> {
        // SAFETY: a `Block` consists of integers and halves without padding between them, as its size in the file says,
        // so each byte of the vector is initialised.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(&self[..])) };
        Some(bytes)
    }
}

/// One of candle's block types (or a single number) that has a value for whatever bytes.
///
/// # Safety
/// The type is `repr(C)` or a wrapped integer, and consists of integers and half-precision numbers only.
unsafe trait Block: GgmlType + 'static {}

// SAFETY: `repr(C)` structures whose fields are f16, f32 and arrays of integers.
unsafe impl Block for BlockQ4_0 {}
// SAFETY: as above.
unsafe impl Block for BlockQ4_1 {}
// SAFETY: as above.
unsafe impl Block for BlockQ5_0 {}
// SAFETY: as above.
unsafe impl Block for BlockQ5_1 {}
// SAFETY: as above.
unsafe impl Block for BlockQ8_0 {}
// SAFETY: as above.
unsafe impl Block for BlockQ8_1 {}
// SAFETY: as above.
unsafe impl Block for BlockQ2K {}
// SAFETY: as above.
unsafe impl Block for BlockQ3K {}
// SAFETY: as above.
unsafe impl Block for BlockQ4K {}
// SAFETY: as above.
unsafe impl Block for BlockQ5K {}
// SAFETY: as above.
unsafe impl Block for BlockQ6K {}
// SAFETY: as above.
unsafe impl Block for BlockQ8K {}
// SAFETY: a wrapped u16.
unsafe impl Block for f16 {}
// SAFETY: a wrapped u16.
unsafe impl Block for bf16 {}

fn copy<T: Block>(bytes: &[u8]) -> Arc<dyn Decode> {
    let count = bytes.len() / size_of::<T>();
    let mut blocks = Vec::<T>::with_capacity(count);
    // SAFETY: the vector has room for `count` blocks, `bytes` holds as many, and the two do not overlap because the
    // vector is new. Bytes may lie anywhere, so they are copied and not referred to; a `Block` has a value for
    // whatever bytes, so the blocks are initialised when their bytes are.
    unsafe {
        let size = count * size_of::<T>();
        blocks
            .as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), size);
        blocks.set_len(count);
    }
    Arc::new(blocks)
}
