//! ResLoRA as a user runs it: what merges, what is refused, what is exported, and a run that goes on where it stopped.

use lowrank_tests::place::Place;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The example with these keys, for a few steps: the folder of its run.
fn trained(place: &Place, name: &str, keys: &[&str]) -> PathBuf {
    let folder = place.path(name);
    let output = format!("output.dir={}", folder.display());
    let few = [
        &output,
        "data.eval=[]",
        "train.steps=4",
        "train.save_every=2",
        "train.batch_size=2",
        "adapter.lora_dropout=0.1",
    ];
    let set = few.iter().chain(keys).flat_map(|key| ["--set", key]);
    let arguments = ["train", "docs/examples/reslora.toml"].into_iter();
    let arguments: Vec<&str> = arguments.chain(set).collect();
    drop(lowrank_tests::binary::run(&root(), &arguments).ok());
    folder
}

fn merged(place: &Place, run: &str) -> lowrank_tests::binary::Ended {
    let (adapter, out) = (format!("{run}/adapter"), format!("{run}-merged"));
    place.run(&[
        "merge",
        "--model",
        "tiny",
        "--adapter",
        &adapter,
        "--out",
        &out,
        "--dtype",
        "f32",
        "--verify",
        "--json",
    ])
}

fn exported(place: &Place, run: &str) -> Value {
    let (adapter, out) = (format!("{run}/adapter"), format!("{run}-lora"));
    let arguments = [
        "export",
        "--model",
        "tiny",
        "--adapter",
        &adapter,
        "--to",
        "lora",
        "--out",
        &out,
        "--json",
    ];
    place.run(&arguments).json()
}

#[test]
fn block_shortcuts_merge_and_export_exactly() {
    let place = Place::new();
    trained(&place, "bs", &[]);
    let report = merged(&place, "bs").json();
    assert_eq!(report["exact"], true);
    assert!(
        report["max_abs_logit_diff"]
            .as_f64()
            .is_some_and(|gap| gap < 4e-4),
        "{report}"
    );
    let report = exported(&place, "bs");
    assert_eq!(report["exact"], true);
    assert!(
        report["max_abs_logit_diff"]
            .as_f64()
            .is_some_and(|gap| gap < 4e-4),
        "{report}"
    );
    // Of the third layer on, two earlier blocks of rank 4 and its own.
    let sites = report["sites"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let ranks: Vec<u64> = sites
        .iter()
        .filter(|site| {
            site["site"]
                .as_str()
                .is_some_and(|site| site.ends_with("q_proj"))
        })
        .filter_map(|site| site["rank"].as_u64())
        .collect();
    assert_eq!(ranks[..3], [4, 8, 12]);
    assert!(ranks[3..].iter().all(|rank| *rank == 12), "{ranks:?}");
}

#[test]
fn other_shortcuts_report_what_merging_costs() {
    let place = Place::new();
    for (res_type, mode) in [("is", "bi"), ("is", "bw"), ("ms", "bi"), ("ms", "bw")] {
        let name = format!("{res_type}-{mode}");
        let keys = [
            format!("adapter.res_type={res_type}"),
            format!("adapter.merge={mode}"),
        ];
        trained(&place, &name, &keys.each_ref().map(String::as_str));
        let report = merged(&place, &name).json();
        assert_eq!(report["exact"], false, "{name}");
        let gap = report["max_abs_logit_diff"].as_f64();
        let kl = report["kl"].as_f64();
        assert!(
            gap.is_some_and(|gap| gap > 0.0 && gap.is_finite()),
            "{name}: {report}"
        );
        assert!(kl.is_some_and(|kl| kl < 0.1), "{name}: {report}");
        // The same update, in another file.
        let plain = exported(&place, &name);
        assert_eq!(plain["exact"], false, "{name}");
        let near = plain["max_abs_logit_diff"].as_f64().zip(gap);
        assert!(
            near.is_some_and(|(plain, gap)| (plain - gap).abs() < 1e-3),
            "{plain} {report}"
        );
    }
}

#[test]
fn without_a_mode_a_merge_is_refused() {
    let place = Place::new();
    trained(&place, "ms", &["adapter.res_type=ms"]);
    let ended = merged(&place, "ms");
    let expected = "model.layers.1.self_attn.q_proj: the adapter's update depends on the input";
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    assert!(!place.path("ms-merged").exists());
}

/// The windows of norms are part of a checkpoint: a resumed run saves the same means, to the byte.
#[test]
fn a_resumed_run_measures_on() {
    let place = Place::new();
    let keys = ["adapter.res_type=is", "adapter.merge=bi"];
    let whole = trained(&place, "whole", &keys);
    let tensors = |folder: &Path| {
        fs::read(folder.join("adapter/adapter_model.safetensors")).expect("an adapter was saved")
    };
    let expected = tensors(&whole);
    for gone in ["checkpoints/step-000004", "adapter"] {
        fs::remove_dir_all(whole.join(gone)).expect("a folder of the run");
    }
    let output = format!("output.dir={}", whole.display());
    let run = whole.join("run.toml");
    let run = run.to_string_lossy();
    let arguments = ["train", &run, "--set", &output, "--resume"];
    drop(lowrank_tests::binary::run(&root(), &arguments).ok());
    assert!(
        tensors(&whole) == expected,
        "the resumed run saved other bytes"
    );
    let text = String::from_utf8_lossy(&expected).into_owned();
    assert!(text.contains("model.layers.0.self_attn.q_proj.reslora_norm"));
}
