//! The model card beside an adapter.

use crate::HubId;
use candle_core::Tensor;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// What a card says of how an adapter came about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Training {
    /// What is learned, as run files call it: `causal-lm`.
    pub task: String,
    /// Files of rows, by name alone, each with how many rows were read from it.
    pub files: Vec<(String, usize)>,
    /// How many rows were held out.
    pub held_out: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// What was measured on the held-out rows.
    pub measures: Vec<Measure>,
    /// Keys of the run file with their values.
    pub settings: Vec<(String, String)>,
    /// The version of the program.
    pub version: String,
}

/// A number before and after training; none where it was not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// What it measures.
    pub name: String,
    /// Before the first step.
    pub before: Option<f64>,
    /// After the last one.
    pub after: Option<f64>,
}

/// What an adapter's file holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub tensors: usize,
    pub parameters: usize,
    /// How many numbers a classifier's head gives, if there is one.
    pub labels: Option<usize>,
}

impl Held {
    /// What classification heads are called in transformers.
    const HEADS: [&str; 3] = [
        "score.weight",
        "classifier.weight",
        "classifier.out_proj.weight",
    ];

    /// Of tensors by their names in the adapter.
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Self {
        let mut held = Self {
            tensors: 0,
            parameters: 0,
            labels: None,
        };
        for (name, tensor) in tensors {
            held.tensors += 1;
            // Integers are indices, which nothing trains.
            if tensor.dtype().is_float() {
                held.parameters += tensor.elem_count();
            }
            if Self::HEADS.contains(&name) {
                held.labels = tensor.dims().first().copied();
            }
        }
        held
    }
}

/// The types that PEFT 0.21 knows, of those that lowrank has or may have.
const KNOWN_TO_PEFT: [&str; 12] = [
    "ADALORA",
    "BOFT",
    "C3A",
    "FOURIERFT",
    "HRA",
    "IA3",
    "LOHA",
    "LOKR",
    "LORA",
    "OFT",
    "RANDLORA",
    "VERA",
];

/// A README with the front matter that the hub reads.
pub(crate) fn card(
    config: &Map<String, Value>,
    family: &str,
    held: Held,
    training: Option<&Training>,
) -> String {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let peft_type = text("peft_type").unwrap_or_default();
    let base = Base::of(text("base_model_name_or_path"), text("revision"));
    let in_peft = KNOWN_TO_PEFT.contains(&peft_type);
    let task = Task::of(text("task_type"), training);
    let labels = held.labels.filter(|_| matches!(task, Task::Classes));

    let mut out = "---\n".to_owned();
    if let Base::Hub { id, .. } = &base {
        let _ = writeln!(out, "base_model: {}", yaml(id));
    }
    let library = if in_peft { "peft" } else { "lowrank" };
    let _ = writeln!(out, "library_name: {library}");
    if let Some(tag) = task.pipeline() {
        let _ = writeln!(out, "pipeline_tag: {tag}");
    }
    out += "tags:\n";
    if let Base::Hub { id, .. } = &base {
        let _ = writeln!(out, "- {}", yaml(&format!("base_model:adapter:{id}")));
    }
    let _ = writeln!(out, "- lowrank\n- {}\n---", yaml(family));

    let name = base.shown();
    let _ = write!(
        out,
        "# An adapter of {name}\n\n\
         - base model: {name}\n\
         - family: {} (`peft_type`: {})\n\
         - {} parameters in {} tensors\n",
        code(family),
        code(peft_type),
        held.parameters,
        held.tensors
    );
    usage(&mut out, &base, &task, labels, in_peft);
    if let Some(training) = training {
        trained(&mut out, training);
    }
    out
}

/// Where the base is to be had.
enum Base {
    Unknown,
    /// `org/name`, with a revision or without.
    Hub {
        id: String,
        revision: Option<String>,
    },
    /// A model that is part of lowrank, or one that only lowrank calls so.
    Named(String),
    /// A folder or a file of the machine on which the adapter was trained: its path says nothing elsewhere, and the hub
    /// refuses cards that name one.
    Local(String),
}

impl Base {
    fn of(name: Option<&str>, revision: Option<&str>) -> Self {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Self::Unknown;
        };
        match name.parse::<HubId>() {
            Ok(id) => Self::Hub {
                id: id.name().to_owned(),
                revision: revision.or(id.revision()).map(str::to_owned),
            },
            Err(_) if !name.contains(['/', '\\']) => Self::Named(name.to_owned()),
            Err(_) => {
                let last = name
                    .trim_end_matches(['/', '\\'])
                    .rsplit(['/', '\\'])
                    .next();
                Self::Local(last.unwrap_or(name).to_owned())
            }
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Unknown => "a base that is not recorded".to_owned(),
            Self::Hub { id, .. } => code(id),
            Self::Named(name) | Self::Local(name) => code(name),
        }
    }

    /// What stands behind `--model`.
    fn argument(&self) -> String {
        match self {
            Self::Hub {
                id,
                revision: Some(revision),
            } => quoted(&format!("{id}@{revision}")),
            Self::Hub { id, .. } => quoted(id),
            Self::Named(name) => quoted(name),
            Self::Unknown | Self::Local(_) => "BASE".to_owned(),
        }
    }
}

