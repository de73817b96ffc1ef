//! Rows of messages: planned, trained on, resumed and measured, with the model's own template and with another.

use crate::number;
use lowrank_tests::place::Place;
use serde_json::{Value, json};

const ROWS: &str = r#"{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]}
{"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Three?"}, {"role": "assistant", "content": "3 it is"}]}
"#;

const RUN: &str = r#"[model]
source = "tiny"
[adapter]
r = 2
lora_alpha = 3
target_modules = "all-linear"
[data]
train = ["chats.jsonl"]
eval = ["chats.jsonl"]
shuffle = false
[train]
steps = 3
batch_size = 2
learning_rate = 0.01
[output]
dir = "run"
"#;

/// Everything is a line with a name; what ends a turn is a slash.
const OTHER: &str = "{% for m in messages %}{{ m.role + ': ' }}{% generation %}{{ m.content + '/' if m.role == 'assistant' }}\
    {% endgeneration %}{{ m.content if m.role != 'assistant' }}{{ '\\n' }}{% endfor %}";

fn place() -> Place {
    let place = Place::new();
    place.write("chats.jsonl", ROWS);
    place.write("run.toml", RUN);
    place.write("other.jinja", OTHER);
    place
}

/// The texts that are supervised in the first row.
fn supervised(plan: &Value) -> String {
    let example = &plan["example"];
    let tokens = example["tokens"].as_array().unwrap();
    let marks = example["supervised"].as_array().unwrap();
    assert_eq!(tokens.len(), marks.len());
    let said = tokens.iter().zip(marks).filter(|(_, mark)| **mark == true);
    said.map(|(token, _)| token.as_str().unwrap()).collect()
}

#[test]
fn the_plan_shows_what_the_assistant_says() {
    let place = place();
    let shown = place.run(&["plan", "run.toml"]).ok().stdout;
    for expected in [
        "chats.jsonl  2 of {\"messages\"}",
        "<|im_start|>system↵Be·short.<|im_end|>↵",
        "<|im_start|>assistant↵[[1<|im_end|>]]↵",
    ] {
        assert!(shown.contains(expected), "{expected} in {shown}");
    }
    let plan = |set: &str| {
        place
            .run(&["plan", "run.toml", "--json", "--set", set])
            .json()
    };
    assert_eq!(supervised(&plan("train.seed=1")), "1<|im_end|>");
    assert_eq!(supervised(&plan("data.chat_template=other.jinja")), "1/");
    let text = format!("data.chat_template='''{OTHER}'''");
    assert_eq!(supervised(&plan(&text)), "1/");
}

#[test]
fn chats_train_and_are_measured_by_loss() {
    let place = place();
    let _ended = place.run(&["train", "run.toml"]).ok();
    let lines = place.json_lines("run/metrics.jsonl");
    let evaluations: Vec<f64> = lines
        .iter()
        .filter_map(|line| line["eval_loss"].as_f64())
        .collect();
    let (first, last) = (evaluations[0], *evaluations.last().unwrap());
    assert!(last < first, "{evaluations:?}");

    let eval = |more: &[&str]| {
        let arguments = ["eval", "--model", "tiny", "--data", "chats.jsonl", "--json"];
        place.run(&[&arguments, more].concat()).json()
    };
    let (before, after) = (eval(&[]), eval(&["--adapter", "run/adapter"]));
    assert_eq!(before["task"], "loss");
    assert!((number(&before["loss"]) - first).abs() < 1e-5 * first);
    assert!((number(&after["loss"]) - last).abs() < 1e-5 * last);
    let by_slash = eval(&["--chat-template", "other.jinja"]);
    assert_ne!(by_slash["loss"], before["loss"]);
    assert_eq!(by_slash["examples"], 2);

    // The same rows as tables are the same rows.
    let mut csv = String::from("messages\n");
    for line in ROWS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        csv += &format!("\"{}\"\n", row["messages"].to_string().replace('"', "\"\""));
    }
    place.write("chats.csv", csv);
    let table = ["eval", "--model", "tiny", "--data", "chats.csv", "--json"];
    assert_eq!(place.run(&table).json()["loss"], before["loss"]);
    // And so are those of ShareGPT, beside instructions.
    let spoken = ROWS
        .replace("\"role\"", "\"from\"")
        .replace("\"content\"", "\"value\"")
        .replace("messages", "conversations")
        .replace("\"user\"", "\"human\"")
        .replace("\"assistant\"", "\"gpt\"");
    place.write("spoken.jsonl", spoken);
    let spoken = [
        "eval",
        "--model",
        "tiny",
        "--data",
        "spoken.jsonl",
        "--json",
    ];
    assert_eq!(place.run(&spoken).json()["loss"], before["loss"]);
    let row = json!({"instruction": "Count.", "input": "1, 2", "output": "3"});
    place.write("instructions.jsonl", row.to_string());
    let found = place.run(&[
        "eval",
        "--model",
        "tiny",
        "--data",
        "instructions.jsonl",
        "--json",
    ]);
    assert_eq!(found.json()["supervised_tokens"], 2);
}

