//! A run file with nothing left to guess.

use crate::run_file::{CacheKey, Held, OnNonFinite, RunFile, TaskKeys, TrainFiles};
use crate::schedule::{Curve, Warmup};
use lowrank_adapter::{Compute, Memory};
use lowrank_data::Length;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// Keys that a resumed run may change: where the run ends, what it writes, when it looks, and how much memory it takes.
const FREE: [&str; 10] = [
    "data.cache",
    "output.dir",
    "train.steps",
    "train.epochs",
    "train.eval_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.recompute",
    "train.early_stopping_patience",
    "train.early_stopping_threshold",
];

/// Models that are part of the program: their names are no paths.
const EMBEDDED: [&str; 1] = ["tiny"];

/// Every key with its value, paths absolute.
pub(crate) fn table(run: &RunFile) -> Table {
    let mut root = Table::new();
    let mut section = |name: &str, keys: Vec<(&str, Value)>| {
        let keys = keys.into_iter();
        let table: Table = keys.map(|(key, value)| (key.to_owned(), value)).collect();
        root.insert(name.to_owned(), Value::Table(table));
    };
    let dtype = match run.model.dtype {
        Held::AsStored => "as-stored",
        Held::F32 => "f32",
        Held::F64 => "f64",
        Held::F16 => "f16",
        Held::Bf16 => "bf16",
        Held::Nf4 => "nf4",
    };
    let source = &run.model.source;
    // An embedded model's name is that model, whatever else is called so here.
    let source = if EMBEDDED.contains(&source.as_str()) {
        source.as_str().into()
    } else {
        located(source)
    };
    let device = run.model.device.word();
    section(
        "model",
        vec![
            ("source", source),
            ("dtype", dtype.into()),
            ("device", device.into()),
        ],
    );

    let mut adapter: Vec<(&str, Value)> = Vec::new();
    adapter.extend(
        run.adapter
            .family
            .as_deref()
            .map(|family| ("family", family.into())),
    );
    adapter.extend(
        run.adapter
            .init_from
            .as_deref()
            .map(|dir| ("init_from", located(dir))),
    );
    adapter.extend(
        run.adapter
            .residual_base
            .map(|base| ("residual_base", base.word().into())),
    );
    let keys = run.adapter.keys.iter();
    // TOML has no null: a key that is null is as good as absent.
    adapter.extend(keys.filter_map(|(key, value)| Some((key.as_str(), to_toml(value)?))));
    section("adapter", adapter);

    let mut task: Vec<(&str, Value)> = Vec::new();
    match run.task {
        TaskKeys::CausalLm => task.push(("kind", "causal-lm".into())),
        TaskKeys::Classification { num_labels } => {
            task.push(("kind", "classification".into()));
            let count = num_labels.map(|count| integer(count.get() as u64));
            task.extend(count.map(|count| ("num_labels", count)));
        }
    }
    section("task", task);

    let data = &run.data;
    let mut keys = vec![
        (
            "train",
            Value::Array(data.train.iter().map(train_files).collect()),
        ),
        (
            "eval",
            Value::Array(data.eval.iter().map(|file| path(file)).collect()),
        ),
    ];
    keys.extend(
        data.eval_fraction
            .map(|share| ("eval_fraction", share.into())),
    );
    keys.extend([
        ("max_length", integer(data.max_length.get() as u64)),
        ("packing", data.packing.into()),
        ("shuffle", data.shuffle.into()),
        ("group_by_length", data.group_by_length.into()),
        ("cache", cache(&data.cache)),
    ]);
    let template = data.chat_template.as_deref();
    keys.extend(template.map(|template| ("chat_template", located(template))));
    keys.extend(
        data.chat_date
            .map(|date| ("chat_date", date.to_string().into())),
    );
    section("data", keys);
    section("train", train(run));
    section("output", vec![("dir", absolute(&run.output.dir))]);
    root
}

