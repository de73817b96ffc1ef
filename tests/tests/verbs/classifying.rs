//! Classifiers through the binary: train, resume, evaluate, merge, and what is refused.

use crate::merged;
use lowrank::training::{Error, Mode, Progress, RunFile};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::path::Path;

/// Rows of words of the golden model's tokenizer. The class is which of two kinds of words there are more of, and can be
/// read off them.
fn rows(count: usize, seed: usize, label: impl Fn(usize, usize) -> Value) -> String {
    let row = |row: usize| {
        let draw = |place: usize| (row * 31 + place * 17 + seed * 7 + row * place * 3) % 11;
        let length = 3 + draw(1) % 5;
        let class = draw(2) % 3;
        let words: Vec<String> = (0..length)
            .map(|place| format!("w{}", 5 + 20 * class + draw(place + 3)))
            .collect();
        format!(
            "{}\n",
            json!({"text": words.join(" "), "label": label(class, draw(5))})
        )
    };
    (0..count).map(row).collect()
}

const RUN: &str = r#"[model]
source = "model"
[adapter]
r = 4
lora_alpha = 8
target_modules = ["q_proj", "v_proj", "down_proj"]
lora_dropout = 0.1
[task]
kind = "classification"
[data]
train = ["train.jsonl"]
eval = ["held-out.jsonl"]
[train]
batch_size = 4
steps = 40
save_every = 20
learning_rate = 0.02
[output]
dir = "run"
"#;

const NAMES: [&str; 3] = ["sea", "air", "land"];

fn place(label: impl Fn(usize, usize) -> Value + Copy) -> Place {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    place.write("train.jsonl", rows(48, 1, label));
    place.write("held-out.jsonl", rows(24, 2, label));
    place.write("run.toml", RUN);
    place
}

fn named(class: usize, _: usize) -> Value {
    json!(NAMES[class])
}

/// The object that a verb prints when it does what it should.
fn done(place: &Place, arguments: &[&str]) -> Value {
    place.run(arguments).json()
}

fn evaluated(place: &Place, arguments: &[&str]) -> Value {
    let data = ["eval", "--data", "held-out.jsonl", "--json"];
    done(place, &[&data, arguments].concat())
}

fn close(a: &Value, b: &Value) {
    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
    assert!((a - b).abs() < 1e-5 * a.abs().max(0.1), "{a} and {b}");
}

