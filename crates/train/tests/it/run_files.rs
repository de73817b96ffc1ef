//! What a run file may say, and what it is told when it may not.

use lowrank_adapter::{Blur, Memory};
use lowrank_data::Length;
use lowrank_train::{
    AdamW, CacheKey, Chosen, Curve, Error, Held, Judging, LoraFa, Metric, OnNonFinite, Place,
    RunFile, Sgd, TaskKeys, TrainFiles, Warmup,
};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;

const SMALL: &str =
    "model.source = \"tiny\"\ndata.train = [\"train.jsonl\"]\noutput.dir = \"runs/first\"\n";

const PATHS: &str = "expected a list of paths, for example [\"train.jsonl\"], or with a weight {path = \"more.jsonl\", weight = 0.5}";

fn parse(text: &str, sets: &[&str]) -> Result<RunFile, Error> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    RunFile::parse(text, Path::new("my/run.toml"), &sets)
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let run = parse(SMALL, &[]).unwrap();
    assert_eq!(
        (run.model.source.as_str(), run.model.dtype),
        ("tiny", Held::AsStored)
    );
    assert_eq!(
        (
            run.adapter.family,
            run.adapter.init_from,
            run.adapter.keys.len()
        ),
        (None, None, 0)
    );
    let data = run.data;
    assert_eq!((data.train, data.eval), (files(&["train.jsonl"]), vec![]));
    assert_eq!((data.max_length.get(), data.shuffle), (512, true));
    assert_eq!(
        (data.eval_fraction, data.group_by_length, data.cache),
        (None, false, CacheKey::Auto)
    );
    let train = run.train;
    assert_eq!(train.length, Length::Epochs(1));
    assert_eq!((train.batch_size.get(), train.accumulate.get()), (8, 1));
    assert_eq!(train.optimizer, Chosen::new(AdamW::default()));
    assert_eq!(train.lora_plus_ratio, None);
    assert_eq!(
        (train.learning_rate, train.schedule, train.warmup),
        (2e-4, Curve::Constant, Warmup::Steps(0))
    );
    assert_eq!((train.max_grad_norm, train.memory), (1.0, Memory::Keep));
    assert_eq!(
        (
            train.eval_every,
            train.save_every,
            train.keep_checkpoints.get()
        ),
        (0, 0, 2)
    );
    assert_eq!(
        (train.seed, train.on_non_finite, train.groups.len()),
        (42, OnNonFinite::Stop, 0)
    );
    assert_eq!((train.least_rate, train.blur), (0.0, Blur::default()));
    assert_eq!(train.judging, Judging::default());
    assert_eq!(run.output.dir, "runs/first");
}

const FULL: &str = r#"
[model]
source = "models/some"
dtype = "f32"
[adapter]
family = "lora"
init_from = "other"
r = 16
lora_alpha = 32.5
use_rslora = true
target_modules = ["q_proj", "v_proj"]
rank_pattern = { "layers.0.q_proj" = 4 }
[task]
kind = "causal-lm"
[data]
train = ["a.jsonl", "b/*.jsonl"]
eval = ["c.jsonl"]
max_length = 64
packing = true
shuffle = false
chat_template = "{{ messages }}"
chat_date = "2024-02-29"
[train]
steps = 300
batch_size = 4
accumulate = 2
optimizer = "adamw"
betas = [0.8, 0.95]
eps = 1e-6
weight_decay = 0.01
lora_plus_ratio = 16
learning_rate = 1
schedule = "cosine"
min_learning_rate = 0.25
warmup_ratio = 0.1
max_grad_norm = 0
label_smoothing = 0.1
neftune_noise_alpha = 5
best_metric = "matthews"
load_best = true
early_stopping_patience = 3
early_stopping_threshold = 0.01
compute = "f32"
recompute = true
eval_every = 50
save_every = 100
keep_checkpoints = 3
seed = 7
on_non_finite = "skip"
[train.groups.gate]
learning_rate_factor = 10
weight_decay = 0.5
[output]
dir = "out"
"#;

