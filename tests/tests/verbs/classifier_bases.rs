//! Classifiers over bases that store less than one, or something else, and adapters that do not say what they are for.

use crate::merged;
use lowrank_tests::place::Place;
use serde_json::{Value, json};

const RUN: &str = r#"[model]
source = "model"
[adapter]
r = 4
lora_alpha = 6
target_modules = ["query", "value"]
[task]
kind = "classification"
[data]
train = ["rows.jsonl"]
eval = ["rows.jsonl"]
[train]
batch_size = 4
steps = 8
learning_rate = 0.02
seed = 7
[output]
dir = "run"
"#;

/// A BERT without a head, and rows of three classes.
fn place() -> Place {
    let place = Place::new();
    place.copy("classify/models/bert", "model");
    place.add_tokenizer("model", 59);
    let row = |row: usize| {
        let text = format!(
            "w{} w{} w{}",
            3 + row * 5 % 50,
            4 + row * 7 % 50,
            5 + row * 3 % 50
        );
        format!("{}\n", json!({"text": text, "label": row % 3}))
    };
    place.write("rows.jsonl", (0..15).map(row).collect::<String>());
    place.write("run.toml", RUN);
    place
}

fn trained(place: &Place) -> f64 {
    assert_eq!(place.run(&["train", "run.toml", "--json"]).ok().code, 0);
    let lines = place.json_lines("run/metrics.jsonl");
    let last = lines.iter().rfind(|line| line["eval_loss"].is_f64());
    last.unwrap()["eval_loss"].as_f64().unwrap()
}

fn evaluated(place: &Place, arguments: &[&str]) -> Value {
    let data = ["eval", "--data", "rows.jsonl", "--json"];
    place.run(&[&data[..], arguments].concat()).json()
}

fn near(found: &Value, expected: f64) {
    let found = found["loss"].as_f64().unwrap();
    assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
}

/// What is drawn when a run begins is part of what it leaves, or nobody could have its numbers again.
#[test]
fn a_drawn_pooler_is_saved_with_the_adapter() {
    let place = place();
    place.edit_tensors("model/model.safetensors", |tensors| {
        let count = tensors.len();
        tensors.retain(|name, _| !name.starts_with("pooler."));
        assert_eq!(tensors.len(), count - 2);
    });
    let last = trained(&place);
    let config = place.json("run/adapter/adapter_config.json");
    assert_eq!(
        config["modules_to_save"],
        json!(["classifier", "score", "pooler"])
    );
    let file = "run/adapter/adapter_model.safetensors";
    let pooler = "base_model.model.bert.pooler.dense.weight";
    assert_eq!(place.tensors(file)[pooler].dims(), [36, 36]);
    let with_adapter = ["--model", "model", "--adapter", "run/adapter"];
    near(&evaluated(&place, &with_adapter), last);
    drop(merged(&place));
    near(&evaluated(&place, &["--model", "merged"]), last);
    // A run that goes on from it begins where it ended, whatever its seed is.
    let more = [
        "train",
        "run.toml",
        "--set",
        "adapter.init_from=\"run/adapter\"",
        "--set",
        "train.seed=8",
        "--set",
        "output.dir=more",
        "--json",
    ];
    assert_eq!(place.run(&more).ok().code, 0);
    let first = &place.json_lines("more/metrics.jsonl")[0]["eval_loss"];
    near(&json!({"loss": first}), last);

    place.edit_tensors(file, |tensors| {
        tensors.retain(|name, _| !name.contains("pooler"))
    });
    place.refuses(
        &[&["eval", "--data", "rows.jsonl"], &with_adapter[..]].concat(),
        1,
        &["run/adapter: the base has no `pooler`, so the adapter was trained with a random one, and that was not saved with it"],
    );
}

#[test]
fn heads_of_other_tasks_are_no_classifiers() {
    let place = place();
    trained(&place);
    drop(merged(&place));
    let refused = |place: &Place| {
        place.refuses(
            &["eval", "--data", "rows.jsonl", "--model", "merged"],
            1,
            &["merged: there is no `cls.predictions`, the head that predicts tokens"],
        );
    };
    let named = |name: &str| {
        place.edit_json("merged/config.json", |config| {
            config.insert("architectures".into(), json!([name]));
        });
    };
    for task in ["TokenClassification", "MultipleChoice", "QuestionAnswering"] {
        named(&format!("Bert{task}"));
        refused(&place);
    }
    // One that reads every token has no pooler.
    named("BertForSequenceClassification");
    assert!(evaluated(&place, &["--model", "merged"])["accuracy"].is_f64());
    place.edit_tensors("merged/model.safetensors", |tensors| {
        tensors.retain(|name, _| !name.contains("pooler."));
    });
    refused(&place);
}

/// PEFT writes no `task_type` unless it is told one.
#[test]
fn an_adapter_need_not_say_that_it_is_a_classifiers() {
    let place = place();
    let last = trained(&place);
    let arguments = ["--model", "model", "--adapter", "run/adapter"];
    let silent = |place: &Place| {
        place.edit_json("run/adapter/adapter_config.json", |config| {
            config.insert("task_type".into(), Value::Null);
            config.insert("modules_to_save".into(), json!(["classifier"]));
        });
    };
    silent(&place);
    near(&evaluated(&place, &arguments), last);
    let embed = ["embed", "--data", "rows.jsonl", "--out", "e.safetensors"];
    assert_eq!(place.run(&[&embed[..], &arguments].concat()).ok().code, 0);

    // Without a head it is for whatever its base is.
    drop(merged(&place));
    let again = [
        "train",
        "run.toml",
        "--overwrite",
        "--set",
        "model.source=\"merged\"",
        "--json",
    ];
    assert_eq!(place.run(&again).ok().code, 0);
    place.edit_tensors("run/adapter/adapter_model.safetensors", |tensors| {
        tensors.retain(|name, _| name.contains("lora_"));
    });
    place.edit_json("run/adapter/adapter_config.json", |config| {
        config.insert("task_type".into(), Value::Null);
        config.insert("modules_to_save".into(), Value::Null);
    });
    let found = evaluated(&place, &["--model", "merged", "--adapter", "run/adapter"]);
    assert!(found["accuracy"].is_f64(), "{found}");
}