#[test]
fn a_classifier_from_rows_to_a_merged_model() {
    let place = place(named);
    let plan = done(&place, &["plan", "run.toml", "--json"]);
    // Three classes of a hidden state of 48 numbers, beside the adapter.
    let sites = plan["sites"].as_array().unwrap();
    let head = sites.iter().find(|site| site["site"] == "score").unwrap();
    assert_eq!(head["parameters"], 3 * 48);
    let sum: u64 = sites
        .iter()
        .map(|site| site["parameters"].as_u64().unwrap())
        .sum();
    assert_eq!(plan["trainable_parameters"], sum);

    let trained = done(&place, &["train", "run.toml", "--json"]);
    assert_eq!(
        trained["trainable_parameters"],
        plan["trainable_parameters"]
    );
    let lines = place.json_lines("run/metrics.jsonl");
    let evaluations: Vec<&Value> = lines
        .iter()
        .filter(|line| line["eval_loss"].is_f64())
        .collect();
    let (before, after) = (evaluations[0], evaluations[1]);
    assert!(after["eval_loss"].as_f64() < before["eval_loss"].as_f64());
    assert!(after["eval_accuracy"].as_f64().unwrap() > 0.9, "{after}");
    for metric in ["eval_f1", "eval_matthews"] {
        assert!(after[metric].as_f64().unwrap() > 0.8, "{after}");
    }

    // What is saved is PEFT's, and knows the names of its classes.
    let config = place.json("run/adapter/adapter_config.json");
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], json!(["classifier", "score"]));
    assert_eq!(
        place.json("run/adapter/lowrank.json")["labels"],
        json!(["air", "land", "sea"])
    );
    let tensors = place.tensors("run/adapter/adapter_model.safetensors");
    assert_eq!(tensors["base_model.model.score.weight"].dims(), [3, 48]);
    let inspected = done(&place, &["inspect", "run/adapter", "--json"]);
    assert_eq!(
        inspected["trainable_parameters"],
        plan["trainable_parameters"]
    );
    let head = |tensor: &&Value| tensor["name"] == "score.weight";
    let head = inspected["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(head)
        .unwrap();
    assert_eq!(head["shape"], json!([3, 48]));

    // Resumed from the middle, every file is the same.
    place.duplicate("run", "whole");
    std::fs::remove_dir_all(place.path("run/checkpoints/step-000040")).unwrap();
    done(&place, &["train", "run.toml", "--resume", "--json"]);
    for file in [
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
    ] {
        assert_eq!(
            place.read(&format!("run/{file}")),
            place.read(&format!("whole/{file}"))
        );
    }

    // The adapter, and the merged model, give what the run ended with.
    let adapter = ["--model", "model", "--adapter", "run/adapter"];
    let outputs = [
        "--predictions",
        "p.jsonl",
        "--logits",
        "l.safetensors",
        "--batch-size",
        "5",
    ];
    let found = evaluated(&place, &[&adapter[..], &outputs].concat());
    assert_eq!(
        (&found["task"], &found["examples"]),
        (&json!("classification"), &json!(24))
    );
    assert!(found.get("perplexity").is_none() && found.get("supervised_tokens").is_none());
    close(&found["loss"], &after["eval_loss"]);
    assert_eq!(found["accuracy"], after["eval_accuracy"]);
    for metric in ["accuracy", "f1", "matthews"] {
        close(&found["metrics"][metric], &after[format!("eval_{metric}")]);
    }
    check_outputs(&place, &found);
    let merge = ["merge", "--out", "merged", "--verify", "--json"];
    let merged = done(&place, &[&merge[..], &adapter].concat());
    assert!(
        merged["max_abs_logit_diff"].as_f64().unwrap() < 1e-4,
        "{merged}"
    );
    let config = place.json("merged/config.json");
    assert_eq!(
        config["architectures"],
        json!(["LlamaForSequenceClassification"])
    );
    assert_eq!(
        config["id2label"],
        json!({"0": "air", "1": "land", "2": "sea"})
    );
    assert_eq!(config["label2id"], json!({"air": 0, "land": 1, "sea": 2}));
    let again = evaluated(&place, &["--model", "merged"]);
    close(&again["loss"], &found["loss"]);
    assert_eq!(again["metrics"], found["metrics"]);

    // As plain LoRA too, with its head and its names.
    let export = [
        "export",
        "--to",
        "lora",
        "--model",
        "model",
        "--adapter",
        "run/adapter",
    ];
    done(
        &place,
        &[&export[..], &["--out", "plain", "--json"]].concat(),
    );
    let plain = evaluated(&place, &["--model", "model", "--adapter", "plain"]);
    close(&plain["loss"], &found["loss"]);
}