#[test]
fn every_key_is_read() {
    let run = parse(FULL, &[]).unwrap();
    assert_eq!(run.model.dtype, Held::F32);
    assert_eq!(
        (
            run.adapter.family.as_deref(),
            run.adapter.init_from.as_deref()
        ),
        (Some("lora"), Some("other"))
    );
    assert_eq!(
        serde_json::Value::Object(run.adapter.keys.clone()),
        json!({
            "r": 16,
            "lora_alpha": 32.5,
            "use_rslora": true,
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.0.q_proj": 4}
        })
    );
    let train = &run.train;
    assert_eq!(
        (train.length, train.learning_rate, train.max_grad_norm),
        (Length::Steps(300), 1.0, 0.0)
    );
    let adamw = AdamW {
        betas: (0.8, 0.95),
        eps: 1e-6,
        weight_decay: 0.01,
    };
    assert_eq!(train.optimizer, Chosen::new(adamw));
    assert_eq!(train.lora_plus_ratio, Some(16.0));
    assert_eq!(train.warmup, Warmup::Ratio(0.1));
    assert_eq!(
        (train.memory, train.on_non_finite),
        (Memory::Recompute, OnNonFinite::Skip)
    );
    let blur = Blur {
        label_smoothing: 0.1,
        embedding_noise: 5.0,
    };
    assert_eq!((train.least_rate, train.blur), (0.25, blur));
    let judging = Judging {
        metric: Metric::Matthews,
        load_best: true,
        patience: Some(3),
        threshold: 0.01,
    };
    assert_eq!(train.judging, judging);
    assert_eq!(train.groups["gate"].learning_rate_factor, 10.0);
    assert_eq!(train.groups["gate"].weight_decay, Some(0.5));
    assert!(!run.data.shuffle);
    assert_eq!(run.data.chat_template.as_deref(), Some("{{ messages }}"));
    let date = run.data.chat_date.map(|date| date.to_string());
    assert_eq!(date.as_deref(), Some("2024-02-29"));
}

#[test]
fn a_resolved_file_is_complete_absolute_and_reads_back_the_same() {
    let here = std::env::current_dir().unwrap();
    for text in [SMALL, FULL] {
        let resolved = parse(text, &[]).unwrap().resolved();
        let again = parse(&resolved, &[]).unwrap();
        assert_eq!(again.resolved(), resolved);
        let first = parse(text, &[]).unwrap();
        assert_eq!(again.train, first.train);
        assert_eq!(again.adapter.keys, first.adapter.keys);
        assert_eq!(again.model, first.model);
        let absolute = |path: &str| here.join(path).display().to_string();
        assert_eq!(again.output.dir, absolute(&first.output.dir));
        assert_eq!(
            again.data.train,
            first
                .data
                .train
                .iter()
                .map(|files| TrainFiles {
                    path: absolute(&files.path),
                    ..*files
                })
                .collect::<Vec<_>>()
        );
        for key in [
            "shuffle = ",
            "packing = ",
            "eps = 0.00000",
            "betas = [0.",
            "keep_checkpoints = ",
            "label_smoothing = ",
            "best_metric = ",
            "on_non_finite = ",
        ] {
            assert!(resolved.contains(key), "{key} in\n{resolved}");
        }
    }
    let mut run = parse(SMALL, &[]).unwrap();
    run.model.source = "src".into();
    assert!(
        run.resolved()
            .contains(&format!("source = \"{}\"", here.join("src").display()))
    );
}

#[test]
fn each_optimiser_has_its_own_keys_and_defaults() {
    let of = |lines: &str| {
        let run = parse(&format!("{SMALL}[train]\n{lines}"), &[]).unwrap();
        let again = parse(&run.resolved(), &[]).unwrap();
        assert_eq!(again.train, run.train);
        let resolved = run.resolved();
        (run.train.optimizer, resolved)
    };
    let (plain, resolved) = of("optimizer = \"sgd\"");
    assert_eq!(plain, Chosen::new(Sgd::default()));
    assert!(resolved.contains("nesterov = false") && !resolved.contains("betas"));
    let (chosen, _) = of("optimizer = \"sgd\"\nmomentum = 0.9\nnesterov = true\nweight_decay = 1");
    let sgd = Sgd {
        momentum: 0.9,
        nesterov: true,
        weight_decay: 1.0,
        ..Sgd::default()
    };
    assert_eq!(chosen, Chosen::new(sgd));
    assert_ne!(chosen, plain);
    // PEFT's eps.
    let (chosen, resolved) = of("optimizer = \"lora_fa\"\nbetas = [0.5, 0.75]");
    let adamw = AdamW {
        betas: (0.5, 0.75),
        eps: 1e-6,
        weight_decay: 0.0,
    };
    assert_eq!(chosen, Chosen::new(LoraFa(adamw)));
    assert_ne!(chosen, Chosen::new(adamw));
    assert!(resolved.contains("optimizer = \"lora_fa\""));
}

