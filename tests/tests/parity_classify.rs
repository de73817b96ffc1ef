//! Classifiers equal PEFT's: logits, ten steps, the files that are saved, and what is merged. `parity/classify.py` made the
//! golden files.
#![expect(
    clippy::unwrap_used,
    reason = "a golden file that cannot be read fails the test"
)]

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use lowrank::adapter::{Ask, Attached, Memory, Pass, Selection, run};
use lowrank::data::Example;
use lowrank::format::{Existing, PeftFolder};
use lowrank::models::Precision;
use lowrank::training::{batch, classify};
use lowrank::{Base, StrictBase, load_adapter, merge_into, save_adapter};
use lowrank_tests::golden::{self, Steps, read_json};
use lowrank_tests::numbers::max_difference;
use lowrank_tests::steps::{Division, ensure_final, ensure_trace, ten_steps};
use serde::Deserialize;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

const CASES: [&str; 5] = [
    "bert",
    "bert_regression",
    "bert_two",
    "llama",
    "llama_regression",
];

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity")
}

/// One entry of `batch.json`.
#[derive(Deserialize)]
struct Rows {
    input_ids: Vec<Vec<u32>>,
    types: Vec<Vec<u32>>,
    lengths: Vec<usize>,
    labels: Vec<f64>,
}

impl Rows {
    fn examples(&self) -> impl Iterator<Item = Example> {
        (0..self.lengths.len()).map(|row| {
            let used = self.lengths[row];
            Example {
                ids: self.input_ids[row][..used].to_vec(),
                labels: vec![-100; used],
                types: self.types[row][..used].to_vec(),
                label: Some(self.labels[row]),
                truncated: false,
            }
        })
    }
}

struct Case {
    folder: PathBuf,
    model: PathBuf,
    examples: Vec<Example>,
    expected: HashMap<String, Tensor>,
    steps: Steps,
}

impl Case {
    fn open(name: &str) -> Result<Self> {
        let folder = golden::folder().join("classify").join(name);
        let config: serde_json::Value =
            read_json(&folder.join("adapter_init/adapter_config.json"))?;
        let base = config["base_model_name_or_path"].as_str().context("base")?;
        let rows: Vec<Rows> = read_json(&folder.join("batch.json"))?;
        Ok(Self {
            model: golden::folder().join(base),
            examples: rows.iter().flat_map(Rows::examples).collect(),
            expected: candle_core::safetensors::load(
                folder.join("expected.safetensors"),
                &Device::Cpu,
            )?,
            steps: read_json(&folder.join("steps.json"))?,
            folder,
        })
    }

    fn attach(&self, dtype: DType) -> Result<(Base, Attached)> {
        let adapter = self.folder.join("adapter_init");
        let source = self.model.to_string_lossy();
        let mut base = Base::open_for(&source, Precision::Cast(dtype), [adapter.as_path()])?;
        let attached = load_adapter(&mut base, "default", &adapter, StrictBase::No)?;
        Ok((base, attached))
    }

    /// What a model makes of the first batch, which is padded.
    fn logits(&self, base: &Base, selection: Selection) -> Result<Tensor> {
        let batch = batch(&self.examples[..3])?;
        let mut pass = Pass::evaluation(selection);
        Ok(run(
            base.model.as_ref(),
            &batch,
            &Ask::Classes,
            None,
            &mut pass,
        )?)
    }
}

fn each_case(check: impl Fn(&Case) -> Result<()>) {
    for name in CASES {
        let case = Case::open(name).unwrap();
        check(&case).with_context(|| name).unwrap();
    }
}

#[test]
fn logits_are_those_of_the_f64_reference() {
    each_case(|case| {
        let (base, _attached) = case.attach(DType::F32)?;
        let ours = case.logits(&base, Selection::one("default"))?;
        let (theirs, reference) = (&case.expected["logits"], &case.expected["logits64"]);
        let error = max_difference(&ours, reference)?;
        ensure!(error < 2e-4, "f32 logits are off by {error:e}");
        // Of so few numbers the reference's own error may be nearly 0 by chance.
        let their_error = max_difference(theirs, reference)?.max(3e-7);
        ensure!(
            error <= 3.0 * their_error,
            "off by {error:e}, PyTorch by {their_error:e}"
        );
        let (base, _attached) = case.attach(DType::F64)?;
        let ours = case.logits(&base, Selection::one("default"))?;
        let error = max_difference(&ours, reference)?;
        ensure!(error < 1e-11, "f64 logits are off by {error:e}");
        Ok(())
    });
}

