//! The operations of a block with their inputs, and how they are timed in this process.

use crate::bench::ops::{GFLOP, RANK, distinct};
use crate::bench::report::{Line, Measure};
use crate::bench::shapes::{self, Work};
use crate::bench::{count, object, random, word};
use anyhow::Result;
use candle_core::{DType, Tensor};
use lowrank::adapter::{AttentionMask, Kind, Param, ParamInfo, Reach};
use lowrank::models::LlamaConfig;
use lowrank::training::{AdamW, Algorithm, Updated};
use lowrank_frozen::{Compute, FrozenLinear};
use lowrank_ops::{self as ops, Grads, RotaryTable, Seed, composed};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;
type Activation = fn(&Tensor) -> ops::Result<Tensor>;

/// An operation with its inputs; all of them are differentiated.
struct Op {
    name: &'static str,
    shape: String,
    precision: &'static str,
    inputs: Vec<Tensor>,
    /// GFLOP or GB of forward and of backward.
    work: (f64, f64),
    unit: &'static str,
    ours: Function,
    composed: Option<Function>,
}

/// Measures all operations in this process.
///
/// # Errors
/// If the request is not understood.
pub fn measure(root: &Path, request: &Map<String, Value>) -> Result<Vec<Line>> {
    // As passes over a model do, operations run within the pool.
    rayon::scope(|_| measure_here(root, request))
}

fn measure_here(root: &Path, request: &Map<String, Value>) -> Result<Vec<Line>> {
    let repeats = count(request, "repeats")?;
    let config = shapes::config(root, word(request, "model")?)?;
    let work = Work {
        batch: count(request, "batch")?,
        length: count(request, "length")?,
        rank: Some(RANK),
    };
    let mut lines = Vec::new();
    for op in products(&config, work)?
        .into_iter()
        .chain(passes(&config, work)?)
    {
        lines.push(line(&op, "ours", &op.ours, repeats)?);
        if let Some(twin) = &op.composed {
            // Twins are slow: a few runs show by how much.
            lines.push(line(&op, "composed", twin, repeats.min(5))?);
        }
    }
    lines.push(adamw(&config, repeats)?);
    lines.push(copy(repeats));
    Ok(lines)
}