/// What the adapted model is for.
enum Task {
    Text,
    Classes,
    Other,
}

impl Task {
    fn of(task_type: Option<&str>, training: Option<&Training>) -> Self {
        let kind = training.map_or("", |training| &training.task);
        match (task_type, kind) {
            (Some("CAUSAL_LM"), _) | (None, "causal-lm") => Self::Text,
            (Some("SEQ_CLS"), _) | (None, "classification") => Self::Classes,
            _ => Self::Other,
        }
    }

    fn pipeline(&self) -> Option<&'static str> {
        match self {
            Self::Text => Some("text-generation"),
            Self::Classes => Some("text-classification"),
            Self::Other => None,
        }
    }

    /// The class of transformers that holds such a base.
    fn class(&self) -> &'static str {
        match self {
            Self::Text => "AutoModelForCausalLM",
            Self::Classes => "AutoModelForSequenceClassification",
            Self::Other => "AutoModel",
        }
    }
}

fn usage(out: &mut String, base: &Base, task: &Task, labels: Option<usize>, in_peft: bool) {
    let model = base.argument();
    *out += "\n## Use\n\n";
    if model == "BASE" {
        *out += "`BASE` is where the base model lies.\n\n";
    }
    *out += "With lowrank, in this folder:\n\n```sh\n";
    if let Task::Text = task {
        let _ = writeln!(
            out,
            "lowrank generate --model {model} --adapter . --prompt \"...\""
        );
    }
    let _ = writeln!(
        out,
        "lowrank eval --model {model} --adapter . --data rows.jsonl\n\
         lowrank merge --model {model} --adapter . --out merged\n```"
    );
    if !in_peft {
        *out += "\nPEFT does not know this type. `lowrank merge` makes a model that needs no adapter; `lowrank export --to lora` makes a plain \
                 LoRA that PEFT reads, if the update has that form.\n";
        return;
    }
    if let Base::Named(_) = base {
        return;
    }
    let class = task.class();
    let (python, revision) = match base {
        Base::Hub { id, revision } => {
            let revision = revision.as_ref();
            let revision = revision.map_or(String::new(), |revision| {
                format!(", revision={}", yaml(revision))
            });
            (yaml(id), revision)
        }
        _ => ("\"BASE\"".to_owned(), String::new()),
    };
    // Else transformers makes a head of two.
    let labels = labels.map_or(String::new(), |count| format!(", num_labels={count}"));
    let _ = write!(
        out,
        "\nWith PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import {class}\n\n\
         base = {class}.from_pretrained({python}{revision}{labels})\nmodel = PeftModel.from_pretrained(base, \".\")\n```\n"
    );
}

fn trained(out: &mut String, training: &Training) {
    *out += "\n## Training\n\n";
    let _ = writeln!(out, "{} steps on:\n", training.steps);
    for (name, rows) in &training.files {
        let _ = writeln!(out, "- {}: {rows} rows", code(name));
    }
    if !training.measures.is_empty() {
        let _ = write!(
            out,
            "\n## Evaluation\n\nOn {} held-out rows:\n\n| | before | after |\n|---|---:|---:|\n",
            training.held_out
        );
        for measure in &training.measures {
            let [before, after] = [measure.before, measure.after]
                .map(|number| number.map_or("not finite".into(), number_shown));
            let _ = writeln!(out, "| {} | {before} | {after} |", cell(&measure.name));
        }
    }
    *out += "\n## Settings\n\n| key | value |\n|---|---|\n";
    for (key, value) in &training.settings {
        let _ = writeln!(out, "| {} | {} |", cell(key), cell(value));
    }
    let _ = writeln!(out, "\nMade by lowrank {}.", training.version);
}

