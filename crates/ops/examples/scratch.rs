#![allow(missing_docs, clippy::all, clippy::print_stdout, unused)]
use candle_core::{DType, Device, Tensor, Var};
use lowrank_ops as ops;
use std::time::Instant;
fn time(name: &str, mut f: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..12 {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!("{name:30} {:8.3} ms", best * 1e3);
}
fn var(d: &[usize]) -> Var {
    let n: usize = d.iter().product();
    Var::from_vec(
        (0..n)
            .map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0)
            .collect::<Vec<f32>>(),
        d,
        &Device::Cpu,
    )
    .unwrap()
}
fn both(name: &str, leaves: &[&Var], f: impl Fn() -> Tensor) {
    let y = f();
    time(&format!("{name} fwd"), || {
        f();
    });
    let g = y.ones_like().unwrap();
    let mut best = f64::MAX;
    for _ in 0..12 {
        let y = f();
        let s = ops::Seed::apply(&y, &g).unwrap();
        let t = Instant::now();
        ops::backward(&s, &[], leaves).unwrap();
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!("{name:26} bwd {:8.3} ms", best * 1e3);
}
fn main() {
    let (b, t) = (4, 256);
    let q = var(&[b, 9, t, 64]);
    let k = var(&[b, 3, t, 64]);
    let v = var(&[b, 3, t, 64]);
    let mask = ops::AttentionMask {
        query_segments: vec![1; b * t],
        key_segments: vec![1; b * t],
        batch: b,
    };
    both("attention", &[&q, &k, &v], || {
        ops::attention(&q, &k, &v, &mask, 0.125).unwrap()
    });
    let x = var(&[b, t, 576]);
    let w = var(&[576]);
    both("rms_norm", &[&x], || {
        ops::rms_norm(&x, &w.as_detached_tensor(), 1e-5).unwrap()
    });
    let g = var(&[b, t, 1536]);
    let u = var(&[b, t, 1536]);
    both("swiglu", &[&g, &u], || ops::swiglu(&g, &u).unwrap());
    let table = ops::RotaryTable::new(64, 10000., &ops::RotaryScaling::None).unwrap();
    let pos: Vec<u32> = (0..b as u32 * t as u32).map(|i| i % 256).collect();
    both("rotary", &[&q], || ops::rotary(&q, &table, &pos).unwrap());
    let logits = var(&[128, 49152]);
    both("cross_entropy 128", &[&logits], || {
        ops::cross_entropy(&logits, &vec![5; 128]).unwrap()
    });
    let a = var(&[8, 576]);
    let bb = var(&[1536, 8]);
    both("low_rank 576-1536", &[&x, &a, &bb], || {
        ops::low_rank(&x, &a, &bb, 2.0).unwrap()
    });
    let x2 = var(&[b, t, 576]);
    both("add", &[&x, &x2], || {
        (x.as_tensor() + x2.as_tensor()).unwrap()
    });
}
