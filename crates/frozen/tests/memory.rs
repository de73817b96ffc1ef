//! A step over a frozen layer allocates nothing of the weight's size. Alone in its file: it watches every allocation.
#![expect(unsafe_code, reason = "a global allocator that watches sizes")]
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, Var};
use lowrank_frozen::{BlockType, FrozenLinear, Stored};
use lowrank_ops as ops;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged; beside it only an atomic is touched.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` took the block from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

#[test]
fn a_step_over_a_large_layer_allocates_nothing_of_its_size() {
    const N: usize = 4096;
    const ROWS: usize = 8;
    // 1/128 is exact in every dtype, and blocks of one value are exact too.
    let dense = Tensor::full(1f32 / 128.0, (N, N), &Device::Cpu).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let half = Stored::new(dense.to_dtype(dtype).unwrap()).unwrap();
        let largest = largest_of_a_step::<N, ROWS>(FrozenLinear::stored(half));
        assert!(largest <= SCRATCH, "{dtype:?}: {largest} bytes at once");
    }
    let blocks = QTensor::quantize(&dense, GgmlDType::Q4_1).unwrap();
    let blocks = Stored::blocks(BlockType::Q4_1, &blocks.data().unwrap(), (N, N)).unwrap();
    assert_eq!(blocks.bytes(), N * N / 32 * 20);
    let largest = largest_of_a_step::<N, ROWS>(FrozenLinear::stored(blocks));
    assert!(largest <= SCRATCH, "q4_1: {largest} bytes at once");

    let largest = largest_of_a_step::<N, ROWS>(FrozenLinear::new(dense, None).unwrap());
    let weight_bytes = N * N * size_of::<f32>();
    assert!(
        largest < weight_bytes / 16,
        "{largest} bytes at once, the weight has {weight_bytes}"
    );
}

/// What a packed weight is decoded into, piece by piece, with room for what a product packs.
const SCRATCH: usize = 2 << 20;

fn largest_of_a_step<const N: usize, const ROWS: usize>(layer: FrozenLinear) -> usize {
    let device = &Device::Cpu;
    let x = Var::ones((ROWS, N), DType::F32, device).unwrap();
    let a = Var::ones((4, N), DType::F32, device).unwrap();
    let b = Var::ones((N, 4), DType::F32, device).unwrap();

    LARGEST.store(0, Ordering::Relaxed);
    let y = layer.forward_low_rank(&x, &a, &b, 0.5).unwrap();
    let loss = ops::sum_all(&y).unwrap();
    let (_, grads) = ops::backward(&loss, &[], &[&x, &a, &b]).unwrap();
    let largest = LARGEST.load(Ordering::Relaxed);

    // dx = G W + s (G B) A = N / 128 + 0.5 * N * 4.
    let dx = grads[0].as_ref().unwrap().to_vec2::<f32>().unwrap();
    let expected = N as f32 / 128.0 + 0.5 * (N * 4) as f32;
    assert!(
        (dx[3][5] - expected).abs() < 1e-2 * expected,
        "{}",
        dx[3][5]
    );
    assert!(
        largest >= ROWS * N * size_of::<f32>(),
        "the watch saw nothing: {largest}"
    );
    largest
}
