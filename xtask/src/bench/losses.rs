//! Whether both sides did the same work: the losses of their first steps.

use crate::bench::report::{Cell, Report, Side};
use crate::bench::summary::{same, steps};
use anyhow::{Result, bail};
use serde_json::Value;

/// How far apart the losses of the first step may be, relative to the loss.
const SAME_LOSS: f64 = 1e-4;

/// Holds the first losses of all f32 cells of the same model and tokens together: B is 0, so each is the base model's own.
/// Cells with rounded weights or products are not compared.
///
/// # Errors
/// If two are further apart than rounding explains: then the timings are not of the same work.
pub fn same_work(report: &Report) -> Result<()> {
    let (worst, text) = losses(report);
    eprint!("{text}");
    if worst > SAME_LOSS {
        bail!(
            "the first losses of ours and the peer's are {worst:.1e} apart, at most {SAME_LOSS:.0e} is rounding"
        );
    }
    Ok(())
}

/// The largest relative distance, and a line a pair.
fn losses(report: &Report) -> (f64, String) {
    let exact = |cell: &&Cell| {
        let dtype = matches!(cell.axis("dtype"), "as-stored" | "f32" | "float32");
        cell.axis("precision") == "f32"
            && dtype
            && cell.axes.get("autocast") != Some(&Value::Bool(true))
    };
    let (mut worst, mut text) = (0.0_f64, String::new());
    for ours in steps(report)
        .filter(exact)
        .filter(|cell| cell.side == Side::Ours)
    {
        let peers = steps(report)
            .filter(exact)
            .filter(|cell| cell.side == Side::Peer);
        for peer in peers.filter(|peer| same(ours, peer, &["model", "batch", "length"])) {
            let (Some(one), Some(other)) = (ours.fact("first_loss"), peer.fact("first_loss"))
            else {
                continue;
            };
            let apart = ((one - other) / other).abs();
            // A distance that is no number is the worst.
            worst = if apart.is_nan() {
                f64::INFINITY
            } else {
                worst.max(apart)
            };
            text.push_str(&format!(
                "first loss: {} {one:.6}, {} {other:.6}, {apart:.1e} apart\n",
                ours.name, peer.name
            ));
        }
    }
    (worst, text)
}
