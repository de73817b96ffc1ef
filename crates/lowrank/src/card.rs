//! What the model card of a run says of it.

use lowrank_data::Dataset;
use lowrank_format::{Measure, Training};
use lowrank_report::Lines;
use lowrank_train::{RunFile, RunFolder, Summary};
use std::fs;
use std::path::Path;
use toml::{Table, Value};

/// Keys that hold paths of this machine, or that the card tells elsewhere.
const LEFT_OUT: [&str; 6] = [
    "model.source",
    "data.train",
    "data.eval",
    "data.cache",
    "adapter.init_from",
    "output.dir",
];

/// A path or a text.
const TEMPLATE: &str = "data.chat_template";

/// Gathers it. What cannot be read of the metrics is left out: a card is no reason to fail after a whole run.
pub(crate) fn training(
    run: &RunFile,
    folder: &RunFolder,
    data: &Dataset,
    held_out: Option<&Dataset>,
    summary: &Summary,
) -> Training {
    let settings: Table = run.resolved().parse().unwrap_or_default();
    let kind = settings.get("task").and_then(|task| task.get("kind"));
    let files = data.summary().files.iter();
    let metrics = fs::read_to_string(folder.metrics()).unwrap_or_default();
    // Steps are most of it, and measure nothing.
    let evaluations = metrics.split_inclusive('\n');
    let evaluations: String = evaluations
        .filter(|line| line.contains("\"eval_"))
        .collect();
    Training {
        task: kind.and_then(Value::as_str).unwrap_or_default().to_owned(),
        files: files
            .map(|file| {
                let name = file.path.file_name().unwrap_or_default();
                (name.display().to_string(), file.rows)
            })
            .collect(),
        held_out: held_out.map_or(0, |data| data.summary().rows),
        steps: summary.result_of,
        measures: measures(&Lines::parse(&evaluations), summary.result_of),
        settings: flat(&settings),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Every `eval_` key of the first evaluation and of that after `step`.
fn measures(lines: &Lines, step: u64) -> Vec<Measure> {
    let columns = lines.evaluations.columns().iter();
    let measured = columns.filter(|column| {
        let mut points = column.points().iter();
        column.key() != "eval_tokens" && points.any(|(of, _)| *of == step)
    });
    let starts = lines.evaluations.columns().iter();
    let starts = starts.filter_map(|column| column.points().first());
    let first = starts.map(|(step, _)| *step).min().unwrap_or(0);
    measured
        .filter_map(|column| {
            Some(Measure {
                name: column.key().strip_prefix("eval_")?.to_owned(),
                before: column.at(first),
                after: column.at(step),
            })
        })
        .collect()
}

/// A template that is a text has one of its signs in it, and is no file.
fn is_path(template: &Value) -> bool {
    let text = template.as_str().unwrap_or_default();
    Path::new(text).exists() || !(text.contains("{{") || text.contains("{%"))
}

/// Dotted keys with their values.
fn flat(settings: &Table) -> Vec<(String, String)> {
    let mut flat = Vec::new();
    for (section, keys) in settings {
        for (key, value) in keys.as_table().into_iter().flatten() {
            let key = format!("{section}.{key}");
            let is_left_out = LEFT_OUT.contains(&key.as_str()) || key == TEMPLATE && is_path(value);
            if !is_left_out {
                flat.push((key, value.to_string()));
            }
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_those_of_the_first_evaluation_and_the_result_s() {
        let text = "{\"step\":0,\"eval_loss\":2.5,\"eval_tokens\":9}\n{\"step\":4,\"eval_loss\":1,\"eval_tokens\":9}\n\
                    {\"step\":8,\"eval_loss\":null,\"eval_tokens\":9,\"eval_matthews\":0.5}\n";
        let measure = |name: &str, before, after| Measure {
            name: name.to_owned(),
            before,
            after,
        };
        assert_eq!(
            measures(&Lines::parse(text), 8),
            [
                measure("loss", Some(2.5), None),
                measure("matthews", None, Some(0.5))
            ]
        );
        assert_eq!(
            measures(&Lines::parse(text), 4),
            [measure("loss", Some(2.5), Some(1.0))]
        );
        assert!(measures(&Lines::default(), 4).is_empty());
    }

    #[test]
    fn settings_name_no_paths() {
        let text = "[model]\nsource = \"/srv/mine/base\"\ndtype = \"f32\"\n[train]\nlearning_rate = 0.5\nwords = [\"a\", \"b\"]\n";
        let settings: Table = text.parse().unwrap_or_default();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            flat(&settings),
            [
                pair("model.dtype", "\"f32\""),
                pair("train.learning_rate", "0.5"),
                pair("train.words", "[\"a\", \"b\"]")
            ]
        );
        let template = |text: &str| {
            let text = Value::String(text.to_owned());
            let table = format!("[data]\nshuffle = true\nchat_template = {text}\n");
            flat(&table.parse().unwrap_or_default())
        };
        let shuffle = pair("data.shuffle", "true");
        assert_eq!(
            template("/srv/mine/template.jinja"),
            std::slice::from_ref(&shuffle)
        );
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("{{ odd }}");
        fs::create_dir(&file).expect("a folder in it");
        assert_eq!(
            template(&file.display().to_string()),
            std::slice::from_ref(&shuffle)
        );
        let text = "{{ messages }}";
        assert_eq!(
            template(text),
            [shuffle, pair("data.chat_template", "\"{{ messages }}\"")]
        );
    }
}