fn line(op: &Op, by: &str, function: &Function, repeats: usize) -> Result<Line> {
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for at in 0..=repeats {
        let leaves = op
            .inputs
            .iter()
            .map(ops::leaf)
            .collect::<ops::Result<Vec<_>>>()?;
        let inputs: Vec<Tensor> = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
        let start = Instant::now();
        let y = function(&inputs)?;
        let middle = start.elapsed().as_secs_f64();
        let seed = Seed::apply(&y, &y.detach())?;
        let start = Instant::now();
        ops::backward(&seed, &[], &leaves.iter().collect::<Vec<_>>())?;
        // The first run touches fresh memory.
        if at > 0 {
            forward.push(middle);
            backward.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(Line {
        axes: axes(op.name, &op.shape, op.precision, by),
        measures: vec![
            Measure::new("forward_seconds", "s", forward),
            Measure::new("backward_seconds", "s", backward),
        ],
        facts: facts(op.work, op.unit),
    })
}

fn axes(name: &str, shape: &str, precision: &str, by: &str) -> Map<String, Value> {
    object([
        ("op", json!(name)),
        ("shape", json!(shape)),
        ("precision", json!(precision)),
        ("by", json!(by)),
    ])
}

fn facts(work: (f64, f64), unit: &str) -> Map<String, Value> {
    object([
        ("forward_work", json!(work.0)),
        ("backward_work", json!(work.1)),
        ("rate_unit", json!(unit)),
    ])
}

/// Frozen products in f32 and in bf16, alone and with a low-rank update.
fn products(config: &LlamaConfig, work: Work) -> Result<Vec<Op>> {
    let tokens = work.tokens();
    let mut all = Vec::new();
    for (n_out, n_in) in distinct(config) {
        let (shape, size) = (
            format!("{n_out}x{n_in}"),
            2e-9 * (tokens * n_out * n_in) as f64,
        );
        for (precision, dtype, compute) in [
            ("f32", DType::F32, Compute::F32),
            ("bf16", DType::BF16, Compute::Bf16),
        ] {
            let weight = random(&[n_out, n_in])?;
            let layer = FrozenLinear::new(weight.to_dtype(dtype)?, None)?.with_compute(compute);
            all.push(Op {
                name: "product",
                shape: shape.clone(),
                precision,
                inputs: vec![random(&[tokens, n_in])?],
                work: (size, size),
                unit: GFLOP,
                ours: Box::new(move |x| Ok(layer.forward(&x[0])?)),
                composed: (precision == "f32").then(|| {
                    Box::new(move |x: &[Tensor]| Ok(composed::linear(&x[0], &weight, None)?))
                        as Function
                }),
            });
        }
        if n_out == config.vocab_size {
            continue;
        }
        let update = 2e-9 * (tokens * RANK * (n_out + n_in)) as f64;
        let inputs = || -> Result<_> {
            Ok(vec![
                random(&[tokens, n_in])?,
                random(&[RANK, n_in])?,
                random(&[n_out, RANK])?,
            ])
        };
        let layer = FrozenLinear::new(random(&[n_out, n_in])?, None)?;
        all.push(Op {
            name: "product and low rank",
            shape: shape.clone(),
            precision: "f32",
            inputs: inputs()?,
            work: (size + update, size + 2.0 * update),
            unit: GFLOP,
            ours: Box::new(move |x| Ok(layer.forward_low_rank(&x[0], &x[1], &x[2], 2.0)?)),
            composed: None,
        });
        all.push(Op {
            name: "low rank",
            shape,
            precision: "f32",
            inputs: inputs()?,
            work: (update, 2.0 * update),
            unit: GFLOP,
            ours: Box::new(|x| Ok(ops::low_rank(&x[0], &x[1], &x[2], 2.0)?)),
            composed: Some(Box::new(|x| {
                Ok(composed::low_rank(&x[0], &x[1], &x[2], 2.0)?)
            })),
        });
    }
    Ok(all)
}

/// Attention, and what passes over memory.
fn passes(config: &LlamaConfig, work: Work) -> Result<Vec<Op>> {
    let Work { batch, length, .. } = work;
    let (tokens, hidden, inner) = (work.tokens(), config.hidden_size, config.intermediate_size);
    let (heads, kv_heads, d) = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    );
    let gigabytes = |numbers: usize| 4e-9 * numbers as f64;
    let op = |name, shape: String, inputs, work, unit, ours, twin| Op {
        name,
        shape,
        precision: "f32",
        inputs,
        work,
        unit,
        ours,
        composed: Some(twin),
    };
    let segments = vec![1; tokens];
    let mask = AttentionMask {
        query_segments: segments.clone(),
        key_segments: segments,
        batch,
        reach: Reach::Before,
    };
    let scale = 1.0 / (d as f64).sqrt();
    let one = 1e-9 * shapes::attention_product_flops(config, work);
    let key = [batch, kv_heads, length, d];
    let query = [batch, heads, length, d];
    let twin_mask = mask.clone();
    let mut all = vec![op(
        "attention",
        format!("{batch}x{heads}x{length}x{d}"),
        vec![random(&query)?, random(&key)?, random(&key)?],
        (2.0 * one, 4.0 * one),
        GFLOP,
        Box::new(move |x: &[Tensor]| Ok(ops::attention(&x[0], &x[1], &x[2], &mask, scale)?)),
        Box::new(move |x: &[Tensor]| {
            Ok(composed::attention(&x[0], &x[1], &x[2], &twin_mask, scale)?)
        }),
    )];
    let (norm, eps) = (random(&[hidden])?, config.rms_norm_eps);
    let twin_norm = norm.clone();
    all.push(op(
        "rms norm",
        format!("{tokens}x{hidden}"),
        vec![random(&[tokens, hidden])?],
        (
            gigabytes(2 * tokens * hidden),
            gigabytes(3 * tokens * hidden),
        ),
        "GB/s",
        Box::new(move |x| Ok(ops::rms_norm(&x[0], &norm, eps)?)),
        Box::new(move |x| Ok(composed::rms_norm(&x[0], &twin_norm, eps)?)),
    ));
    all.push(op(
        "swiglu",
        format!("{tokens}x{inner}"),
        vec![random(&[tokens, inner])?, random(&[tokens, inner])?],
        (gigabytes(3 * tokens * inner), gigabytes(5 * tokens * inner)),
        "GB/s",
        Box::new(|x| Ok(ops::swiglu(&x[0], &x[1])?)),
        Box::new(|x| Ok(composed::swiglu(&x[0], &x[1])?)),
    ));
    let (weight, bias) = (random(&[hidden])?, random(&[hidden])?);
    let (twin_weight, twin_bias) = (weight.clone(), bias.clone());
    all.push(op(
        "layer norm",
        format!("{tokens}x{hidden}"),
        vec![random(&[tokens, hidden])?],
        (
            gigabytes(2 * tokens * hidden),
            gigabytes(3 * tokens * hidden),
        ),
        "GB/s",
        Box::new(move |x| Ok(ops::layer_norm(&x[0], &weight, &bias, eps)?)),
        Box::new(move |x| Ok(composed::layer_norm(&x[0], &twin_weight, &twin_bias, eps)?)),
    ));
    let bytes = (gigabytes(2 * tokens * inner), gigabytes(3 * tokens * inner));
    for (name, ours, twin) in [
        (
            "gelu",
            ops::gelu as Activation,
            composed::gelu as Activation,
        ),
        ("gelu tanh", ops::gelu_tanh, composed::gelu_tanh),
    ] {
        all.push(op(
            name,
            format!("{tokens}x{inner}"),
            vec![random(&[tokens, inner])?],
            bytes,
            "GB/s",
            Box::new(move |x| Ok(ours(&x[0])?)),
            Box::new(move |x| Ok(twin(&x[0])?)),
        ));
    }
    let turns = || RotaryTable::new(d, config.rope_theta, &config.rope_scaling);
    let (turn, twin_turn) = (turns()?, turns()?);
    let positions: Vec<u32> = (0..batch).flat_map(|_| 0..length as u32).collect();
    let twin_positions = positions.clone();
    let numbers = tokens * heads * d;
    all.push(op(
        "rotary",
        format!("{batch}x{heads}x{length}x{d}"),
        vec![random(&query)?],
        (gigabytes(2 * numbers), gigabytes(2 * numbers)),
        "GB/s",
        Box::new(move |x| Ok(ops::rotary(&x[0], &turn, &positions)?)),
        Box::new(move |x| Ok(composed::rotary(&x[0], &twin_turn, &twin_positions)?)),
    ));
    let vocabulary = config.vocab_size;
    let targets: Vec<u32> = (0..tokens)
        .map(|at| (at * 7919 % vocabulary) as u32)
        .collect();
    let twin_targets = targets.clone();
    all.push(op(
        "cross entropy",
        format!("{tokens}x{vocabulary}"),
        vec![random(&[tokens, vocabulary])?],
        (
            gigabytes(tokens * vocabulary),
            gigabytes(2 * tokens * vocabulary),
        ),
        "GB/s",
        Box::new(move |x| Ok(ops::cross_entropy(&x[0], &targets)?)),
        Box::new(move |x| Ok(composed::cross_entropy(&x[0], &twin_targets)?)),
    ));
    Ok(all)
}

/// The machine's own rate of copies, which passes over memory are held against: 256 MiB are read and as many written.
fn copy(repeats: usize) -> Line {
    const NUMBERS: usize = 1 << 26;
    const PART: usize = 1 << 16;
    let (from, mut into) = (vec![1f32; NUMBERS], vec![0f32; NUMBERS]);
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        into.par_chunks_mut(PART)
            .zip(from.par_chunks(PART))
            .for_each(|(into, from)| into.copy_from_slice(from));
        seconds.push(start.elapsed().as_secs_f64());
    }
    assert_eq!(into.last(), Some(&1.0), "a copy has the numbers");
    Line {
        axes: axes("copy", &NUMBERS.to_string(), "f32", "ours"),
        measures: vec![Measure::new("forward_seconds", "s", seconds)],
        facts: facts((8e-9 * NUMBERS as f64, 0.0), "GB/s"),
    }
}