fn check_steps(dtype: DType, division: Division, tolerance: f64, strictness: f64) {
    each_case(|case| {
        let (base, mut attached) = case.attach(dtype)?;
        let (done, _) = ten_steps(&base, &mut attached, &case.examples, division, "")?;
        let trace = match dtype {
            DType::F64 => &case.steps.f64,
            _ => &case.steps.f32,
        };
        ensure_trace(&done, trace, &case.steps.lr, tolerance)?;
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("adapter");
        save_adapter(&attached, &base.fingerprint()?, &folder, Existing::Refuse)?;
        let (ours, theirs) = (
            PeftFolder::read(&folder)?,
            PeftFolder::read(&case.folder.join("adapter_final"))?,
        );
        for key in ["task_type", "modules_to_save", "peft_type"] {
            ensure!(ours.config[key] == theirs.config[key], "{key}");
        }
        ensure_final(&ours.tensors, &theirs.tensors, strictness)
    });
}

const WHOLE: Division = Division {
    batch_size: 3,
    accumulate: 1,
    memory: Memory::Keep,
};

#[test]
fn ten_steps_equal_peft() {
    check_steps(DType::F32, WHOLE, 1e-4, 1.0);
    check_steps(DType::F64, WHOLE, 1e-10, 0.1);
}

#[test]
fn ten_steps_with_accumulation_and_recomputation() {
    let divided = Division {
        batch_size: 1,
        accumulate: 3,
        memory: Memory::Recompute,
    };
    check_steps(DType::F64, divided, 1e-10, 0.1);
}

#[test]
fn a_merged_classifier_opens_with_its_head_and_gives_the_same() {
    each_case(|case| {
        let (mut base, attached) = case.attach(DType::F32)?;
        let dir = tempfile::tempdir()?;
        let out = dir.path().join("merged");
        let selection = Selection::one(attached.name.clone());
        merge_into(&mut base, &selection, None, &out, Existing::Refuse)?;
        let merged = Base::open_for(&out.to_string_lossy(), Precision::AsStored, [])?;
        ensure!(merged.classes == base.classes);
        let ours = case.logits(&merged, Selection::none())?;
        let error = max_difference(&ours, &case.expected["merged_logits"])?;
        ensure!(error < 2e-5, "logits are off by {error:e}");
        Ok(())
    });
}

#[test]
fn how_rows_are_batched_does_not_matter() {
    each_case(|case| {
        let (base, _attached) = case.attach(DType::F32)?;
        let selection = Selection::one("default");
        let of = |size: usize| {
            let size = NonZeroUsize::new(size).unwrap();
            classify(
                base.model.as_ref(),
                &selection,
                &case.examples,
                size,
                &mut || Ok(()),
            )
        };
        let (alone, rows) = of(1)?;
        ensure!(
            rows.iter()
                .enumerate()
                .all(|(place, row)| row.index == place)
        );
        for size in [2, 7, 64] {
            let (found, again) = of(size)?;
            ensure!((found.examples, found.tokens) == (alone.examples, alone.tokens));
            for (one, other) in rows.iter().zip(&again) {
                for (a, b) in one.scores.iter().zip(&other.scores) {
                    ensure!((a - b).abs() < 1e-5, "{a} and {b} in batches of {size}");
                }
            }
            let (a, b) = (alone.loss.context("loss")?, found.loss.context("loss")?);
            ensure!((a - b).abs() < 1e-5 * a, "{a} and {b} in batches of {size}");
        }
        Ok(())
    });
}

/// Needs the reference environment (`cargo xtask peer-env`) and takes a minute, so it runs under `RUN_SLOW_TESTS=1` only.
#[test]
fn transformers_and_peft_open_what_we_wrote() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none() {
        eprintln!("not run: set RUN_SLOW_TESTS=1");
        return;
    }
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.peer/bin/python");
    assert!(
        python.exists(),
        "the reference environment is missing: run `cargo xtask peer-env`"
    );
    each_case(|case| {
        let (mut base, mut attached) = case.attach(DType::F32)?;
        ten_steps(&base, &mut attached, &case.examples, WHOLE, "")?;
        let ours = case.logits(&base, Selection::one("default"))?;
        let dir = tempfile::tempdir()?;
        let adapter = dir.path().join("adapter");
        save_adapter(&attached, &base.fingerprint()?, &adapter, Existing::Refuse)?;
        let merged = dir.path().join("merged");
        let selection = Selection::one("default");
        merge_into(&mut base, &selection, None, &merged, Existing::Refuse)?;
        for (model, adapter) in [(&case.model, adapter.as_path()), (&merged, Path::new("-"))] {
            let written = dir.path().join("theirs.safetensors");
            let output = Command::new(&python)
                .arg(scripts().join("classify.py"))
                .arg("load")
                .args([
                    model.as_path(),
                    adapter,
                    &case.folder.join("batch.json"),
                    &written,
                ])
                .output()?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{errors}");
            let theirs = candle_core::safetensors::load(&written, &Device::Cpu)?;
            let error = max_difference(&ours, theirs.get("logits64").context("logits64")?)?;
            ensure!(
                error < 2e-4,
                "{}: logits differ by {error:e}",
                adapter.display()
            );
        }
        Ok(())
    });
}
