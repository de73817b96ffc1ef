//! The reverse: PEFT loads what we wrote, with no missing or unexpected key, and computes the same. Needs the reference
//! environment (`cargo xtask peer-env`) and takes a minute, so it runs under `RUN_SLOW_TESTS=1` only.
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use lowrank::adapter::{Ask, Memory, Pass, Selection, run};
use lowrank::format::Existing;
use lowrank::save_adapter;
use lowrank_tests::golden::Case;
use lowrank_tests::numbers::max_difference;
use lowrank_tests::steps::{Division, ten_steps};
use std::path::Path;
use std::process::Command;

fn check(case: &Case, python: &Path, scripts: &Path) -> Result<()> {
    let (base, mut attached) = case.attach(DType::F32)?;
    let division = Division {
        batch_size: 3,
        accumulate: 1,
        memory: Memory::Keep,
    };
    ten_steps(&base, &mut attached, &case.examples, division, "")?;
    let dir = tempfile::tempdir()?;
    let folder = save_adapter(
        &attached,
        &base.fingerprint()?,
        &dir.path().join("adapter"),
        Existing::Refuse,
    )?;

    let written = dir.path().join("theirs.safetensors");
    let batches = scripts
        .join("golden/cases")
        .join(&case.name)
        .join("batch.json");
    let output = Command::new(python)
        .arg(scripts.join("load_back.py"))
        .args([&case.model, &folder, &batches, &written])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let theirs = candle_core::safetensors::load(&written, &Device::Cpu)?;
    let theirs = theirs.get("logits64").context("logits64")?;

    let batch = &case.batches[0];
    let tokens = batch.tokens();
    let used: Vec<u32> = (0..tokens.ids.len() as u32)
        .filter(|&at| tokens.segments[at as usize] != 0)
        .collect();
    let mut pass = Pass::evaluation(Selection::one("default"));
    let ours = run(
        base.model.as_ref(),
        batch,
        &Ask::Logits(used.clone()),
        None,
        &mut pass,
    )?;
    let index = candle_core::Tensor::new(used, &Device::Cpu)?;
    let theirs = theirs
        .reshape(((), theirs.dim(2)?))?
        .index_select(&index, 0)?;
    let error = max_difference(&ours, &theirs)?;
    ensure!(error < 2e-4, "logits differ by {error:e}");
    Ok(())
}

#[test]
fn peft_loads_what_we_wrote() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none() {
        eprintln!("not run: set RUN_SLOW_TESTS=1");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../.peer/bin/python");
    assert!(
        python.exists(),
        "the reference environment is missing: run `cargo xtask peer-env`"
    );
    for name in Case::names().unwrap() {
        let case = Case::open(&name).unwrap();
        check(&case, &python, &root.join("parity"))
            .with_context(|| name.clone())
            .unwrap();
    }
}