#[test]
fn sets_are_applied_in_order() {
    let sets = [
        "train.learning_rate=1e-3",
        "train.seed = 5",
        "train.seed=6",
        "data.train=[\"x.jsonl\", 'y.jsonl']",
        "output.dir=runs/second",
        "model.dtype=f64",
        "adapter.target_modules=all-linear",
        "adapter.rank_pattern.q_proj=3",
        "train.groups.gate.weight_decay=0",
        "data.shuffle=false",
    ];
    let run = parse(SMALL, &sets).unwrap();
    assert_eq!((run.train.learning_rate, run.train.seed), (1e-3, 6));
    assert_eq!(run.data.train, files(&["x.jsonl", "y.jsonl"]));
    assert_eq!(
        (run.output.dir.as_str(), run.model.dtype),
        ("runs/second", Held::F64)
    );
    assert_eq!(
        serde_json::Value::Object(run.adapter.keys),
        json!({"target_modules": "all-linear", "rank_pattern": {"q_proj": 3}})
    );
    assert_eq!(run.train.groups["gate"].weight_decay, Some(0.0));
    assert!(!run.data.shuffle);
}

fn refused(text: &str, sets: &[&str], message: &str) {
    let error = parse(text, sets).unwrap_err();
    assert_eq!(error.to_string(), message);
    assert!(error.is_usage());
}