/// Five digits after the point, or as many that matter.
fn number_shown(number: f64) -> String {
    match number.abs() {
        size if size != 0.0 && !(1e-3..1e9).contains(&size) => format!("{number:.3e}"),
        _ => format!("{number:.5}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
    }
}

/// A JSON string is a YAML string, and Python's, whatever the name holds.
fn yaml(text: &str) -> String {
    Value::from(text).to_string()
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A span of code: Markdown and HTML mean nothing in it, and its fence is longer than any in the text.
fn code(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let runs = text.split(|c| c != '`').map(str::len);
    let fence = "`".repeat(runs.max().unwrap_or(0) + 1);
    let space = if text.starts_with('`') || text.ends_with('`') {
        " "
    } else {
        ""
    };
    match text.trim().is_empty() {
        true => "(empty)".to_owned(),
        false => format!("{fence}{space}{text}{space}{fence}"),
    }
}

/// The same in a table, where a bar ends a cell even in code.
fn cell(text: &str) -> String {
    code(text).replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use serde_json::json;

    const HELD: Held = Held {
        tensors: 14,
        parameters: 2345,
        labels: None,
    };

    fn config(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(config) => config,
            other => unreachable!("{other}"),
        }
    }

    fn training() -> Training {
        Training {
            task: "causal-lm".to_owned(),
            files: vec![
                ("letters.jsonl".to_owned(), 400),
                ("a`b|c.jsonl".to_owned(), 7),
            ],
            held_out: 240,
            steps: 150,
            measures: vec![
                Measure {
                    name: "loss".to_owned(),
                    before: Some(12.290_5),
                    after: None,
                },
                Measure {
                    name: "accuracy".to_owned(),
                    before: Some(0.25),
                    after: Some(0.8125),
                },
            ],
            settings: vec![("train.learning_rate".to_owned(), "0.002".to_owned())],
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_card_of_the_hubs_base_is_what_peft_users_expect() {
        let config = config(json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/name", "revision": "main"
        }));
        let card = card(&config, "lora", HELD, Some(&training()));
        assert!(
            card.starts_with(
                "---\nbase_model: \"org/name\"\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n\
                 - \"base_model:adapter:org/name\"\n- lowrank\n- \"lora\"\n---\n# An adapter of `org/name`\n"
            ),
            "{card}"
        );
        for part in [
            "- 2345 parameters in 14 tensors\n",
            "lowrank generate --model org/name@main --adapter . --prompt",
            "from transformers import AutoModelForCausalLM\n",
            "from_pretrained(\"org/name\", revision=\"main\")\n",
            "150 steps on:\n\n- `letters.jsonl`: 400 rows\n- ``a`b|c.jsonl``: 7 rows\n",
            "On 240 held-out rows:\n\n| | before | after |\n|---|---:|---:|\n| `loss` | 12.2905 | not finite |\n\
             | `accuracy` | 0.25 | 0.8125 |\n",
            "| `train.learning_rate` | `0.002` |\n\nMade by lowrank 0.1.0.\n",
        ] {
            assert!(card.contains(part), "{part} in {card}");
        }
    }

    #[test]
    fn a_card_names_neither_paths_nor_a_library_that_cannot_read_it() {
        let base = config(
            json!({"peft_type": "MOR", "base_model_name_or_path": "/srv/mine/models/odd: `name`\n# x/"}),
        );
        let card = card(&base, "mor", HELD, None);
        assert!(
            card.starts_with("---\nlibrary_name: lowrank\ntags:\n- lowrank\n- \"mor\"\n---\n# An adapter of `` odd: `name` # x ``\n")
                || card.starts_with("---\nlibrary_name: lowrank\ntags:\n- lowrank\n- \"mor\"\n---\n# An adapter of ``odd: `name` # x``\n"),
            "{card}"
        );
        assert!(!card.contains("/srv") && !card.contains("import"));
        assert!(card.contains("--model BASE ") && card.contains("PEFT does not know this type"));
        assert!(!card.contains("Training") && !card.contains("generate"));

        let none = super::card(&Map::new(), "lora", HELD, None);
        assert!(none.contains("# An adapter of a base that is not recorded\n"));
        let named = config(json!({"peft_type": "LORA", "base_model_name_or_path": "tiny"}));
        let card = super::card(&named, "lora", HELD, None);
        assert!(
            card.contains("--model tiny ") && !card.contains("import") && !card.contains("BASE")
        );
        let classes = config(json!({"peft_type": "LOHA", "task_type": "SEQ_CLS"}));
        let head = Tensor::zeros((3, 7), DType::F32, &Device::Cpu).unwrap();
        let held = Held::of([("classifier.weight", &head)].into_iter());
        assert_eq!((held.tensors, held.parameters), (1, 21));
        let card = super::card(&classes, "loha", held, None);
        assert!(card.contains("pipeline_tag: text-classification\n"));
        assert!(card.contains(
            "AutoModelForSequenceClassification.from_pretrained(\"BASE\", num_labels=3)"
        ));
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(code("<b>`x`"), "`` <b>`x` ``");
        assert_eq!(code(" \n"), "(empty)");
        assert_eq!(cell("a|b\n| c"), "`a\\|b \\| c`");
        assert_eq!(quoted("a b'c$(x)"), r"'a b'\''c$(x)'");
        assert_eq!(
            [0.0, 2e-7, 1.0, 0.123_456_7].map(number_shown),
            ["0", "2.000e-7", "1", "0.12346"]
        );
    }
}