#[test]
fn the_template_is_a_setting_of_the_run() {
    let place = place();
    fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["train", "run.toml", "--set"], more].concat()
    }
    let trained = place.run(&train(&["data.chat_template=other.jinja"]));
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let resolved = place.text("run/run.toml");
    assert!(resolved.contains("other.jinja\""), "{resolved}");
    place.refuses(
        &train(&["train.steps=5", "--resume"]),
        2,
        &["data.chat_template"],
    );
    let resumed = train(&[
        "data.chat_template=other.jinja",
        "--set",
        "train.steps=5",
        "--resume",
    ]);
    assert_eq!(place.run(&resumed).ok().code, 0);

    let refused = |template: &str, code: i32, message: &str| {
        let set = format!("data.chat_template={template}");
        place.refuses(&["plan", "run.toml", "--set", &set], code, &[message]);
    };
    refused(
        "none.jinja",
        2,
        "run.toml: `data.chat_template`: chat template `none.jinja` is neither a file nor a template (one has `{{` or `{%` in it)",
    );
    refused("'{% if %}'", 2, "chat template of the run: ");
    refused(
        "3",
        2,
        "`data.chat_template` is 3, expected a file with a chat template, or the template itself, as a string",
    );
    place.write("bytes.jinja", [0xff]);
    refused("bytes.jinja", 1, "cannot read `bytes.jinja`: ");
}