#[test]
fn what_is_wrong_in_the_file_is_named() {
    for (lines, what) in [
        (
            "[tarin]\nsteps = 1",
            "unknown key `tarin`, did you mean `train`?",
        ),
        (
            "[train]\nbatchsize = 1",
            "unknown key `train.batchsize`, did you mean `train.batch_size`?",
        ),
        ("[train]\nwibble = 1", "unknown key `train.wibble`"),
        (
            "[model]\nsource = \"x\"\nrevision = 3",
            "unknown key `model.revision`",
        ),
        (
            "[train.groups.gate]\nweight_decai = 1",
            "unknown key `train.groups.gate.weight_decai`, did you mean `train.groups.gate.weight_decay`?",
        ),
        (
            "[train.groups]\ngate = 2",
            "`train.groups.gate` is 2, expected a table",
        ),
        ("train = 3", "`train` is 3, expected a table"),
        (
            "[train]\nlabel_smoothing = 1",
            "`train.label_smoothing` is 1, expected a number from 0 to below 1",
        ),
        (
            "[train]\nneftune_noise_alpha = -5",
            "`train.neftune_noise_alpha` is -5, expected a finite number of at least 0",
        ),
        (
            "[train]\nschedule = \"linear\"\nlearning_rate = 1e-3\nmin_learning_rate = 2e-3",
            "`train.min_learning_rate` is 0.002, expected a number from 0 to `train.learning_rate`, which is 0.001",
        ),
        (
            "[train]\nmin_learning_rate = 1e-4",
            "`train.min_learning_rate` is for rates that fall, expected `train.schedule` to be \"linear\" or \"cosine\"",
        ),
        (
            "[train]\nbest_metric = \"acuracy\"",
            "`train.best_metric` is \"acuracy\", expected \"loss\" or \"accuracy\" or \"f1\" or \"matthews\" or \"mse\" or \"pearson\" or \"spearman\"",
        ),
        (
            "[train]\nload_best = true",
            "`train.load_best` compares evaluations during training, expected `train.eval_every` above 0",
        ),
        (
            "[train]\nearly_stopping_patience = 3",
            "`train.early_stopping_patience` compares evaluations during training, expected `train.eval_every` above 0",
        ),
        (
            "[train]\neval_every = 5\nearly_stopping_patience = 0",
            "`train.early_stopping_patience` is 0, expected an integer of at least 1",
        ),
        (
            "[train]\neval_every = 5\nearly_stopping_threshold = 0.1",
            "`train.early_stopping_threshold` is for `train.early_stopping_patience`, which is missing",
        ),
        (
            "[train]\nbatch_size = 0",
            "`train.batch_size` is 0, expected an integer from 1 to 65536",
        ),
        (
            "[train]\nbatch_size = \"8\"",
            "`train.batch_size` is \"8\", expected an integer from 1 to 65536",
        ),
        (
            "[train]\nbatch_size = 65536\naccumulate = 17",
            "`train.batch_size` * `train.accumulate` is 1114112, expected at most 1048576 rows a step",
        ),
        (
            "[train]\naccumulate = -1",
            "`train.accumulate` is -1, expected an integer from 1 to 65536",
        ),
        (
            "[train]\nsteps = 0",
            "`train.steps` is 0, expected an integer of at least 1",
        ),
        (
            "[train]\nepochs = 1.5",
            "`train.epochs` is 1.5, expected an integer of at least 1",
        ),
        (
            "[train]\nsteps = 1\nepochs = 1",
            "`train.steps` and `train.epochs` are both given, expected one of them",
        ),
        (
            "[train]\nwarmup_steps = 1\nwarmup_ratio = 0.5",
            "`train.warmup_steps` and `train.warmup_ratio` are both given, expected one of them",
        ),
        (
            "[train]\nwarmup_ratio = 1.5",
            "`train.warmup_ratio` is 1.5, expected a number from 0 to 1",
        ),
        (
            "[train]\nlearning_rate = -1e-4",
            "`train.learning_rate` is -0.0001, expected a finite number of at least 0",
        ),
        (
            "[train]\nlearning_rate = nan",
            "`train.learning_rate` is nan, expected a finite number of at least 0",
        ),
        (
            "[train]\nmax_grad_norm = inf",
            "`train.max_grad_norm` is inf, expected a finite number of at least 0",
        ),
        (
            "[train]\neps = 0",
            "`train.eps` is 0, expected a finite number above 0",
        ),
        (
            "[train]\nbetas = [0.9, 1.0]",
            "`train.betas` is [0.9, 1.0], expected two numbers from 0 to below 1, for example [0.9, 0.999]",
        ),
        (
            "[train]\nbetas = 0.9",
            "`train.betas` is 0.9, expected two numbers from 0 to below 1, for example [0.9, 0.999]",
        ),
        (
            "[train]\nschedule = \"cosin\"",
            "`train.schedule` is \"cosin\", expected \"constant\" or \"linear\" or \"cosine\"",
        ),
        (
            "[train]\non_non_finite = true",
            "`train.on_non_finite` is true, expected \"stop\" or \"skip\"",
        ),
        (
            "[train]\nrecompute = 1",
            "`train.recompute` is 1, expected true or false",
        ),
        (
            "[train]\nkeep_checkpoints = 0",
            "`train.keep_checkpoints` is 0, expected an integer of at least 1",
        ),
        (
            "[train]\nseed = 1979-05-27",
            "`train.seed` is 1979-05-27, expected an integer of at least 0",
        ),
        (
            "[train]\noptimizer = \"lion\"",
            "`train.optimizer = \"lion\"` is not yet supported (only \"adamw\" or \"lora_fa\" or \"sgd\" is)",
        ),
        (
            "[train]\noptimizer = \"sgd\"\neps = 1e-8",
            "`train.eps` has no meaning for `train.optimizer = \"sgd\"`, which takes `momentum`, `dampening`, `nesterov`, `weight_decay`",
        ),
        (
            "[train]\nmomentum = 0.9",
            "`train.momentum` has no meaning for `train.optimizer = \"adamw\"`, which takes `betas`, `eps`, `weight_decay`",
        ),
        (
            "[train]\noptimizer = \"lora_fa\"\nnesterov = false",
            "`train.nesterov` has no meaning for `train.optimizer = \"lora_fa\"`, which takes `betas`, `eps`, `weight_decay`",
        ),
        (
            "[train]\noptimizer = \"sgd\"\nmomentum = -0.5",
            "`train.momentum` is -0.5, expected a finite number of at least 0",
        ),
        (
            "[train]\noptimizer = \"sgd\"\ndampening = inf",
            "`train.dampening` is inf, expected a finite number of at least 0",
        ),
        (
            "[train]\noptimizer = \"sgd\"\nnesterov = true",
            "`train.nesterov` is true, expected false, or `train.momentum` above 0 and `train.dampening` 0",
        ),
        (
            "[train]\noptimizer = \"sgd\"\nnesterov = true\nmomentum = 0.9\ndampening = 0.1",
            "`train.nesterov` is true, expected false, or `train.momentum` above 0 and `train.dampening` 0",
        ),
        (
            "[train]\noptimizer = \"sgd\"\nnesterov = 1",
            "`train.nesterov` is 1, expected true or false",
        ),
        (
            "[train]\noptimizer = \"adamv\"",
            "`train.optimizer` is \"adamv\", expected \"adamw\" or \"lora_fa\" or \"sgd\"",
        ),
        (
            "[train]\ncompute = \"f16\"",
            "`train.compute` is \"f16\", expected \"f32\" or \"bf16\"",
        ),
        (
            "[train]\nlora_plus_ratio = 0",
            "`train.lora_plus_ratio` is 0, expected a finite number above 0",
        ),
        (
            "[train]\nlora_plus_ratio = \"16\"",
            "`train.lora_plus_ratio` is \"16\", expected a finite number above 0",
        ),
        (
            "[task]\nkind = \"classify\"",
            "`task.kind` is \"classify\", expected \"causal-lm\" or \"classification\"",
        ),
        (
            "[task]\nnum_labels = 2",
            "`task.num_labels` is for `task.kind = \"classification\"`; set that, or leave it out",
        ),
        (
            "[task]\nkind = \"classification\"\nnum_labels = 0",
            "`task.num_labels` is 0, expected an integer from 1 to 65536",
        ),
        (
            "[task]\nkind = \"classification\"\nnum_labels = 2.0",
            "`task.num_labels` is 2.0, expected an integer from 1 to 65536",
        ),
        (
            "data.packing = true\n[task]\nkind = \"classification\"",
            "`data.packing = true` joins rows, and `task.kind = \"classification\"` tells them apart; leave packing out",
        ),
        (
            "[adapter]\nr = nan",
            "`adapter.r` is nan, expected finite numbers, and neither dates nor times",
        ),
        (
            "[adapter]\nfamily = 7",
            "`adapter.family` is 7, expected the name of a family, as a string",
        ),
    ] {
        // A dotted key in front would define the table twice.
        let small = SMALL.lines().filter(|line| {
            let section = line.split('.').next().unwrap_or_default();
            !lines.contains(&format!("[{section}]"))
        });
        let text = small.chain(lines.lines()).collect::<Vec<_>>().join("\n");
        refused(&text, &[], &format!("my/run.toml: {what}"));
    }
    for (text, what) in [
        ("", "`model.source` is missing, expected a model folder, a GGUF file, a hub id or the name of an embedded model, as a string".to_owned()),
        ("model.source = \"x\"", format!("`data.train` is missing, {PATHS}")),
        ("model.source = \"x\"\ndata.train = []", format!("`data.train` is [], {PATHS}")),
        ("model.source = \"x\"\ndata.train = \"a.jsonl\"", format!("`data.train` is \"a.jsonl\", {PATHS}")),
        ("model.source = \"x\"\ndata.train = [1]", format!("`data.train` is [1], {PATHS}")),
        (
            "model.source = \"x\"\ndata = { train = [\"a\"], packing = 1 }",
            "`data.packing` is 1, expected true or false".to_owned(),
        ),
        (
            "model.source = \"x\"\ndata = { train = [\"a\"], max_length = 1 }",
            "`data.max_length` is 1, expected an integer from 2 to 4294967295".to_owned(),
        ),
        (
            "model.source = \"x\"\ndata.train = [\"a\"]",
            "`output.dir` is missing, expected a folder, as a string, for example \"runs/first\"".to_owned(),
        ),
    ] {
        refused(text, &[], &format!("my/run.toml: {what}"));
    }
}