/// Predictions and logits of the held-out rows say the same as the metrics.
fn check_outputs(place: &Place, found: &Value) {
    let predictions = place.json_lines("p.jsonl");
    let data = place.json_lines("held-out.jsonl");
    let logits = place.tensors("l.safetensors")["logits"]
        .to_vec2::<f32>()
        .unwrap();
    assert_eq!((predictions.len(), logits.len()), (24, 24));
    let names = ["air", "land", "sea"];
    let mut right = 0;
    for (index, (row, given)) in predictions.iter().zip(&data).enumerate() {
        assert_eq!(row["index"], index);
        let answer = usize::try_from(row["answer"].as_u64().unwrap()).unwrap();
        assert_eq!(given["label"], names[answer]);
        let scores: Vec<f64> = serde_json::from_value(row["scores"].clone()).unwrap();
        let highest = (0..3)
            .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
            .unwrap();
        assert_eq!(row["prediction"], highest);
        assert_eq!(row["correct"], highest == answer);
        right += usize::from(highest == answer);
        for (score, logit) in scores.iter().zip(&logits[index]) {
            assert!((score - f64::from(*logit)).abs() < 1e-6);
        }
    }
    let share = right as f64 / 24.0;
    assert_eq!(found["accuracy"].as_f64().unwrap(), share);
    // Wilson's bounds are where the score test of the share is as far off as it may be.
    for (bound, sign) in [("accuracy_low", 1.0), ("accuracy_high", -1.0)] {
        let bound = found["metrics"][bound].as_f64().unwrap();
        let far = sign * (share - bound) / (bound * (1.0 - bound) / 24.0).sqrt();
        assert!((far - 1.96).abs() < 1e-3, "{bound} of {share}");
    }
}

/// So fast that the best evaluation is none of the last ones.
const BEST: [&str; 5] = [
    "train.steps=200",
    "train.eval_every=3",
    "train.best_metric=f1",
    "train.load_best=true",
    "train.early_stopping_patience=3",
];

#[test]
fn the_best_by_f1_is_what_is_left_of_a_run_that_ended_early() {
    let place = place(named);
    let sets: Vec<&str> = BEST.into_iter().flat_map(|set| ["--set", set]).collect();
    let train = [&["train", "run.toml"][..], &sets].concat();
    let trained = done(&place, &[&train[..], &["--json"]].concat());
    let evaluations: Vec<Value> = place
        .json_lines("run/metrics.jsonl")
        .into_iter()
        .filter(|line| line["eval_f1"].is_f64())
        .collect();
    let f1 = |line: &Value| line["eval_f1"].as_f64().unwrap();
    let mut best = &evaluations[1];
    for line in &evaluations[1..] {
        if f1(line) > f1(best) {
            best = line;
        }
    }
    let last = evaluations.last().unwrap();
    assert_eq!(
        evaluations.len(),
        1 + best["step"].as_u64().unwrap() as usize / 3 + 3
    );
    assert_eq!(trained["ended_early"], true);
    assert_eq!(
        (&trained["steps"], &trained["result_of"]),
        (&last["step"], &best["step"])
    );
    assert_eq!(
        trained["best"],
        json!({"step": best["step"], "metric": "f1", "value": best["eval_f1"]})
    );

    // The adapter is that of the step, and not the last one's.
    let found = evaluated(&place, &["--model", "model", "--adapter", "run/adapter"]);
    close(&found["loss"], &best["eval_loss"]);
    assert_eq!(found["accuracy"], best["eval_accuracy"]);
    for metric in ["f1", "matthews"] {
        close(&found["metrics"][metric], &best[format!("eval_{metric}")]);
    }
    assert_ne!(best["eval_loss"], last["eval_loss"]);
    let step = &best["step"];
    assert!(
        place
            .text("run/adapter/README.md")
            .contains(&step.to_string())
    );

    // What people read is of the result as well.
    let text = place.run(&[&train[..], &["--overwrite"]].concat()).ok();
    let after = format!("{:.4} after\n", best["eval_loss"].as_f64().unwrap());
    assert!(text.stdout.contains(&after), "{}", text.stdout);

    // A metric that classes lack is refused before anything is lost, by `plan` as well.
    let whole = place.read("run/adapter/adapter_model.safetensors");
    let pearson = ["--set", "train.best_metric=pearson"];
    let said = "run.toml: `train.best_metric = \"pearson\"` is no metric of this task, expected one of: loss, accuracy, f1, \
                matthews";
    let overwrite = [&train[..], &pearson, &["--overwrite"]].concat();
    place.refuses(&overwrite, 2, &[said]);
    let plan = ["plan", "run.toml"];
    place.refuses(&[&plan[..], &pearson].concat(), 2, &[said]);
    assert_eq!(place.read("run/adapter/adapter_model.safetensors"), whole);
    let without = ["--set", "data.eval=[]", "--overwrite"];
    place.refuses(
        &[&train[..], &without].concat(),
        2,
        &["there are no held-out rows"],
    );
    assert_eq!(place.read("run/adapter/adapter_model.safetensors"), whole);
}