/// A run tells its template the day on which it began, and so it does when it goes on.
#[test]
fn a_resumed_run_keeps_its_day() {
    let place = place();
    let told = format!(
        "{{{{ strftime_now('%Y-%m-%d') + '\\n' }}}}{}",
        OTHER.replace("\\n", "|")
    );
    place.write("told.jinja", told);
    fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [
            &[
                "train",
                "run.toml",
                "--set",
                "data.chat_template=told.jinja",
            ],
            more,
        ]
        .concat()
    }
    let day = ["--set", "data.chat_date=2024-02-29"];
    assert_eq!(place.run(&train(&day)).ok().code, 0);
    let recorded = "chat_date = \"2024-02-29\"";
    assert!(place.text("run/run.toml").contains(recorded));
    assert_eq!(
        place
            .run(&train(&["--resume", "--set", "train.steps=5"]))
            .ok()
            .code,
        0
    );
    assert!(place.text("run/run.toml").contains(recorded));
    assert_eq!(
        place
            .run(&train(&[
                "--set",
                "data.chat_date=2024-02-29",
                "--set",
                "train.steps=5",
                "--set",
                "output.dir=whole",
            ]))
            .ok()
            .code,
        0
    );
    let adapter = "adapter/adapter_model.safetensors";
    assert_eq!(
        place.read(&format!("run/{adapter}")),
        place.read(&format!("whole/{adapter}"))
    );
    let another = [
        "--resume",
        "--set",
        "train.steps=6",
        "--set",
        "data.chat_date=2024-03-01",
    ];
    place.refuses(&train(&another), 2, &["data.chat_date"]);
    // Without a day it is today's, if the template asks for it at all.
    assert_eq!(
        place.run(&train(&["--set", "output.dir=today"])).ok().code,
        0
    );
    assert!(place.text("today/run.toml").contains("chat_date = \"2"));
    assert_eq!(
        place
            .run(&["train", "run.toml", "--set", "output.dir=none"])
            .ok()
            .code,
        0
    );
    assert!(!place.text("none/run.toml").contains("chat_date"));
    for wrong in ["2024-02-30", "20240229", "24-02-29"] {
        let set = format!("data.chat_date=\"{wrong}\"");
        let expected = "`data.chat_date` is \"";
        place.refuses(
            &["plan", "run.toml", "--set", &set],
            2,
            &[expected, "a date from 1970 on"],
        );
    }
    let loss = |date: &str| {
        let arguments = [
            "eval",
            "--model",
            "tiny",
            "--data",
            "chats.jsonl",
            "--chat-template",
            "told.jinja",
            "--json",
        ];
        number(
            &place
                .run(&[&arguments[..], &["--chat-date", date]].concat())
                .json()["loss"],
        )
    };
    assert_eq!(loss("2024-02-29"), loss("2024-02-29"));
    assert_ne!(loss("2024-02-29"), loss("2024-03-01"));
}

#[test]
fn what_cannot_be_measured_together_is_refused() {
    let place = place();
    place.write("texts.jsonl", "{\"text\": \"a b c\"}\n");
    place.write(
        "labels.jsonl",
        "{\"text\": \"a b\", \"label\": 1}\n{\"text\": \"c\", \"label\": 0}\n",
    );
    place.write(
        "pairs.jsonl",
        "{\"prompt\": \"a\", \"completion\": \" b\"}\n",
    );
    place.write(
        "choices.jsonl",
        "{\"prompt\": \"a\", \"completion\": \" b\", \"choices\": [\" b\", \" c\"], \"answer\": 0}\n",
    );
    let eval = |files: [&'static str; 2], more: &[&'static str]| {
        let [first, second] = files;
        let both = [
            "eval", "--model", "tiny", "--json", "--data", first, "--data", second,
        ];
        [&both[..], more].concat()
    };
    let labels = eval(["texts.jsonl", "labels.jsonl"], &[]);
    let message = "texts.jsonl has rows {\"text\"} and labels.jsonl rows {\"text\"[,\"text_pair\"],\"label\"}, which are not measured alike";
    place.refuses(&labels, 2, &[message]);
    let choices = ["choices.jsonl", "pairs.jsonl"];
    place.refuses(
        &eval(choices, &[]),
        2,
        &["choices.jsonl has rows", "--task loss"],
    );
    place.refuses(
        &eval(choices, &["--task", "choices"]),
        2,
        &["pairs.jsonl rows"],
    );
    assert_eq!(
        place.run(&eval(choices, &["--task", "loss"])).json()["examples"],
        2
    );
    assert_eq!(
        place.run(&eval(["texts.jsonl", "chats.jsonl"], &[])).json()["examples"],
        3
    );

    // Nobody answers, and nothing was cut.
    place.write(
        "asked.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"One?\"}, {\"role\": \"assistant\", \"content\": \"1\"}]}\n\
         {\"messages\": [{\"role\": \"user\", \"content\": \"Two?\"}]}\n",
    );
    let asked = eval(["pairs.jsonl", "asked.jsonl"], &["--task", "generate"]);
    place.refuses(
        &asked,
        2,
        &["row 2 of asked.jsonl has nothing to compare an answer with"],
    );
}
