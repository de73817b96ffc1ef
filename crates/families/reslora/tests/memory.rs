//! Passes leave no memory behind: in a program of its own, since others would be measured with it.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of a test may fail it")]

use candle_core::DType;
use lowrank_adapter::{
    AdapterConfig, Memory, Pass, Selection, Share, Source, Start, attach, sweep,
};
use lowrank_conformance::toy::{Head, Toy, batch};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_reslora::Reslora;
use serde_json::json;

/// Resident memory in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

#[test]
fn memory_stays_flat() {
    for res_type in ["is", "bs", "ms"] {
        let keys = json!({
            "r": 4, "res_type": res_type, "merge": "bi", "pre_num": 2, "target_modules": "all-linear",
        });
        let keys = keys.as_object().unwrap();
        let config = AdapterConfig::parse(&Reslora, keys, Source::RunFile).unwrap();
        let mut toy = Toy::new(DType::F32, Head::Own).unwrap();
        let attached = attach(&mut toy, "default", &config, Start::Seed(3)).unwrap();
        // A pass that stayed would keep some MiB of activations, what layers hand on 0.3 MiB.
        let rows: Vec<&[usize]> = vec![&[64]; 16];
        let rows = batch(5, &rows).unwrap();
        let (trained, share) = (
            attached.trained(),
            Share {
                token: 0.5,
                auxiliary: 1.0,
            },
        );
        let run = |from: u64, until: u64| {
            for step in from..until {
                let key = Key::new(7, Purpose::Dropout).step(step);
                let mut pass = Pass::training_pass(Selection::one("default"), key);
                sweep(&toy, &rows, &mut pass, &trained, share, Memory::Keep).unwrap();
            }
        };
        run(0, 10);
        let before = resident();
        run(10, 110);
        let grown = resident() - before;
        assert!(grown < 8.0, "{res_type}: {grown} MiB after 100 passes");
    }
}