/// An update of adapters on all linear layers: it reads four numbers a weight and writes three.
fn adamw(config: &LlamaConfig, repeats: usize) -> Result<Line> {
    let mut params = Vec::new();
    let mut grads = Grads::default();
    for (n_out, n_in) in (0..config.num_hidden_layers).flat_map(|_| shapes::linears(config)) {
        for dims in [[RANK, n_in], [n_out, RANK]] {
            let info = ParamInfo {
                owner: "bench".into(),
                index: params.len(),
                name: format!("weight.{}", params.len()),
                kind: Kind::Trained,
                group: "default",
                rank_axis: None,
                decay: true,
                learning_rate: None,
            };
            let param = Param::new(info, &random(&dims)?)?;
            grads.insert(&param, random(&dims)?);
            params.push(param);
        }
    }
    let numbers: usize = params.iter().map(Param::elem_count).sum();
    let groups = BTreeMap::new();
    let mut optimizer = AdamW::default().start(&Updated::all(&params, &groups))?;
    let mut seconds = Vec::new();
    optimizer.update(&grads, 1.0, 1e-4)?;
    for _ in 0..repeats {
        let start = Instant::now();
        optimizer.update(&grads, 1.0, 1e-4)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(Line {
        axes: axes("adamw", &numbers.to_string(), "f32", "ours"),
        measures: vec![Measure::new("forward_seconds", "s", seconds)],
        facts: facts((28e-9 * numbers as f64, 0.0), "GB/s"),
    })
}
#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation of the embedded model runs, and equals its twin.
    #[test]
    fn operations_and_twins_compute_the_same() -> Result<()> {
        let config = shapes::config(Path::new("."), "tiny")?;
        let work = Work {
            batch: 2,
            length: 5,
            rank: Some(RANK),
        };
        let mut twins = 0;
        for op in products(&config, work)?
            .into_iter()
            .chain(passes(&config, work)?)
        {
            let y = (op.ours)(&op.inputs)?;
            let Some(twin) = &op.composed else { continue };
            let apart = (y - twin(&op.inputs)?)?
                .abs()?
                .flatten_all()?
                .max(0)?
                .to_scalar::<f32>()?;
            assert!(apart < 1e-2, "{} {}: {apart}", op.name, op.shape);
            twins += 1;
        }
        assert_eq!(twins, distinct(&config).len() * 2 - 1 + 8);
        Ok(())
    }

    #[test]
    fn every_operation_is_timed_both_ways() -> Result<()> {
        let request = object([
            ("repeats", json!(2)),
            ("model", json!("tiny")),
            ("batch", json!(1)),
            ("length", json!(3)),
        ]);
        let lines = measure(Path::new("."), &request)?;
        let (both, forward) = lines.split_at(lines.len() - 2);
        let forward: Vec<_> = forward
            .iter()
            .map(|line| (&line.axes["op"], line.measures.len()))
            .collect();
        assert_eq!(forward, [(&json!("adamw"), 1), (&json!("copy"), 1)]);
        for line in both {
            let samples: Vec<usize> = line
                .measures
                .iter()
                .map(|measure| measure.values.len())
                .collect();
            assert_eq!(samples, [2, 2], "{}", line.axes["op"]);
        }
        // By hand: 2 * 3 tokens * 128 * 192.
        let product = lines
            .iter()
            .find(|line| line.axes["op"] == "product" && line.axes["shape"] == "128x192");
        let work = product
            .and_then(|line| line.facts["forward_work"].as_f64())
            .expect("it is there");
        assert!((work - 147_456e-9).abs() < 1e-12);
        Ok(())
    }
}
