//! Equal to transformers and PEFT on SmolLM2-135M-Instruct, if `cargo xtask fetch` has brought it: logits on ten prompts
//! of 2 to 200 tokens, and ten AdamW steps of LoRA (r = 8, all linear layers). `tests/parity/smollm2.py` made the files.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a golden file that cannot be read fails the test, and a test that is not run says so"
)]

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use lowrank::Base;
use lowrank::adapter::{
    AdapterConfig, Ask, Attached, Batch, Memory, Param, Pass, Selection, Source, Start, attach, run,
};
use lowrank::models::Precision;
use lowrank_tests::golden::{Rows, Steps, read_json};
use lowrank_tests::numbers::{max_difference, values};
use lowrank_tests::steps::{Division, ensure_final, ensure_trace, ten_steps};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Expected {
    columns: Vec<u32>,
    steps: Steps,
}

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
}

struct Golden {
    expected: Expected,
    tensors: BTreeMap<String, Tensor>,
    folder: PathBuf,
}

impl Golden {
    fn read() -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/smollm2");
        Ok(Self {
            expected: read_json(&folder.join("expected.json"))?,
            tensors: candle_core::safetensors::load(
                folder.join("expected.safetensors"),
                &Device::Cpu,
            )?
            .into_iter()
            .collect(),
            folder,
        })
    }
}

/// The fetched model, if it is there.
fn model() -> Option<Base> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct");
    if !folder.join("config.json").exists() {
        eprintln!("not run: SmolLM2 is missing, `cargo xtask fetch` brings it");
        return None;
    }
    Some(Base::open(&folder.to_string_lossy(), Precision::AsStored).unwrap())
}

#[test]
fn logits_of_ten_prompts() {
    let Some(base) = model() else { return };
    let golden = Golden::read().unwrap();
    let columns = Tensor::new(golden.expected.columns.as_slice(), &Device::Cpu).unwrap();
    let rows = std::fs::read_to_string(golden.folder.join("rows.jsonl")).unwrap();
    let rows: Vec<Row> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 10);
    for (i, row) in rows.iter().enumerate() {
        let batch = Batch::sequence(&row.input_ids, 0).unwrap();
        let ask = Ask::Logits((0..row.input_ids.len() as u32).collect());
        let mut pass = Pass::evaluation(Selection::none());
        let logits = run(base.model.as_ref(), &batch, &ask, None, &mut pass).unwrap();
        let ours = logits.index_select(&columns, 1).unwrap();
        let exact = &golden.tensors[&format!("logits64.{i}")];
        let error = max_difference(&ours, exact).unwrap();
        let theirs = max_difference(&golden.tensors[&format!("logits32.{i}")], exact).unwrap();
        eprintln!(
            "prompt {i}: {} tokens, off by {error:.1e}, PyTorch by {theirs:.1e}",
            row.input_ids.len()
        );
        assert!(error < 2e-4, "prompt {i}: {error:e}");
        // Over few columns the largest of the reference's errors is itself a matter of chance.
        assert!(
            error <= 3.0 * theirs.max(1e-5),
            "prompt {i}: {error:e}, PyTorch {theirs:e}"
        );
    }
}

/// The initial adapter of the script, in integers that any language computes alike.
fn element(tensor: u64, index: u64) -> f64 {
    let word = index
        .wrapping_mul(2_654_435_761)
        .wrapping_add(tensor * 2_246_822_519)
        .wrapping_add(374_761_393)
        % (1 << 32);
    (word.wrapping_mul(3_266_489_917) % (1 << 32)) as f64 / (1u64 << 32) as f64 - 0.5
}

fn fill(attached: &Attached) -> Result<()> {
    let mut params: Vec<&Param> = attached.params.iter().collect();
    params.sort_by_key(|param| param.name().to_owned());
    for (t, param) in params.into_iter().enumerate() {
        let size = if param.name().contains("lora_A") {
            2.0
        } else {
            0.2
        };
        let factor = size / (param.shape().dims()[1] as f64).sqrt();
        let values = (0..param.elem_count() as u64).map(|i| factor * element(t as u64, i));
        let value = Tensor::from_vec(values.collect::<Vec<f64>>(), param.shape(), &Device::Cpu)?;
        param.set(&value.to_dtype(DType::F32)?)?;
    }
    Ok(())
}

#[test]
fn ten_steps_of_lora() {
    let Some(mut base) = model() else { return };
    let golden = Golden::read().unwrap();
    let mut check = || -> Result<()> {
        let keys = json!({ "r": 8, "lora_alpha": 12, "target_modules": "all-linear" });
        let family = lowrank::registry::by_name("lora")?;
        let config = AdapterConfig::parse(
            family,
            keys.as_object().context("an object")?,
            Source::RunFile,
        )?;
        let mut attached = attach(base.model.as_mut(), "default", &config, Start::Seed(0))?;
        fill(&attached)?;
        let batches: Vec<Rows> = read_json(&golden.folder.join("batch.json"))?;
        let examples: Vec<_> = batches.iter().flat_map(Rows::examples).collect();
        let division = Division {
            batch_size: 2,
            accumulate: 1,
            memory: Memory::Keep,
        };
        let (done, _) = ten_steps(&base, &mut attached, &examples, division, "")?;
        ensure_trace(
            &done,
            &golden.expected.steps.f32,
            &golden.expected.steps.lr,
            1e-4,
        )?;

        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in &golden.tensors {
            if let Some(key) = name.strip_prefix("final.base_model.model.") {
                theirs.insert(key.to_owned(), tensor.clone());
            }
        }
        for (name, tensor) in attached.exported()?.tensors {
            let kept = theirs.get(&name).map_or(0, Tensor::elem_count);
            ours.insert(name, places(&tensor, kept)?);
        }
        ensure!(ours.len() == 420, "{} tensors", ours.len());
        ensure_final(&ours, &theirs, 1.0)
    };
    check().unwrap();
}

/// The elements that the script kept.
fn places(tensor: &Tensor, count: usize) -> Result<Tensor> {
    let values = values(tensor)?;
    let size = values.len();
    let common = |a: usize, b: usize| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let first = (size as f64 * 0.618) as usize;
    let step = (first..size)
        .find(|&step| common(step, size) == 1)
        .context("a step")?;
    let kept: Vec<f64> = (0..count).map(|i| values[(i * step + 1) % size]).collect();
    Ok(Tensor::new(kept, &Device::Cpu)?)
}
