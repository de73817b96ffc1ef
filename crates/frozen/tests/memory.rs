//! A step over a frozen layer allocates nothing of the weight's size. Alone in its file: it watches every allocation.
#![expect(unsafe_code, reason = "a global allocator that watches sizes")]

use candle_core::{DType, Device, Tensor, Var};
use lowrank_frozen::FrozenLinear;
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
    let device = &Device::Cpu;
    let weight = Tensor::full(0.01f32, (N, N), device).unwrap();
    let layer = FrozenLinear::new(weight, None).unwrap();
    let x = Var::ones((ROWS, N), DType::F32, device).unwrap();
    let a = Var::ones((4, N), DType::F32, device).unwrap();
    let b = Var::ones((N, 4), DType::F32, device).unwrap();

    LARGEST.store(0, Ordering::Relaxed);
    let y = layer.forward_low_rank(&x, &a, &b, 0.5).unwrap();
    let loss = ops::sum_all(&y).unwrap();
    let (_, grads) = ops::backward(&loss, &[], &[&x, &a, &b]).unwrap();
    let largest = LARGEST.load(Ordering::Relaxed);

    // dx = G W + s (G B) A = 0.01 N + 0.5 * N * 4.
    let dx = grads[0].as_ref().unwrap().to_vec2::<f32>().unwrap();
    let expected = 0.01 * N as f32 + 0.5 * (N * 4) as f32;
    assert!(
        (dx[3][5] - expected).abs() < 1e-2 * expected,
        "{}",
        dx[3][5]
    );
    let weight_bytes = N * N * size_of::<f32>();
    assert!(
        largest >= ROWS * N * size_of::<f32>(),
        "the watch saw nothing: {largest}"
    );
    assert!(
        largest < weight_bytes / 16,
        "{largest} bytes at once, the weight has {weight_bytes}"
    );
}