/// Files that are taken once.
fn files(paths: &[&str]) -> Vec<TrainFiles> {
    let paths = paths.iter();
    paths
        .map(|&path| TrainFiles {
            path: path.to_owned(),
            weight: 1.0,
        })
        .collect()
}

#[test]
fn files_have_weights_and_rows_are_held_out_grouped_and_kept() {
    let sets = [
        "data.train=['a.jsonl', {path = 'b.jsonl', weight = 2}, {path = 'hub:org/set/c.jsonl', weight = 0.25}, {path = 'd.jsonl'}]",
        "data.eval_fraction=0.1",
        "data.group_by_length=true",
        "data.cache=some/folder",
    ];
    let run = parse(SMALL, &sets).unwrap();
    let mut expected = files(&["a.jsonl", "b.jsonl", "hub:org/set/c.jsonl", "d.jsonl"]);
    (expected[1].weight, expected[2].weight) = (2.0, 0.25);
    assert_eq!(run.data.train, expected);
    assert_eq!(
        (run.data.eval_fraction, run.data.group_by_length),
        (Some(0.1), true)
    );
    assert_eq!(run.data.cache, CacheKey::In("some/folder".into()));

    let here = std::env::current_dir().unwrap();
    let again = parse(&run.resolved(), &[]).unwrap();
    for files in &mut expected {
        if !files.path.starts_with("hub:") {
            files.path = here.join(&files.path).display().to_string();
        }
    }
    assert_eq!(again.data.train, expected);
    assert_eq!(
        (again.data.eval_fraction, again.data.group_by_length),
        (Some(0.1), true)
    );
    let folder = here.join("some/folder").display().to_string();
    assert_eq!(again.data.cache, CacheKey::In(folder));

    for (value, key) in [
        ("true", CacheKey::On),
        ("false", CacheKey::Off),
        ("auto", CacheKey::Auto),
    ] {
        let run = parse(SMALL, &[&format!("data.cache={value}")]).unwrap();
        assert_eq!(run.data.cache, key);
        assert_eq!(parse(&run.resolved(), &[]).unwrap().data.cache, key);
    }

    for (set, what) in [
        (
            "data.train=[{path = 'a', wieght = 2}]",
            "unknown key `data.train[0].wieght`, did you mean `data.train[0].weight`?",
        ),
        (
            "data.train=['b', {weight = 2}]",
            "`data.train[1].path` is missing, expected a path, as a string",
        ),
        (
            "data.train=[{path = 'a', weight = 0}]",
            "`data.train[0].weight` is 0, expected a number above 0 and at most 1000",
        ),
        (
            "data.train=[{path = 'a', weight = nan}]",
            "`data.train[0].weight` is nan, expected a number above 0 and at most 1000",
        ),
        (
            "data.train=[{path = 'a', weight = 1001}]",
            "`data.train[0].weight` is 1001, expected a number above 0 and at most 1000",
        ),
        (
            "data.train=[{path = 'a', weight = 'twice'}]",
            "`data.train[0].weight` is \"twice\", expected a number above 0 and at most 1000",
        ),
        (
            "data.train=[['a']]",
            &format!("`data.train` is [[\"a\"]], {PATHS}"),
        ),
        (
            "data.eval_fraction=0",
            "`data.eval_fraction` is 0, expected a number between 0 and 1",
        ),
        (
            "data.eval_fraction=1.0",
            "`data.eval_fraction` is 1.0, expected a number between 0 and 1",
        ),
        (
            "data.eval_fraction='all'",
            "`data.eval_fraction` is \"all\", expected a number between 0 and 1",
        ),
        (
            "data.group_by_length=1",
            "`data.group_by_length` is 1, expected true or false",
        ),
        (
            "data.cache=1",
            "`data.cache` is 1, expected \"auto\", true, false or a folder",
        ),
        (
            "data.cache=''",
            "`data.cache` is \"\", expected \"auto\", true, false or a folder",
        ),
    ] {
        refused(SMALL, &[set], &format!("--set: {what}"));
    }
    refused(
        SMALL,
        &["data.eval=['e.jsonl']", "data.eval_fraction=0.5"],
        "--set: `data.eval` and `data.eval_fraction` are both given, expected one of them",
    );
    refused(
        SMALL,
        &["data.packing=true", "data.group_by_length=true"],
        "--set: `data.group_by_length` and `data.packing` are both true: packed sequences are of one length already; leave one of them out",
    );
}

