//! `train` from something: an adapter, or a checkpoint.

use crate::training::{TENSORS, place, train};
use crate::{RUN, close, number};
use serde_json::Value;

#[test]
fn starting_from_an_adapter() {
    let place = place();
    place.copy("cases/lora/adapter_final", "start");
    let run = RUN.replace(
        "r = 3\nlora_alpha = 5\ntarget_modules = \"all-linear\"\n",
        "init_from = \"start\"\n",
    );
    place.write("run.toml", run);
    // At rate 0 nothing moves, and the configuration is the stored one.
    train(&place, &["train.steps=2", "train.learning_rate=0.0"]);
    assert_eq!(
        place.read("start/adapter_model.safetensors"),
        place.read(&format!("run/{TENSORS}"))
    );
    let config = place.json("run/adapter/adapter_config.json");
    assert_eq!(
        (&config["r"], number(&config["lora_alpha"])),
        (&4.into(), 6.0)
    );
    // Else it moves, from where the adapter was.
    let report = train(&place, &["train.steps=4", "output.dir=on"]);
    let adapted = [
        "eval",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--adapter",
        "start",
        "--json",
    ];
    let before = number(&place.run(&adapted).json()["loss"]);
    close(
        number(&place.json_lines("on/metrics.jsonl")[0]["eval_loss"]),
        before,
        1e-6,
    );
    assert!(number(&report["last_evaluation"]["eval_loss"]) < before);
    // A key that agrees may stand beside it.
    train(
        &place,
        &[
            "train.steps=4",
            "output.dir=agree",
            "adapter.r=4",
            "adapter.lora_alpha=6.0",
            "adapter.target_modules=all-linear",
        ],
    );
    assert_eq!(
        place.read("agree/adapter/adapter_model.safetensors"),
        place.read("on/adapter/adapter_model.safetensors")
    );
}

#[test]
fn checkpoints_and_resuming() {
    let place = place();
    let sets = ["train.save_every=2", "train.keep_checkpoints=2"];
    train(&place, &[&sets[..], &["train.steps=7"]].concat());
    let kept = |dir: &str| -> Vec<String> {
        let inside = format!("{dir}/checkpoints/");
        let names = place.entries().into_iter();
        let names = names.filter_map(|name| name.strip_prefix(&inside).map(str::to_owned));
        names.filter(|name| !name.contains('/')).collect()
    };
    assert_eq!(kept("run"), ["step-000006", "step-000007"]);
    // A shorter run, continued: the same bytes and the same lines but for time and memory.
    train(
        &place,
        &[&sets[..], &["train.steps=4", "output.dir=short"]].concat(),
    );
    assert_eq!(kept("short"), ["step-000002", "step-000004"]);
    let arguments = [
        "train",
        "run.toml",
        "--resume",
        "--set",
        "train.steps=7",
        "--set",
        "output.dir=short",
        "--set",
        "train.save_every=2",
    ];
    let resumed = place.run(&arguments).ok();
    assert!(
        resumed.stderr.contains("resuming from"),
        "{}",
        resumed.stderr
    );
    assert_eq!(
        place.read(&format!("short/{TENSORS}")),
        place.read(&format!("run/{TENSORS}"))
    );
    let lines = |dir: &str| {
        let mut lines = place.json_lines(&format!("{dir}/metrics.jsonl"));
        for line in lines.iter_mut().filter_map(Value::as_object_mut) {
            line.remove("tokens_per_second");
            line.remove("peak_rss_mb");
        }
        lines
    };
    let (short, whole) = (lines("short"), lines("run"));
    // The shorter run evaluated when it ended.
    let without: Vec<Value> = short
        .into_iter()
        .filter(|line| line["step"] != 4 || line.get("loss").is_some())
        .collect();
    assert_eq!(without, whole);
    // A finished run that is resumed is left as it is.
    let before = place.read("run/metrics.jsonl");
    drop(
        place
            .run(&["train", "run.toml", "--resume", "--set", "train.steps=7"])
            .ok(),
    );
    assert_eq!(place.read("run/metrics.jsonl"), before);
    assert_eq!(
        place.read(&format!("short/{TENSORS}")),
        place.read(&format!("run/{TENSORS}"))
    );
}
