//! `device`, and what a device without kernels of ours would compute.

use crate::{close, number};
use lowrank_tests::numbers::{pair, relative_difference};
use lowrank_tests::place::Place;
use serde_json::Value;
use std::collections::BTreeMap;

/// Has every function computed as on a GPU.
const COMPOSED: (&str, &str) = ("LOWRANK_OPS", "composed");

const ROWS: &str = r#"{"prompt": "Letter: The porridge was cold.", "completion": " kitchen"}
{"prompt": "Letter: My key is lost. Question: Which desk?", "completion": " porter"}
"#;

const RUN: &str = r#"[model]
source = "tiny"
[adapter]
r = 3
lora_alpha = 5
lora_dropout = 0.2
use_dora = true
target_modules = "all-linear"
[data]
train = ["rows.jsonl"]
[train]
steps = 3
batch_size = 2
learning_rate = 0.01
[output]
dir = "run"
"#;

fn place() -> Place {
    let place = Place::new();
    place.write("rows.jsonl", ROWS);
    place.write("run.toml", RUN);
    place
}

/// Runs a verb and returns what it reports.
fn run(place: &Place, arguments: &[&str], variables: &[(&str, &str)]) -> Value {
    place.run_with(arguments, variables).json()
}

#[test]
fn what_is_composed_trains_measures_and_writes_the_same() {
    let place = place();
    let all: [&[(&str, &str)]; 2] = [&[], &[COMPOSED]];
    let mut lines: Vec<Vec<Value>> = Vec::new();
    let mut adapters: Vec<BTreeMap<_, _>> = Vec::new();
    let mut reports = Vec::new();
    let mut texts = Vec::new();
    for (dir, variables) in ["fused", "composed"].into_iter().zip(all) {
        let set = format!("output.dir={dir}");
        // Dropout, DoRA and recomputation: the masks are those of the same keys.
        let sets = ["--set", &set, "--set", "train.recompute=true", "--json"];
        let _: Value = run(
            &place,
            &[&["train", "run.toml"], &sets[..]].concat(),
            variables,
        );
        lines.push(place.json_lines(&format!("{dir}/metrics.jsonl")));
        adapters.push(place.tensors(&format!("{dir}/adapter/adapter_model.safetensors")));
        // Both measure the adapter of the fused run.
        let adapted = ["--model", "tiny", "--adapter", "fused/adapter", "--json"];
        let data = ["eval", "--data", "rows.jsonl"];
        reports.push(run(&place, &[&data[..], &adapted].concat(), variables));
        let prompt = [
            "generate",
            "--prompt",
            "Letter: The porridge",
            "--max-new-tokens",
            "8",
        ];
        texts.push(run(&place, &[&prompt[..], &adapted].concat(), variables));
    }
    assert_eq!((lines[0].len(), lines[1].len()), (3, 3));
    for (fused, composed) in lines[0].iter().zip(&lines[1]) {
        assert_eq!(fused["tokens"], composed["tokens"]);
        for field in ["loss", "grad_norm"] {
            let (fused, composed) = (number(&fused[field]), number(&composed[field]));
            assert!(fused > 0.01, "{field} {fused}");
            close(composed / fused, 1.0, 1e-4);
        }
    }
    for (name, fused, composed) in pair(&adapters[0], &adapters[1]).unwrap() {
        let error = relative_difference(composed, fused).unwrap();
        assert!(error < 5e-3, "{name}: {error:e}");
    }
    close(
        number(&reports[1]["loss"]),
        number(&reports[0]["loss"]),
        1e-5,
    );
    assert_eq!(texts[0]["text"], texts[1]["text"]);
    assert_eq!(texts[0]["tokens"], 8);
}

/// Where the tests were built with CUDA, what it says depends on the machine.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_is_refused_by_a_program_that_was_built_without_cuda() {
    let place = place();
    let why = "this program was built without CUDA, so that the device \"cuda\" cannot be used; build it with \
               `cargo build --release --features cuda` (docs/gpu.md says how)";
    let refused = |arguments: &[&str], start: &str| {
        let ended = place.run(arguments);
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        assert!(
            ended.stderr.contains(&format!("{start}{why}")),
            "{}",
            ended.stderr
        );
        assert!(ended.stdout.is_empty());
    };
    let set = ["run.toml", "--set", "model.device=cuda"];
    for verb in ["train", "plan"] {
        refused(&[&[verb], &set[..]].concat(), "run.toml: `model.device`: ");
    }
    assert!(!place.path("run").exists());
    let model = ["--model", "tiny", "--device", "cuda"];
    refused(
        &[&["eval", "--data", "rows.jsonl"], &model[..]].concat(),
        "",
    );
    refused(&[&["generate", "--prompt", "x"], &model[..]].concat(), "");
}

#[test]
fn a_device_is_one_that_is_known() {
    let place = place();
    let ended = place.run(&["plan", "run.toml", "--set", "model.device=tpu"]);
    assert_eq!(ended.code, 2);
    assert!(
        ended
            .stderr
            .contains("`model.device` is \"tpu\", expected \"cpu\" or \"cuda\""),
        "{}",
        ended.stderr
    );
    let ended = place.run(&[
        "eval",
        "--model",
        "tiny",
        "--data",
        "rows.jsonl",
        "--device",
        "gpu",
    ]);
    assert_eq!(ended.code, 2);
    assert!(
        ended.stderr.contains("neither \"cpu\" nor \"cuda\""),
        "{}",
        ended.stderr
    );
    let both = ["--set", "model.device=cuda", "--set", "train.compute=bf16"];
    let ended = place.run(&[&["plan", "run.toml"], &both[..]].concat());
    assert_eq!(ended.code, 2);
    let why = "`train.compute = \"bf16\"` with `model.device = \"cuda\"` is not yet supported";
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
}