/// Asks the run to stop when it has asked so many times.
struct Impatient {
    asked: u32,
    stops_at: u32,
}

impl Progress for Impatient {
    fn stops(&mut self) -> bool {
        self.asked += 1;
        self.asked > self.stops_at
    }
}

#[test]
fn a_classifier_that_is_stopped_between_two_batches_of_an_evaluation_goes_on_to_the_same_bytes() {
    let place = place(named);
    let run = |folder: &str, mode: Mode, stops_at: u32| {
        let path = |name: &str| place.path(name).display().to_string();
        let sets = [
            format!("model.source={:?}", path("model")),
            format!("data.train=[{:?}]", path("train.jsonl")),
            format!("data.eval=[{:?}]", path("held-out.jsonl")),
            format!("output.dir={:?}", path(folder)),
            "train.steps=2".to_owned(),
            "train.eval_every=1".to_owned(),
        ];
        let origin = place.path("run.toml");
        let run = RunFile::parse(RUN, &origin, &sets).unwrap();
        let mut progress = Impatient { asked: 0, stops_at };
        let ended = lowrank::train(&run, &origin, mode, &mut progress);
        (ended.map(drop), progress.asked)
    };
    let (ended, asked) = run("whole", Mode::Fresh, u32::MAX);
    ended.unwrap();
    // Before and between the 6 batches of 3 evaluations, and before the steps.
    assert_eq!(asked, 3 * 7 + 2);
    let file = "adapter/adapter_model.safetensors";
    // In the first evaluation, the second and the third, before a batch that is not the first.
    for (stops_at, at) in [(3, 0), (11, 1), (20, 2)] {
        let folder = format!("stopped-{stops_at}");
        let (ended, _) = run(&folder, Mode::Fresh, stops_at);
        match ended.unwrap_err() {
            lowrank::Error::Train(error) => assert!(
                matches!(*error, Error::Interrupted { step, total: 2 } if step == at),
                "{error}"
            ),
            error => panic!("{error}"),
        }
        run(&folder, Mode::Resume, u32::MAX).0.unwrap();
        let whole = place.read(&format!("whole/{file}"));
        assert_eq!(place.read(&format!("{folder}/{file}")), whole);
    }
}

#[test]
fn a_regression_is_judged_by_its_correlations() {
    let place = place(|class, noise| json!(class as f64 + noise as f64 / 50.0));
    done(
        &place,
        &[
            "train",
            "run.toml",
            "--set",
            "train.learning_rate=0.01",
            "--json",
        ],
    );
    let lines = place.json_lines("run/metrics.jsonl");
    let after = lines
        .iter()
        .rfind(|line| line["eval_loss"].is_f64())
        .unwrap();
    assert!(after["eval_pearson"].as_f64().unwrap() > 0.8, "{after}");
    assert!(after["eval_spearman"].as_f64().unwrap() > 0.7, "{after}");
    assert!(after.get("eval_accuracy").is_none());
    let tensors = place.tensors("run/adapter/adapter_model.safetensors");
    assert_eq!(tensors["base_model.model.score.weight"].dims(), [1, 48]);
    let arguments = [
        "--model",
        "model",
        "--adapter",
        "run/adapter",
        "--predictions",
        "p.jsonl",
    ];
    let found = evaluated(&place, &arguments);
    close(&found["loss"], &after["eval_loss"]);
    close(&found["metrics"]["mse"], &found["loss"]);
    close(&found["metrics"]["pearson"], &after["eval_pearson"]);
    let rows = place.json_lines("p.jsonl");
    assert!(
        rows.iter()
            .all(|row| row["prediction"] == row["scores"][0] && row["correct"].is_null())
    );
    drop(merged(&place));
    place.refuses(
        &["plan", "run.toml", "--set", "train.label_smoothing=0.1"],
        2,
        &["run.toml: `train.label_smoothing` is 0.1, and the labels of a regression are values"],
    );
    let best = |metric: &str| format!("train.best_metric={metric}");
    place.refuses(
        &["plan", "run.toml", "--set", &best("f1")],
        2,
        &["is no metric of this task, expected one of: loss, mse, pearson, spearman"],
    );
    let mse = best("mse");
    let sets = [
        "--set",
        &mse,
        "--set",
        "train.steps=4",
        "--set",
        "train.eval_every=2",
    ];
    let mse = done(
        &place,
        &[&["train", "run.toml", "--overwrite", "--json"][..], &sets].concat(),
    );
    assert_eq!(mse["best"]["metric"], "mse");
    let lines = place.json_lines("run/metrics.jsonl");
    let errors = lines.iter().filter(|line| line["step"] != 0);
    let errors = errors.filter_map(|line| line["eval_mse"].as_f64());
    let least = errors.fold(f64::INFINITY, f64::min);
    assert_eq!(mse["best"]["value"].as_f64(), Some(least));
    assert_eq!(
        place.json("merged/config.json")["problem_type"],
        "regression"
    );
    close(
        &evaluated(&place, &["--model", "merged"])["loss"],
        &found["loss"],
    );
}

