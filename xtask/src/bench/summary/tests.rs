use super::*;
use crate::bench::losses::same_work;
use crate::bench::machine::Machine;
use crate::bench::object;
use crate::bench::report::{Line, Measure};
use serde_json::{Map, json};

fn cell(name: &str, side: Side, axes: [&str; 3], seconds: &[f64], peak: f64, loss: f64) -> Cell {
    let [family, dtype, precision] = axes;
    Cell {
        name: name.to_owned(),
        side,
        axes: object([
            ("kind", json!("step")),
            ("family", json!(family)),
            ("dtype", json!(dtype)),
            ("precision", json!(precision)),
            ("batch", json!(4)),
        ]),
        rounds: vec![Line {
            axes: Map::new(),
            measures: vec![
                Measure::new("step_seconds", "s", seconds.to_vec()),
                Measure::new("peak_rss", "MiB", vec![peak]),
            ],
            facts: object([("first_loss", json!(loss))]),
        }],
        error: None,
    }
}

fn report(cells: Vec<Cell>) -> Report {
    Report {
        benchmark: "step",
        date: String::new(),
        machine: Machine::default(),
        versions: Map::new(),
        commit: String::new(),
        command: String::new(),
        cells,
        ratios: Vec::new(),
        notes: Vec::new(),
        fits: Vec::new(),
    }
}

fn ratio_of<'a>(report: &'a Report, what: &str, cell: &str) -> &'a Ratio {
    let found = report
        .ratios
        .iter()
        .find(|ratio| ratio.what.starts_with(what) && ratio.cells.0 == cell);
    found.expect("there is such a ratio")
}

#[test]
fn ours_is_held_against_the_best_peer() {
    let mut report = report(vec![
        cell(
            "ours",
            Side::Ours,
            ["lora", "as-stored", "f32"],
            &[2.0, 2.5, 3.0],
            900.0,
            11.0,
        ),
        cell(
            "ours dora",
            Side::Ours,
            ["dora", "as-stored", "f32"],
            &[3.0],
            1000.0,
            11.0,
        ),
        cell(
            "eager",
            Side::Peer,
            ["lora", "float32", "f32"],
            &[4.0, 5.0],
            5800.0,
            11.0,
        ),
        cell(
            "compiled",
            Side::Peer,
            ["lora", "float32", "f32"],
            &[3.75, 3.0, 4.0],
            3600.0,
            11.0,
        ),
        cell(
            "bf16",
            Side::Peer,
            ["lora", "bfloat16", "bf16"],
            &[1.25],
            1800.0,
            11.2,
        ),
    ]);
    compare(&mut report);
    let speed = ratio_of(&report, "tokens/s over the fastest peer in f32", "ours");
    assert!(!speed.disturbed);
    assert_eq!((speed.by_median, speed.by_min), (1.5, 1.5));
    assert_eq!(speed.cells.1, "compiled");
    assert_eq!(
        ratio_of(&report, "tokens/s over the fastest peer of any", "ours").by_median,
        0.5
    );
    assert_eq!(
        ratio_of(&report, "peak memory over the leanest peer in f32", "ours").by_median,
        0.25
    );
    assert_eq!(
        ratio_of(&report, "peak memory over the leanest peer of any", "ours").by_median,
        0.5
    );
    assert_eq!(
        ratio_of(&report, "step time over LoRA's", "ours dora").by_median,
        1.2
    );
    // No peer of that family ran.
    assert_eq!(
        report
            .ratios
            .iter()
            .filter(|ratio| ratio.cells.0 == "ours dora")
            .count(),
        1
    );
}

/// What held up the peer that would have been the fastest makes another one the fastest.
#[test]
fn one_disturbed_peer_is_enough() {
    let mut slow = cell(
        "slow",
        Side::Peer,
        ["lora", "float32", "f32"],
        &[9.0],
        1.0,
        11.0,
    );
    slow.rounds[0]
        .measures
        .push(Measure::new(FOREIGN, "1", vec![0.5]));
    let mut report = report(vec![
        cell(
            "ours",
            Side::Ours,
            ["lora", "as-stored", "f32"],
            &[2.0],
            1.0,
            11.0,
        ),
        cell(
            "eager",
            Side::Peer,
            ["lora", "float32", "f32"],
            &[4.0],
            1.0,
            11.0,
        ),
        slow,
    ]);
    compare(&mut report);
    let speed = ratio_of(&report, "tokens/s over the fastest peer in f32", "ours");
    assert!(speed.disturbed && speed.cells.1 == "eager");
    assert!(!ratio_of(&report, "peak memory", "ours").disturbed);
}

#[test]
fn other_work_is_noticed() {
    let of = |loss| {
        report(vec![
            cell(
                "ours",
                Side::Ours,
                ["lora", "as-stored", "f32"],
                &[2.0],
                900.0,
                11.0,
            ),
            cell(
                "eager",
                Side::Peer,
                ["lora", "float32", "f32"],
                &[4.0],
                5800.0,
                loss,
            ),
            cell(
                "bf16",
                Side::Peer,
                ["lora", "bfloat16", "bf16"],
                &[1.5],
                1800.0,
                12.0,
            ),
        ])
    };
    assert!(same_work(&of(11.0005)).is_ok());
    assert!(same_work(&of(11.01)).is_err());
    assert!(same_work(&of(f64::NAN)).is_ok(), "JSON has no such number");
    let text = shown(&of(11.0)).text;
    assert!(
        text.lines()
            .any(|line| line.starts_with("ours") && line.contains("2.000")),
        "{text}"
    );
}