/// What a checkpoint remembers of the run: dotted keys and values, without those that may change.
pub(crate) fn settings(run: &RunFile) -> BTreeMap<String, serde_json::Value> {
    let mut settings = BTreeMap::new();
    for (section, keys) in &table(run) {
        for (key, value) in keys.as_table().into_iter().flatten() {
            let key = format!("{section}.{key}");
            if !FREE.contains(&key.as_str()) {
                let json = serde_json::to_value(value).unwrap_or_default();
                settings.insert(key, json);
            }
        }
    }
    settings
}

fn train(run: &RunFile) -> Vec<(&'static str, Value)> {
    let train = &run.train;
    let length = match train.length {
        Length::Steps(steps) => ("steps", integer(steps)),
        Length::Epochs(epochs) => ("epochs", integer(epochs)),
    };
    let warmup = match train.warmup {
        Warmup::Steps(steps) => ("warmup_steps", integer(steps)),
        Warmup::Ratio(ratio) => ("warmup_ratio", ratio.into()),
    };
    let curve = match train.schedule {
        Curve::Constant => "constant",
        Curve::Linear => "linear",
        Curve::Cosine => "cosine",
    };
    let on_non_finite = match train.on_non_finite {
        OnNonFinite::Stop => "stop",
        OnNonFinite::Skip => "skip",
    };
    let compute = match train.compute {
        Compute::F32 => "f32",
        Compute::Bf16 => "bf16",
    };
    let mut keys = vec![
        length,
        ("batch_size", integer(train.batch_size.get() as u64)),
        ("accumulate", integer(train.accumulate.get() as u64)),
        ("optimizer", train.optimizer.name().into()),
        ("learning_rate", train.learning_rate.into()),
        ("schedule", curve.into()),
        ("min_learning_rate", train.least_rate.into()),
        warmup,
        ("max_grad_norm", train.max_grad_norm.into()),
        ("label_smoothing", train.blur.label_smoothing.into()),
        ("neftune_noise_alpha", train.blur.embedding_noise.into()),
        ("compute", compute.into()),
        ("recompute", (train.memory == Memory::Recompute).into()),
        ("eval_every", integer(train.eval_every)),
        ("save_every", integer(train.save_every)),
        (
            "keep_checkpoints",
            integer(train.keep_checkpoints.get() as u64),
        ),
        ("seed", integer(train.seed)),
        ("on_non_finite", on_non_finite.into()),
    ];
    keys.extend(train.judging.keys());
    keys.extend(train.optimizer.keys());
    keys.extend(
        train
            .lora_plus_ratio
            .map(|ratio| ("lora_plus_ratio", ratio.into())),
    );
    if !train.groups.is_empty() {
        let mut groups = Table::new();
        for (name, group) in &train.groups {
            let mut table = Table::new();
            table.insert(
                "learning_rate_factor".into(),
                group.learning_rate_factor.into(),
            );
            if let Some(decay) = group.weight_decay {
                table.insert("weight_decay".into(), decay.into());
            }
            groups.insert(name.clone(), table.into());
        }
        keys.push(("groups", groups.into()));
    }
    keys
}

/// Everything that was read from TOML fits again.
fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn train_files(files: &TrainFiles) -> Value {
    let path = path(&files.path);
    // As they are written, those that are taken once have no weight.
    if files.weight == 1.0 {
        return path;
    }
    let mut table = Table::new();
    table.insert("path".into(), path);
    table.insert("weight".into(), files.weight.into());
    table.into()
}

fn cache(key: &CacheKey) -> Value {
    match key {
        CacheKey::Auto => "auto".into(),
        CacheKey::On => true.into(),
        CacheKey::Off => false.into(),
        CacheKey::In(folder) => absolute(folder),
    }
}

fn path(path: &str) -> Value {
    match path.starts_with("hub:") {
        true => path.into(),
        false => absolute(path),
    }
}

/// What does not exist as a path is a hub id, or the name of an embedded model.
fn located(source: &str) -> Value {
    match Path::new(source).exists() {
        true => absolute(source),
        false => source.into(),
    }
}

fn absolute(path: &str) -> Value {
    let found = std::path::absolute(path);
    found.map_or_else(|_| path.into(), |path| path.display().to_string().into())
}

fn to_toml(value: &serde_json::Value) -> Option<Value> {
    Value::try_from(value).ok()
}