#[test]
fn full_training_leaves_a_classifier() {
    let place = place(|class, _| json!(class));
    let adapter = RUN.split("[task]").next().unwrap();
    let text = RUN.replace(
        adapter,
        "[model]\nsource = \"model\"\n[adapter]\nfamily = \"full\"\n",
    );
    place.write("run.toml", text);
    let sets = [
        "--set",
        "train.learning_rate=1e-3",
        "--set",
        "train.steps=8",
    ];
    done(
        &place,
        &[&["train", "run.toml", "--json"][..], &sets].concat(),
    );
    let lines = place.json_lines("run/metrics.jsonl");
    let after = lines
        .iter()
        .rfind(|line| line["eval_loss"].is_f64())
        .unwrap();
    let config = place.json("run/model/config.json");
    assert_eq!(
        config["architectures"],
        json!(["LlamaForSequenceClassification"])
    );
    assert_eq!(
        config["id2label"],
        json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    );
    let found = evaluated(&place, &["--model", "run/model"]);
    close(&found["loss"], &after["eval_loss"]);
    assert_eq!(found["accuracy"], after["eval_accuracy"]);
    // What it was trained to tell apart is what it can be trained on: a third class has no place in two.
    place.write("more.jsonl", "{\"text\": \"w5\", \"label\": 3}\n");
    place.refuses(
        &["eval", "--model", "run/model", "--data", "more.jsonl"],
        1,
        &["more.jsonl:1: `label` is 3, expected one of 3 classes, 0 to 2"],
    );
}