#[test]
fn syntax_errors_have_a_line_and_a_column() {
    for (text, place) in [
        ("[train]\nsteps = = 3\n", "my/run.toml:2:9: "),
        ("[train\nsteps = 3\n", "my/run.toml:1:7: "),
        ("a = 1\nö = 2\n", "my/run.toml:2:1: "),
        ("[train]\nsteps = 1\nsteps = 2\n", "my/run.toml:3:1: "),
    ] {
        let message = parse(text, &[]).unwrap_err().to_string();
        assert!(
            message.starts_with(place) && message.len() > place.len() + 5,
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn what_is_wrong_in_a_set_is_named() {
    for (set, what) in [
        (
            "train.steps",
            "`train.steps` has no `=`, expected key=value, for example train.steps=100",
        ),
        (
            "=3",
            "`` is not a key, expected words joined by dots, for example train.steps",
        ),
        (
            "train..steps=3",
            "`train..steps` is not a key, expected words joined by dots, for example train.steps",
        ),
        (
            "train.steps=many",
            "`train.steps` is \"many\", expected an integer of at least 1",
        ),
        (
            "train.stepz=3",
            "unknown key `train.stepz`, did you mean `train.steps`?",
        ),
        (
            "output.dir.x=3",
            "`output.dir.x` cannot be set: `output.dir` is \"runs/first\", not a table",
        ),
        ("output=3", "`output` is 3, expected a table"),
    ] {
        refused(SMALL, &[set], &format!("--set: {what}"));
    }
    let message = parse(SMALL, &["data.train=[\"a"]).unwrap_err().to_string();
    assert!(
        message.starts_with("--set: the value of `data.train`, `[\"a`, is not TOML: "),
        "{message}"
    );
    // The file is at fault for what no `--set` touched.
    refused(
        &format!("{SMALL}train.seed = -1"),
        &["train.steps=3"],
        "my/run.toml: `train.seed` is -1, expected an integer of at least 0",
    );
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_or_refused(text in "(\\[?[a-z]{1,6}\\]?[.= \n\"\\[{]{0,3}[0-9a-z\"\\]}]{0,4}\n?){0,12}", set in ".{0,20}") {
        let _ = parse(&text, &[]);
        let _ = parse(SMALL, &[&set]);
    }

    #[test]
    fn numbers_survive_being_resolved(rate in 0.0f64..1.0, eps in 1e-300f64..1.0, seed in 0i64..) {
        let text = format!("{SMALL}train = {{ learning_rate = {rate:e}, eps = {eps:e}, seed = {seed} }}");
        let run = parse(&text, &[]).unwrap();
        let again = parse(&run.resolved(), &[]).unwrap();
        prop_assert_eq!(run.train.learning_rate.to_bits(), rate.to_bits());
        prop_assert_eq!(again.train, run.train);
    }
}

#[test]
fn a_device_is_read_and_resolved() {
    let run = parse(SMALL, &[]).unwrap();
    assert_eq!(run.model.device, Place::Cpu);
    assert!(run.resolved().contains("device = \"cpu\""));
    let run = parse(SMALL, &["model.device=cuda"]).unwrap();
    assert_eq!(run.model.device, Place::Cuda);
    let again = parse(&run.resolved(), &[]).unwrap();
    assert_eq!(again.model.device, Place::Cuda);
    let both = parse(SMALL, &["model.device=cuda", "train.compute=bf16"]);
    assert!(both.unwrap_err().to_string().ends_with(
        "`train.compute = \"bf16\"` with `model.device = \"cuda\"` is not yet supported, expected \"f32\""
    ));
}

#[test]
fn a_classification_is_written_back_as_it_was_read() {
    let of = |lines: &str| parse(&format!("{SMALL}{lines}"), &[]).unwrap();
    let open = of("[task]\nkind = \"classification\"");
    assert_eq!(open.task, TaskKeys::Classification { num_labels: None });
    assert!(!open.resolved().contains("num_labels"));
    let three = of("[task]\nkind = \"classification\"\nnum_labels = 3");
    let num_labels = std::num::NonZeroUsize::new(3);
    assert_eq!(three.task, TaskKeys::Classification { num_labels });
    for run in [open, three] {
        assert_eq!(parse(&run.resolved(), &[]).unwrap().task, run.task);
    }
}

/// A key that is listed and not read would be accepted and do nothing.
#[test]
fn every_listed_key_is_read() {
    for key in lowrank_train::KEYS {
        let name = key.name.replace("NAME", "lora_B");
        let optimizer = match key.name {
            "train.momentum" | "train.dampening" | "train.nesterov" => "sgd",
            _ => "adamw",
        };
        let sets = [
            format!("train.optimizer={optimizer}"),
            format!("{name}=1979-05-27T07:32:00"),
        ];
        let error = RunFile::parse(SMALL, Path::new("run.toml"), &sets).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("--set: `"), "{message}");
        assert!(message.contains(&name), "{name}: {message}");
    }
}