#[test]
fn the_head_depends_on_the_seed_alone() {
    let place = place(named);
    let head = |dir: &str, seed: &str| {
        let output = format!("output.dir={dir}");
        let seed = format!("train.seed={seed}");
        let sets = ["--set", &output, "--set", &seed];
        let still = ["--set", "train.steps=1", "--set", "train.learning_rate=0"];
        done(
            &place,
            &[&["train", "run.toml", "--json"][..], &sets, &still].concat(),
        );
        let mut tensors = place.tensors(&format!("{dir}/adapter/adapter_model.safetensors"));
        let head = tensors.remove("base_model.model.score.weight").unwrap();
        head.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (one, again, other) = (head("a", "1"), head("b", "1"), head("c", "2"));
    assert_eq!(one, again);
    assert_ne!(one, other);
    // Normal with the configuration's deviation, 0.02.
    let variance = one.iter().map(|x| x * x).sum::<f32>() / one.len() as f32;
    assert!((0.015..0.025).contains(&variance.sqrt()), "{variance}");
}

#[test]
fn a_run_goes_on_from_a_classifiers_adapter() {
    let place = place(named);
    done(&place, &["train", "run.toml", "--json"]);
    // Held-out names in another order, and not all of them: classes are the adapter's.
    let kept: String = place
        .text("train.jsonl")
        .lines()
        .filter(|line| !line.contains("air"))
        .map(|line| format!("{line}\n"))
        .collect();
    place.write("train.jsonl", kept);
    let text = RUN.replace("[adapter]\n", "[adapter]\ninit_from = \"run/adapter\"\n");
    place.write("more.toml", text.replace("dir = \"run\"", "dir = \"more\""));
    done(
        &place,
        &["train", "more.toml", "--set", "train.steps=1", "--json"],
    );
    let names = &place.json("more/adapter/lowrank.json")["labels"];
    assert_eq!(names, &json!(["air", "land", "sea"]));
    let last = place.json_lines("run/metrics.jsonl");
    let last = last
        .iter()
        .rfind(|line| line["eval_loss"].is_f64())
        .unwrap();
    let first = &place.json_lines("more/metrics.jsonl")[0];
    close(&first["eval_loss"], &last["eval_loss"]);
}

#[test]
fn what_does_not_fit_a_classification_is_refused() {
    let place = place(named);
    let row = "{\"text\"[,\"text_pair\"],\"label\"}";
    let needs = format!(
        "run.toml: `data.train`: rows.jsonl has rows {{\"input_ids\",\"labels\"}}, and \
                         `task.kind = \"classification\"` needs rows {row}"
    );
    place.refuses(
        &["train", "run.toml", "--set", "data.train=[\"rows.jsonl\"]"],
        2,
        &[&needs],
    );
    let learns = format!(
        "run.toml: `data.train`: train.jsonl has rows {row}, and `task.kind = \"causal-lm\"` cannot learn \
                          from labels; set `task.kind = \"classification\"`"
    );
    place.refuses(
        &["train", "run.toml", "--set", "task.kind=causal-lm"],
        2,
        &[&learns],
    );
    place.refuses(
        &["plan", "run.toml", "--set", "data.packing=true"],
        2,
        &["`data.packing = true` joins rows, and `task.kind = \"classification\"` tells them apart; leave packing out"],
    );
    place.refuses(
        &["train", "run.toml", "--set", "adapter.task_type=CAUSAL_LM"],
        2,
        &["`task_type = \"CAUSAL_LM\"` contradicts `task.kind = \"classification\"`"],
    );
    place.refuses(
        &["train", "run.toml", "--set", "task.num_labels=2"],
        1,
        &[", a name more than the 2 classes that there may be"],
    );
    place.refuses(
        &["eval", "--model", "model", "--data", "train.jsonl"],
        2,
        &["rows with labels need a classifier: the model has no classification head, and no adapter brings one"],
    );
    place.refuses(
        &[
            "eval",
            "--model",
            "model",
            "--data",
            "rows.jsonl",
            "--task",
            "classification",
        ],
        2,
        &[&format!(
            "--task classification needs rows {row}; these are others"
        )],
    );
    done(
        &place,
        &["train", "run.toml", "--set", "train.steps=1", "--json"],
    );
    let sets = [
        "--set",
        "adapter.init_from=run/adapter",
        "--set",
        "task.kind=causal-lm",
    ];
    let sets = [
        &sets[..],
        &[
            "--set",
            "data.train=[\"rows.jsonl\"]",
            "--set",
            "output.dir=other",
        ],
    ]
    .concat();
    place.refuses(
        &[&["train", "run.toml"], &sets[..]].concat(),
        2,
        &["init_from holds an adapter of the task type SEQ_CLS, which `task.kind` contradicts"],
    );
    let adapter = ["--model", "model", "--adapter", "run/adapter"];
    place.refuses(
        &[&["eval", "--data", "rows.jsonl"], &adapter[..]].concat(),
        2,
        &[&format!(
            "the model is a classifier, which is measured on rows {row} alone"
        )],
    );
    place.refuses(
        &[
            &["eval", "--data", "train.jsonl", "--task", "loss"],
            &adapter[..],
        ]
        .concat(),
        2,
        &["rows with labels are measured by --task classification; leave the flag out"],
    );
    place.refuses(
        &[&["generate", "--prompt", "w5 w6"], &adapter[..]].concat(),
        1,
        &["a llama without a head that predicts tokens was asked for logits of tokens"],
    );
}

#[test]
fn an_adapter_whose_head_is_missing_or_misshapen_is_refused() {
    let place = place(named);
    done(
        &place,
        &["train", "run.toml", "--set", "train.steps=1", "--json"],
    );
    let eval = [
        "eval",
        "--data",
        "train.jsonl",
        "--model",
        "model",
        "--adapter",
        "run/adapter",
    ];
    let file = "run/adapter/adapter_model.safetensors";
    let whole = place.read(file);
    place.edit_tensors(file, |tensors| {
        drop(tensors.remove("base_model.model.score.weight"))
    });
    place.refuses(
        &eval,
        1,
        &["run/adapter: `task_type` is \"SEQ_CLS\", and there is no classification head"],
    );
    place.write(file, &whole);
    let narrow_head = |axis: usize, length: usize| {
        place.edit_tensors(file, |tensors| {
            let name = "base_model.model.score.weight";
            let head = tensors[name].narrow(axis, 0, length).unwrap();
            tensors.insert(name.into(), head.contiguous().unwrap());
        });
    };
    narrow_head(1, 40);
    place.refuses(
        &eval,
        1,
        &["`score.weight` has shape [3, 40], expected [3, 48]"],
    );
    // Fewer classes than names: the names are of no use, and the rows' labels are none of the classes.
    place.write(file, &whole);
    narrow_head(0, 2);
    place.refuses(
        &eval,
        1,
        &["but the model's classes have no names: expected their numbers"],
    );
}

/// Where the model and the data are: all of MiniLM is too slow for the tests, a slice is not.
#[test]
fn minilm_learns_a_slice_of_sst2() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let model = root.join("models/all-MiniLM-L6-v2");
    let data =
        std::env::var_os("LOWRANK_DATA").map_or_else(|| root.join("../shared/data"), Into::into);
    let data = Path::new(&data).join("sst2");
    if std::env::var_os("RUN_SLOW_TESTS").is_none() || !model.exists() || !data.exists() {
        eprintln!(
            "not run: needs RUN_SLOW_TESTS=1, models/all-MiniLM-L6-v2 and sst2 in LOWRANK_DATA"
        );
        return;
    }
    let place = Place::new();
    let head = |name: &str, rows: usize| {
        let text = std::fs::read_to_string(data.join(name)).unwrap();
        text.lines()
            .take(rows)
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    place.write("train.jsonl", head("train.jsonl", 1600));
    place.write("held-out.jsonl", head("dev.jsonl", 200));
    let text = RUN
        .replace("\"model\"", &format!("\"{}\"", model.display()))
        .replace(
            "[\"q_proj\", \"v_proj\", \"down_proj\"]",
            "[\"query\", \"value\"]",
        )
        .replace("0.02", "5e-3")
        .replace("batch_size = 4", "batch_size = 16")
        .replace("steps = 40", "steps = 100");
    place.write("run.toml", text);
    done(&place, &["train", "run.toml", "--json"]);
    let lines = place.json_lines("run/metrics.jsonl");
    let after = lines
        .iter()
        .rfind(|line| line["eval_loss"].is_f64())
        .unwrap();
    assert!(after["eval_accuracy"].as_f64().unwrap() > 0.75, "{after}");
    let model = model.to_string_lossy();
    let found = evaluated(&place, &["--model", &model, "--adapter", "run/adapter"]);
    assert_eq!(found["accuracy"], after["eval_accuracy"]);
}
